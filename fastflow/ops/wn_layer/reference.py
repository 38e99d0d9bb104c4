"""Plain PyTorch: the specification of `wn_layer`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastflow.ops.gate.reference import gate, gate_backward


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, causal: bool) -> Tensor:
    """Dilated convolution [B, C, T] -> [B, 2G, T], padded with zeros on both sides, or on the left if causal."""
    if x.numel() == 0:  # conv1d refuses an empty time axis
        return x.new_zeros(x.shape[0], weight.shape[0], x.shape[2])
    span = dilation * (weight.shape[2] - 1)
    if causal:
        return F.conv1d(F.pad(x, (span, 0)), weight, bias, dilation=dilation)
    return F.conv1d(x, weight, bias, padding=span // 2, dilation=dilation)


def project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Product with a [M, N] weight at every step, [B, N, T] -> [B, M, T]: in bfloat16 2 to 3 times a conv1d's speed."""
    if bias is None:
        return torch.matmul(weight, x)
    return torch.baddbmm(bias[None, :, None], weight.expand(x.shape[0], -1, -1), x)


def _condition(cond: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`project` of the conditioning. A weight [P, M, N] is one for each phase: [B, N, F] -> [B, M, F * P]."""
    if weight.dim() == 2:
        return project(cond, weight, bias)
    phases, rows, _ = weight.shape
    by_phase = project(cond, weight.flatten(0, 1), None if bias is None else bias.expand(phases, rows).flatten())
    return by_phase.reshape(cond.shape[0], phases, rows, cond.shape[2]).permute(0, 2, 3, 1).flatten(2)


def preactivation(
    h: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    cond: Tensor | None,
    cond_weight: Tensor | None,
    cond_bias: Tensor | None,
    input_bias: Tensor | None,
    dilation: int,
    causal: bool,
) -> Tensor:
    """Return u [B, 2G, T], the input of the gate. `cond_weight` may be one for each phase, as `wn` has it."""
    x = h if input_bias is None else h + input_bias[:, :, None]
    u = _convolve(x, conv_weight, conv_bias, dilation, causal)
    if cond is not None:
        u += cond if cond_weight is None else _condition(cond, cond_weight, cond_bias)
    return u


def residual_and_skip(
    h: Tensor,
    a: Tensor,
    res_skip_weight: Tensor,
    res_skip_bias: Tensor | None,
    mask: Tensor | None,
    res_scale: float,
    residual: bool,
) -> tuple[Tensor, Tensor]:
    """Return the layer's outputs from its gated activation a [B, G, T]."""
    r = project(a, res_skip_weight, res_skip_bias)
    if not residual:
        return h.new_empty(h.shape[0], 0, h.shape[2]), r
    h_out = (h + r[:, : h.shape[1]]) * res_scale
    return (h_out if mask is None else h_out * mask), r[:, h.shape[1] :]


def wn_layer(
    h: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    res_skip_weight: Tensor,
    res_skip_bias: Tensor | None,
    cond: Tensor | None,
    cond_weight: Tensor | None,
    cond_bias: Tensor | None,
    input_bias: Tensor | None,
    mask: Tensor | None,
    dilation: int,
    causal: bool,
    res_scale: float,
    residual: bool,
) -> tuple[Tensor, Tensor]:
    u = preactivation(h, conv_weight, conv_bias, cond, cond_weight, cond_bias, input_bias, dilation, causal)
    return residual_and_skip(h, gate(u), res_skip_weight, res_skip_bias, mask, res_scale, residual)


def _convolve_backward(
    grad: Tensor, x: Tensor, weight: Tensor, dilation: int, causal: bool, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of `_convolve` for x, weight and bias."""
    if x.numel() == 0:
        return torch.zeros_like(x), torch.zeros_like(weight), weight.new_zeros(weight.shape[0])
    span = dilation * (weight.shape[2] - 1)
    padding = 0 if causal else span // 2
    grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad,
        F.pad(x, (span, 0)) if causal else x,
        weight,
        [weight.shape[0]],
        [1],
        [padding],
        [dilation],
        False,
        [0],
        1,
        list(needs),
    )
    if causal and grad_x is not None:
        grad_x = grad_x[:, :, span:]
    return grad_x, grad_weight, grad_bias


def _project_backward(
    grad: Tensor, x: Tensor, weight: Tensor, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of `project` for x, weight and bias."""
    return (
        torch.matmul(weight.t(), grad) if needs[0] else None,
        torch.matmul(grad, x.transpose(1, 2)).sum(0) if needs[1] else None,
        grad.sum((0, 2)) if needs[2] else None,
    )


def _condition_backward(
    grad: Tensor, cond: Tensor, weight: Tensor | None, bias: Tensor | None, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of cond, its weight and its bias from that of the gate's input [B, M, T]."""
    needs = (needs[0], needs[1], needs[2] and bias is not None)
    if weight is None or weight.dim() == 2:
        if cond.shape[2] == 1:  # one column for all time
            grad = grad.sum(2, keepdim=True)
        return (grad, None, None) if weight is None else _project_backward(grad, cond, weight, needs)
    phases, rows, _ = weight.shape
    by_phase = grad.reshape(*grad.shape[:2], cond.shape[2], phases).permute(0, 3, 1, 2).flatten(1, 2)
    grad_cond, grad_weight, grad_bias = _project_backward(by_phase, cond, weight.flatten(0, 1), needs)
    if grad_weight is not None:
        grad_weight = grad_weight.reshape(weight.shape)
    if grad_bias is not None and bias is not None:
        grad_bias = grad_bias.reshape(phases, rows).sum_to_size(bias.shape)
    return grad_cond, grad_weight, grad_bias


def wn_layer_backward(
    grad_h: Tensor,
    grad_skip: Tensor,
    h: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    res_skip_weight: Tensor,
    res_skip_bias: Tensor | None,
    cond: Tensor | None,
    cond_weight: Tensor | None,
    cond_bias: Tensor | None,
    input_bias: Tensor | None,
    mask: Tensor | None,
    dilation: int,
    causal: bool,
    res_scale: float,
    residual: bool,
    needs: list[bool],
) -> list[Tensor]:
    """Recompute the gate's input, then go backward through the layer; see `layer_backward`."""
    u = preactivation(h, conv_weight, conv_bias, cond, cond_weight, cond_bias, input_bias, dilation, causal)
    grads = layer_backward(
        grad_h,
        grad_skip,
        u,
        h,
        conv_weight,
        conv_bias,
        res_skip_weight,
        res_skip_bias,
        cond,
        cond_weight,
        cond_bias,
        input_bias,
        mask,
        dilation,
        causal,
        res_scale,
        residual,
        needs,
    )
    return [h.new_empty(0) if g is None else g for g in grads]


def layer_backward(
    grad_h: Tensor,
    grad_skip: Tensor,
    u: Tensor,
    h: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    res_skip_weight: Tensor,
    res_skip_bias: Tensor | None,
    cond: Tensor | None,
    cond_weight: Tensor | None,
    cond_bias: Tensor | None,
    input_bias: Tensor | None,
    mask: Tensor | None,
    dilation: int,
    causal: bool,
    res_scale: float,
    residual: bool,
    needs: list[bool],
) -> list[Tensor | None]:
    """Return the gradients of the nine inputs h to input_bias, None where not needed or not given."""
    grad_h, grad_r = output_gradients(grad_h, grad_skip, mask, res_scale, residual)
    grad_u = gate_backward(torch.matmul(res_skip_weight.t(), grad_r), u)
    return products_backward(
        grad_h,
        grad_r,
        grad_u,
        gate(u),
        h,
        conv_weight,
        conv_bias,
        res_skip_weight,
        res_skip_bias,
        cond,
        cond_weight,
        cond_bias,
        input_bias,
        dilation,
        causal,
        residual,
        needs,
    )


def output_gradients(
    grad_h: Tensor, grad_skip: Tensor, mask: Tensor | None, res_scale: float, residual: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradient of h + r, scaled and masked, and that of r [B, R + S, T]."""
    if not residual:
        return grad_h, grad_skip
    grad_h = grad_h * res_scale if mask is None else grad_h * (mask * res_scale)
    return grad_h, torch.cat((grad_h, grad_skip), 1)


def products_backward(
    grad_h: Tensor,
    grad_r: Tensor,
    grad_u: Tensor,
    a: Tensor,
    h: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    res_skip_weight: Tensor,
    res_skip_bias: Tensor | None,
    cond: Tensor | None,
    cond_weight: Tensor | None,
    cond_bias: Tensor | None,
    input_bias: Tensor | None,
    dilation: int,
    causal: bool,
    residual: bool,
    needs: list[bool],
) -> list[Tensor | None]:
    """The rest of `layer_backward`, from the gradient of the gate's input [B, 2G, T] and its output a [B, G, T]."""
    _, grad_res_skip_weight, grad_res_skip_bias = _project_backward(
        grad_r, a, res_skip_weight, (False, needs[3], needs[4] and res_skip_bias is not None)
    )
    x = h if input_bias is None else h + input_bias[:, :, None]
    needs_x = needs[0] or (needs[8] and input_bias is not None)
    grad_x, grad_conv_weight, grad_conv_bias = _convolve_backward(
        grad_u, x, conv_weight, dilation, causal, (needs_x, needs[1], needs[2] and conv_bias is not None)
    )

    grad_cond = grad_cond_weight = grad_cond_bias = None
    if cond is not None:
        grad_cond, grad_cond_weight, grad_cond_bias = _condition_backward(
            grad_u, cond, cond_weight, cond_bias, (needs[5], needs[6], needs[7])
        )

    grad_input_bias = None
    if input_bias is not None and needs[8]:
        assert grad_x is not None
        grad_input_bias = grad_x.sum(2)
        if input_bias.shape[0] == 1:
            grad_input_bias = grad_input_bias.sum(0, keepdim=True)
    grad_h_in = grad_x
    if residual and grad_x is not None:
        grad_h_in = grad_x + grad_h

    return [
        grad_h_in if needs[0] else None,
        grad_conv_weight,
        grad_conv_bias,
        grad_res_skip_weight,
        grad_res_skip_bias,
        grad_cond if needs[5] else None,
        grad_cond_weight,
        grad_cond_bias,
        grad_input_bias,
    ]
