"""Plain PyTorch: the specification of `affine_coupling`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def affine_coupling(
    x: Tensor, shift: Tensor, log_scale: Tensor | None, mask: Tensor | None, form: str, reverse: bool
) -> tuple[Tensor, Tensor]:
    if log_scale is None:
        y = x - shift if reverse else x + shift
        log_det = x.new_zeros(x.shape[0], dtype=_accumulator(x))
        return (y if mask is None else y * mask), log_det
    if form == "exp":
        s = log_scale
        y = (x - shift) * torch.exp(-s) if reverse else torch.exp(s) * x + shift
    else:  # "sigmoid"
        s = F.logsigmoid(log_scale + 2)
        y = x * torch.exp(-s) - shift if reverse else (x + shift) * torch.exp(s)
    if mask is not None:
        y, s = y * mask, s * mask
    log_det = s.sum((1, 2), dtype=_accumulator(x))
    return y, -log_det if reverse else log_det


def affine_coupling_backward(
    grad: Tensor,
    grad_log_det: Tensor,
    x: Tensor,
    shift: Tensor,
    log_scale: Tensor | None,
    mask: Tensor | None,
    form: str,
    reverse: bool,
) -> list[Tensor]:
    """Return the gradients of x, shift and log_scale (empty where log_scale is None)."""
    if mask is not None:
        grad = grad * mask
    if log_scale is None:
        return [grad.clone(), -grad if reverse else grad.clone(), grad.new_empty(0)]
    s = log_scale if form == "exp" else F.logsigmoid(log_scale + 2)
    scale = torch.exp(-s if reverse else s)
    grad_x = grad * scale
    if form == "exp":
        grad_shift = -grad_x if reverse else grad.clone()
        scaled = (x - shift) * scale if reverse else x * scale  # the part of y that s multiplies
    else:
        grad_shift = -grad if reverse else grad_x.clone()
        scaled = x * scale if reverse else (x + shift) * scale
    grad_log = grad_log_det[:, None, None].to(x.dtype)
    if mask is not None:
        grad_log = grad_log * mask
    grad_s = grad * scaled + grad_log
    if reverse:
        grad_s = -grad_s
    if form == "sigmoid":
        grad_s = grad_s * torch.sigmoid(-(log_scale + 2))
    return [grad_x, grad_shift, grad_s]
