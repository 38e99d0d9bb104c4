"""`wn` backward in Triton: the block runs again, keeping each layer's input, then goes backward layer by layer."""

from __future__ import annotations

import torch
from torch import Tensor

from fastflow.ops import registry, tuning
from fastflow.ops.wn import reference
from fastflow.ops.wn_layer.triton import conditioning, dense, launch_layer, relaid, tap_major
from fastflow.ops.wn_layer.triton_backward import Gradients, Layer, Needs, Outputs, layer_backward


def wn_backward(
    grad: Tensor,
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
    """Return one gradient per tensor of the nine differentiable arguments, lists spliced in; empty where not needed."""
    inputs: list[Tensor | list[Tensor] | None] = [
        h,
        conv_weights,
        conv_biases,
        res_skip_weights,
        res_skip_biases,
        cond,
        cond_weights,
        cond_biases,
        input_biases,
    ]
    batch, channels, time = h.shape
    count = len(conv_weights)
    last = count - 1
    flat: list[Tensor | None] = []
    if any(
        x.numel() == 0 for x in (grad, h, *conv_weights, *([] if cond is None else [cond]))
    ):  # nothing to launch for
        return reference.wn_backward(
            grad,
            h,
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
            needs,
        )

    # Everything is re-laid once, here.
    unused = channels if last_residual else 0  # rows of the last layer that no one reads
    weights = [w.contiguous() for w in res_skip_weights]
    weights[last] = weights[last][unused:]
    cond_last = relaid(cond)
    kind = conditioning(cond_last, cond_weights[0] if cond_weights else None)
    layers: list[Layer] = []
    x = tuning.aligned_channels_last(h)
    for i in range(count):
        cond_i = cond_last
        if cond_last is not None and not cond_weights:  # projected for all layers at once: this layer's channels
            rows = conv_weights[i].shape[0]
            cond_i = cond_last[:, :, i * rows : (i + 1) * rows]
        layer = Layer(
            x,
            tap_major(conv_weights[i]),
            dense(conv_biases[i]) if conv_biases else None,
            weights[i],
            cond_i,
            dense(cond_weights[i]) if cond_weights else None,
            dense(cond_biases[i]) if cond_biases else None,
            dense(input_biases[i]) if input_biases else None,
            dilations[i],
            causal,
        )
        layers.append(layer)
        if i < last:
            x = h.new_empty(batch, time, channels)
            launch_layer(
                *layer[:3],
                weights[i][:channels],
                res_skip_biases[i][:channels].contiguous() if res_skip_biases else None,
                *layer[4:8],
                mask,
                dilations[i],
                causal,
                res_scale,
                h_out=x,
                skip_out=None,
            )

    # The skip's part of grad_r is the same for all layers; the residual's is replaced by each layer's data launch.
    skip_channels = grad.shape[1]
    grad_r = h.new_empty(batch, time, (channels if last else 0) + skip_channels)
    grad_skip = grad_r[:, :, -skip_channels:]
    torch.mul(grad.transpose(1, 2), skip_scale if mask is None else mask.transpose(1, 2) * skip_scale, out=grad_skip)
    grad_h = grad_r[:, :, :channels] if last else h.new_empty(batch, time, channels) if needs[0] else None
    grad_cond = None
    if needs[5] and cond is not None and kind in ("local", "projected"):
        grad_cond = h.new_empty(batch, time, cond.shape[1])
    needed = [n and (isinstance(given, Tensor) or bool(given)) for given, n in zip(inputs, needs, strict=True)]
    per_layer: list[Gradients] = []
    for i in reversed(range(count)):
        layer = layers.pop()
        rows = layer.conv_weight.shape[0]
        wanted = Needs(i > 0 or needs[0], *needed[1:])
        own = grad_cond[:, :, i * rows : (i + 1) * rows] if grad_cond is not None and kind == "projected" else None
        out = Outputs(grad_h, own, grad_cond if kind == "local" else None, accumulate=i < last)
        per_layer.insert(
            0,
            layer_backward(
                layer,
                grad_r if i < last else grad_skip,
                wanted,
                out,
                grad_h if i < last else None,
                mask if i > 0 else None,
                res_scale if i > 0 else 1.0,
            ),
        )

    if unused:
        weight, bias = per_layer[last].res_skip_weight, per_layer[last].res_skip_bias
        per_layer[last] = per_layer[last]._replace(
            res_skip_weight=None if weight is None else torch.cat((weight.new_zeros(unused, weight.shape[1]), weight)),
            res_skip_bias=None if bias is None else torch.cat((bias.new_zeros(unused), bias)),
        )
    flat.append(grad_h.transpose(1, 2) if needs[0] and grad_h is not None else None)
    for items, column in ((conv_weights, 0), (conv_biases, 1), (res_skip_weights, 2), (res_skip_biases, 3)):
        flat += [g[column] for g in per_layer[: len(items)]]
    if cond is not None:
        if grad_cond is not None:
            flat.append(grad_cond.transpose(1, 2))
        else:
            columns = [g.cond for g in per_layer if g.cond is not None]
            joined = None
            if columns:
                joined = torch.cat(columns, 1) if kind == "projected global" else torch.stack(columns).sum(0)
            flat.append(None if joined is None else joined[:, :, None])
    for items, column in ((cond_weights, 5), (cond_biases, 6), (input_biases, 7)):
        flat += [g[column] for g in per_layer[: len(items)]]
    return [h.new_empty(0) if g is None else g.to(h.dtype) for g in flat]


registry.implement("triton", "wn_backward", wn_backward)
