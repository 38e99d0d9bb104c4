"""Public face of `invconv1x1`: inverses and PLU factors are plain PyTorch, the rest is the operation."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastflow.ops import checks, registry
from fastflow.ops.invconv1x1 import reference


def _fake(x: Tensor, weight: Tensor, mask: Tensor | None, log_det: bool) -> tuple[Tensor, Tensor]:
    accumulator = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(x.shape), x.new_empty(x.shape[0] if log_det else 0, dtype=accumulator)


def _fake_backward(grad: Tensor, grad_log_det: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> list[Tensor]:
    return [x.new_empty(x.shape), weight.new_empty(weight.shape)]


_invconv1x1 = registry.define("invconv1x1", reference.invconv1x1, _fake)
_invconv1x1_backward = registry.define(
    "invconv1x1_backward", reference.invconv1x1_backward, _fake_backward, backward=True
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.log_det = inputs[3]


def _backward(ctx: Any, grad: Tensor, grad_log_det: Tensor) -> tuple[Any, ...]:
    grads = _invconv1x1_backward(grad, grad_log_det, *ctx.saved_tensors, ctx.log_det)
    return grads[0], grads[1], None, None


_invconv1x1.register_autograd(_backward, setup_context=_setup)


class PLU(NamedTuple):
    """A weight W = P (L + I) (U + diag(sign * exp(log_s))), Kingma & Dhariwal 2018, "Glow", eq. 10.

    All are [C, C] but for the last two, [C]. Only the strictly lower part of `lower` and the strictly upper part of
    `upper` are read, so log |det W| = sum(log_s) costs nothing.
    """

    permutation: Tensor
    lower: Tensor
    upper: Tensor
    sign: Tensor
    log_s: Tensor

    @classmethod
    def from_weight(cls, weight: Tensor) -> PLU:
        """Factor a plain [C, C] weight; ValueError if it is singular."""
        checks.check_shape("weight", weight, "[C, C]", (weight.shape[0], weight.shape[0]))
        inverse(weight)  # raises if it is singular
        with checks.no_autocast(weight.device):
            permutation, lower, upper = torch.linalg.lu(_wide(weight))
        diagonal = upper.diagonal()
        parts = (permutation, lower.tril(-1), upper.triu(1), diagonal.sign(), diagonal.abs().log())
        return cls(*(part.to(weight.dtype) for part in parts))

    def weight(self) -> Tensor:
        """Return W [C, C] in float32 or wider."""
        permutation, lower, upper, sign, log_s = (_wide(part) for part in self)
        identity = torch.eye(log_s.shape[0], dtype=log_s.dtype, device=log_s.device)
        with checks.no_autocast(log_s.device):
            return permutation @ (lower.tril(-1) + identity) @ (upper.triu(1) + torch.diag(sign * torch.exp(log_s)))


def _wide(x: Tensor) -> Tensor:
    """Return x in float32 or wider: [C, C] algebra is never done in half precision."""
    return x if x.dtype == torch.float64 else x.float()


def inverse(weight: Tensor | PLU, name: str = "weight") -> Tensor:
    """Return the inverse [C, C] of a 1x1 weight, computed and returned in float32 or wider; errors call it `name`.

    Raises:
        ValueError: the weight is not finite, singular, or so near it that nothing of an inverse in its dtype holds:
            the condition number (1-norm) reaches 1 / eps.
    """
    w = weight.weight() if isinstance(weight, PLU) else _wide(weight)
    if torch.compiler.is_compiling():  # the message costs a graph break; linalg.inv raises its own at run time
        compiled: Tensor = torch.linalg.inv(w)
        return compiled
    try:
        w_inverse: Tensor = torch.linalg.inv(w)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        raise ValueError(f"`{name}` must be invertible; got a singular matrix {list(w.shape)}") from None
    norms = torch.linalg.matrix_norm(w.detach(), 1) * torch.linalg.matrix_norm(w_inverse.detach(), 1)
    condition = float(norms)
    limit = 1 / torch.finfo(w.dtype).eps
    if not condition < limit:  # NaN, too
        raise ValueError(
            f"`{name}` must be invertible; got a matrix {list(w.shape)} of condition number {condition:.3g}, "
            f"at least {limit:.3g}"
        )
    return w_inverse


def log_abs_det(weight: Tensor | PLU) -> Tensor:
    """Return log |det W|, a scalar in float32 or wider."""
    if isinstance(weight, PLU):
        return _wide(weight.log_s).sum()
    result: Tensor = torch.linalg.slogdet(_wide(weight)).logabsdet
    return result


def invconv1x1(
    x: Tensor, weight: Tensor | PLU, *, mask: Tensor | None = None, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Invertible 1x1 convolution: y[b, :, t] = W x[b, :, t].

    Formula: Kingma & Dhariwal 2018, "Glow: Generative Flow with Invertible 1x1 Convolutions", section 3.2.

    Args:
        x: [B, C, T].
        weight: [C, C] (or the published [C, C, 1]), or a `PLU`.
        mask: [B, 1, T] or None, multiplied onto y; the log-determinant counts its steps. No gradient flows to it.
        reverse: multiply by the inverse, computed in float32 or wider.

    Returns:
        y [B, C, T] and the log-determinant [B]: T (or the mask's sum) times log |det W|, negated in reverse; float32
        or wider.

    Raises:
        TypeError: `x` is not a floating-point tensor.
        ValueError: a shape, dtype or device does not fit, or the weight to invert is singular.
        BackendError: the backend asked for cannot run this call.
    """
    checks.check_floating("x", x)
    checks.check_shape("x", x, "[B, C, T]", (None, None, None))
    (wide,) = checks.autocast_wide(x.device, x)
    assert wide is not None
    x, channels = wide, x.shape[1]
    if isinstance(weight, Tensor):
        if weight.dim() == 3 and weight.shape[2] == 1:
            weight = weight[:, :, 0]
        checks.check_shape("weight", weight, "[C, C]", (channels, channels))
        checks.check_like("weight", weight, "x", x)
    else:
        for name, part in weight._asdict().items():
            vector = name in ("sign", "log_s")
            shape = (channels,) if vector else (channels, channels)
            checks.check_shape(f"weight.{name}", part, "[C]" if vector else "[C, C]", shape)
            checks.check_like(f"weight.{name}", part, "x", x)
    mask = checks.check_mask(mask, "x", x)
    if isinstance(weight, Tensor):  # an inverse stays float32 or wider: its log-determinant has the sign by itself
        y, log_det = _invconv1x1(x, inverse(weight) if reverse else weight, mask, True)
        return y, log_det
    y, _ = _invconv1x1(x, inverse(weight) if reverse else weight.weight(), mask, False)
    log_det = log_abs_det(weight) * reference.steps(x, mask)
    return y, -log_det if reverse else log_det


def multiply(x: Tensor, matrix: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Return matrix [C, C] times x [B, C, T] at every step, times `mask`: the product without a log-determinant.

    The matrix has the dtype of `x`, or is float32 where `x` is half precision.
    """
    y: Tensor = _invconv1x1(x, matrix, checks.check_mask(mask, "x", x), False)[0]
    return y
