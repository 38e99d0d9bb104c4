"""Plain PyTorch: the specification of `flow_step`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastflow.ops.affine_coupling import reference as coupling


def _end(
    x: Tensor, hidden: Tensor, end_weight: Tensor, end_bias: Tensor | None, form: str
) -> tuple[Tensor, Tensor | None]:
    """Return shift and log scale [B, C / 2, T] in the dtype of `x`."""
    if hidden.shape[2] == 0:  # conv1d refuses it
        out = x.new_zeros(x.shape[0], end_weight.shape[0], 0)
    else:
        out = F.conv1d(hidden, end_weight[:, :, None], end_bias).to(x.dtype)
    if form == "additive":
        return out, None
    shift, log_scale = out.chunk(2, 1)
    return shift, log_scale


def _halves(x: Tensor, transform_first: bool) -> tuple[Tensor, Tensor]:
    """Return the kept and the moved half of the channels."""
    first, second = x.chunk(2, 1)
    return (second, first) if transform_first else (first, second)


def _joined(kept: Tensor, moved: Tensor, transform_first: bool) -> Tensor:
    return torch.cat((moved, kept) if transform_first else (kept, moved), 1)


def compose(
    couple: Callable[..., tuple[Tensor, Tensor]], multiply: Callable[..., Any]
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Make `flow_step` of an `affine_coupling` and of an `invconv1x1` without its log-determinant, both raw."""

    def flow_step(
        x: Tensor,
        hidden: Tensor,
        end_weight: Tensor,
        end_bias: Tensor | None,
        weight: Tensor | None,
        early: Tensor | None,
        n_early: int,
        form: str,
        transform_first: bool,
        reverse: bool,
        log_det: bool,
    ) -> tuple[Tensor, Tensor]:
        kept, moved = _halves(x, transform_first)
        shift, log_scale = _end(x, hidden, end_weight, end_bias, form)
        moved, total = couple(moved, shift, log_scale, None, form, reverse)
        y = _joined(kept, moved, transform_first)
        first = [] if early is None else [early]
        if weight is not None:
            if n_early:
                first.append(y[:, :n_early])
            y = multiply(weight, y[:, n_early:])
        return torch.cat((*first, y), 1) if first else y, total if log_det else total.new_empty(0)

    return flow_step


flow_step = compose(coupling.affine_coupling, torch.matmul)


def flow_step_backward(
    grad: Tensor,
    grad_log_det: Tensor,
    x: Tensor,
    hidden: Tensor,
    end_weight: Tensor,
    end_bias: Tensor | None,
    weight: Tensor | None,
    early: Tensor | None,
    n_early: int,
    form: str,
    transform_first: bool,
    reverse: bool,
    log_det: bool,
) -> list[Tensor]:
    """Return the gradients of x, hidden, end_weight, end_bias, weight and early (empty where there is none)."""
    n_first = 0 if early is None else early.shape[1]
    grad_early, grad = grad[:, :n_first], grad[:, n_first:]
    kept, moved = _halves(x, transform_first)
    shift, log_scale = _end(x, hidden, end_weight, end_bias, form)
    grad_weight = x.new_empty(0)
    if weight is not None:
        moved_on, _ = coupling.affine_coupling(moved, shift, log_scale, None, form, reverse)
        y = _joined(kept, moved_on, transform_first)
        grad_y, grad_weight = _multiply_backward(grad[:, n_early:], y[:, n_early:], weight)
        grad = torch.cat((grad[:, :n_early], grad_y), 1) if n_early else grad_y
    grad_kept, grad_moved = _halves(grad, transform_first)
    if not log_det:
        grad_log_det = x.new_zeros(x.shape[0])
    grad_moved, grad_shift, grad_scale = coupling.affine_coupling_backward(
        grad_moved, grad_log_det, moved, shift, log_scale, None, form, reverse
    )
    grad_out = grad_shift if log_scale is None else torch.cat((grad_shift, grad_scale), 1)
    grad_out = grad_out.to(hidden.dtype)
    return [
        _joined(grad_kept, grad_moved, transform_first),
        torch.matmul(end_weight.t(), grad_out),
        torch.matmul(grad_out, hidden.transpose(1, 2)).sum(0),
        hidden.new_empty(0) if end_bias is None else grad_out.sum((0, 2)),
        grad_weight,
        x.new_empty(0) if early is None else grad_early.clone(),
    ]


def _multiply_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of the weight [C, C] of a product at every step."""
    return torch.matmul(weight.t(), grad), torch.matmul(grad, x.transpose(1, 2)).sum(0)
