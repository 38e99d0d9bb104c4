"""Plain PyTorch: the specification of `wn`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastflow.ops.gate.reference import gate
from fastflow.ops.wn_layer.reference import layer_backward, preactivation, residual_and_skip


class Layer(NamedTuple):
    """What layer i takes out of the block's arguments, in the order of `wn_layer`'s."""

    conv_weight: Tensor
    conv_bias: Tensor | None
    res_skip_weight: Tensor
    res_skip_bias: Tensor | None
    cond: Tensor | None
    cond_weight: Tensor | None
    cond_bias: Tensor | None
    input_bias: Tensor | None
    dilation: int
    residual: bool


def split_layers(
    conv_weights: list[Tensor],
    conv_biases: list[Tensor],
    res_skip_weights: list[Tensor],
    res_skip_biases: list[Tensor],
    cond: Tensor | None,
    cond_weights: list[Tensor],
    cond_biases: list[Tensor],
    input_biases: list[Tensor],
    mask: Tensor | None,
    dilations: list[int],
    causal: bool,
    res_scale: float,
    skip_scale: float,
    last_residual: bool,
) -> list[Layer]:
    """Return the layers of a block with these arguments, which are `wn`'s from the second on."""

    def at(items: list[Tensor], i: int) -> Tensor | None:
        return items[i] if items else None

    count = len(conv_weights)
    layers = []
    for i in range(count):
        cond_i = cond
        if cond is not None and not cond_weights:  # projected for all layers at once: take this layer's rows
            rows = conv_weights[i].shape[0]
            cond_i = cond[:, i * rows : (i + 1) * rows]
        layers.append(
            Layer(
                conv_weights[i],
                at(conv_biases, i),
                res_skip_weights[i],
                at(res_skip_biases, i),
                cond_i,
                at(cond_weights, i),
                at(cond_biases, i),
                at(input_biases, i),
                dilations[i],
                last_residual or i < count - 1,
            )
        )
    return layers


def _gate_input(h: Tensor, layer: Layer, causal: bool) -> Tensor:
    return preactivation(
        h,
        layer.conv_weight,
        layer.conv_bias,
        layer.cond,
        layer.cond_weight,
        layer.cond_bias,
        layer.input_bias,
        layer.dilation,
        causal,
    )


def wn(
    h: Tensor,
    conv_weights: list[Tensor],
    conv_biases: list[Tensor],
    res_skip_weights: list[Tensor],
    res_skip_biases: list[Tensor],
    cond: Tensor | None,
    cond_weights: list[Tensor],
    cond_biases: list[Tensor],
    input_biases: list[Tensor],
    mask: Tensor | None,
    dilations: list[int],
    causal: bool,
    res_scale: float,
    skip_scale: float,
    last_residual: bool,
) -> Tensor:
    out: Tensor | None = None
    for layer in split_layers(
        conv_weights,
        conv_biases,
        res_skip_weights,
        res_skip_biases,
        cond,
        cond_weights,
        cond_biases,
        input_biases,
        mask,
        dilations,
        causal,
        res_scale,
        skip_scale,
        last_residual,
    ):
        a = gate(_gate_input(h, layer, causal))
        h, skip = residual_and_skip(h, a, layer.res_skip_weight, layer.res_skip_bias, mask, res_scale, layer.residual)
        out = skip if out is None else out.add_(skip)
    assert out is not None
    return scaled(out, mask, skip_scale)


def scaled(out: Tensor, mask: Tensor | None, skip_scale: float) -> Tensor:
    """Return the sum of skips as the block's result; changes `out`."""
    if skip_scale != 1.0:
        out *= skip_scale
    return out if mask is None else out * mask


class ByLayers(NamedTuple):
    """A backward that runs the block again and goes backward through its layers: whole, and in two parts.

    `again` takes `wn`'s arguments; returns its result (any, without `wants_skip`) and what each layer keeps. `backward`
    takes the result's gradient, what was kept (emptied on the way, to free memory), `wn`'s arguments and `needs`.
    """

    wn_backward: Callable[..., list[Tensor]]
    again: Callable[..., tuple[Tensor, list[Any]]]
    backward: Callable[..., list[Tensor]]


def by_layers(
    forward: Callable[[Tensor, Layer, Tensor | None, bool, float, bool], tuple[Any, Tensor, Tensor | None]],
    backward: Callable[..., list[Tensor | None]],
) -> ByLayers:
    """Make `wn_backward` of two functions for one layer.

    `forward(x, layer, mask, causal, res_scale, wants_skip)` returns what to keep of the layer's input x, its output
    (any where the layer has none), and its skip if that is wanted. `backward(grad_h, grad_skip, kept, layer, mask,
    causal, res_scale, needs)` returns the nine gradients of `wn_layer`, None where not needed.
    """

    def again(h: Tensor, *rest: Any, wants_skip: bool = True) -> tuple[Tensor, list[Any]]:
        *_, mask, _, causal, res_scale, skip_scale, _ = rest
        kept = []
        out: Tensor | None = None
        for layer in split_layers(*rest):
            keep, h, skip = forward(h, layer, mask, causal, res_scale, wants_skip)
            kept.append(keep)
            if skip is not None:
                out = skip if out is None else out.add_(skip)
        return (h if out is None else scaled(out, mask, skip_scale)), kept

    def wn_backward(grad: Tensor, *rest: Any) -> list[Tensor]:
        _, kept = again(*rest[:-1], wants_skip=False)
        return from_kept(grad, kept, *rest)

    def from_kept(
        grad: Tensor,
        kept: list[Any],
        h: Tensor,
        conv_weights: list[Tensor],
        conv_biases: list[Tensor],
        res_skip_weights: list[Tensor],
        res_skip_biases: list[Tensor],
        cond: Tensor | None,
        cond_weights: list[Tensor],
        cond_biases: list[Tensor],
        input_biases: list[Tensor],
        mask: Tensor | None,
        dilations: list[int],
        causal: bool,
        res_scale: float,
        skip_scale: float,
        last_residual: bool,
        needs: list[bool],
    ) -> list[Tensor]:
        """Go backward through the layers, last to first.

        `needs` has one entry for each of the nine differentiable arguments, h to input_biases, as in
        `wn_layer_backward`. The result has one gradient per tensor of these, lists spliced in; cond's is there only
        where cond is.
        """
        layers = split_layers(
            conv_weights,
            conv_biases,
            res_skip_weights,
            res_skip_biases,
            cond,
            cond_weights,
            cond_biases,
            input_biases,
            mask,
            dilations,
            causal,
            res_scale,
            skip_scale,
            last_residual,
        )
        grad_skip = grad * skip_scale
        if mask is not None:
            grad_skip = grad_skip * mask
        # the last layer's residual output, where it has one, goes nowhere
        grad_h = h.new_zeros(h.shape)
        grad_cond: Tensor | None = None
        projected: list[Tensor] = []
        rows: list[list[Tensor | None]] = []
        for i in reversed(range(len(layers))):
            g = backward(
                grad_h, grad_skip, kept.pop(), layers[i], mask, causal, res_scale, [i > 0 or needs[0], *needs[1:]]
            )
            grad_h = g[0] if g[0] is not None else grad_h
            if g[5] is not None:
                if cond_weights:
                    grad_cond = g[5] if grad_cond is None else grad_cond.add_(g[5])
                else:
                    projected.insert(0, g[5])
            rows.insert(0, g)
        if projected:
            grad_cond = torch.cat(projected, 1)

        flat: list[Tensor | None] = [grad_h if needs[0] else None]
        for items, column in ((conv_weights, 1), (conv_biases, 2), (res_skip_weights, 3), (res_skip_biases, 4)):
            flat += [rows[i][column] for i in range(len(items))]
        if cond is not None:
            flat.append(grad_cond)
        for items, column in ((cond_weights, 6), (cond_biases, 7), (input_biases, 8)):
            flat += [rows[i][column] for i in range(len(items))]
        return [h.new_empty(0) if g is None else g for g in flat]

    return ByLayers(wn_backward, again, from_kept)


def _keep(
    x: Tensor, layer: Layer, mask: Tensor | None, causal: bool, res_scale: float, wants_skip: bool
) -> tuple[Any, Tensor, Tensor | None]:
    u = _gate_input(x, layer, causal)
    if not layer.residual and not wants_skip:
        return (x, u), x, None
    weight, bias = layer.res_skip_weight, layer.res_skip_bias
    h, skip = residual_and_skip(x, gate(u), weight, bias, mask, res_scale, layer.residual)
    return (x, u), h, skip


def _layer_backward(
    grad_h: Tensor,
    grad_skip: Tensor,
    kept: Any,
    layer: Layer,
    mask: Tensor | None,
    causal: bool,
    res_scale: float,
    needs: list[bool],
) -> list[Tensor | None]:
    x, u = kept
    return layer_backward(
        grad_h, grad_skip, u, x, *layer[:8], mask, layer.dilation, causal, res_scale, layer.residual, needs
    )


layered = by_layers(_keep, _layer_backward)
wn_backward = layered.wn_backward
