"""A cache of what is computed from parameters, rebuilt when one of them changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from fastflow.ops.checks import no_autocast

T = TypeVar("T")

_local = threading.local()


@contextmanager
def nothing_kept() -> Iterator[None]:
    """Keep no value that is built in this thread.

    For a training step that records no gradients: the weights change before they are used again, and a folded copy of
    all of them is memory that the caller wants to spare.
    """
    before, _local.off = getattr(_local, "off", False), True
    try:
        yield
    finally:
        _local.off = before


class _Seen:
    """What a tensor was when the value was built."""

    def __init__(self, tensor: Tensor) -> None:
        # The alias keeps the memory, so that no other tensor can take its address and pass for this one.
        self.alias = tensor.detach()
        self.version = None if tensor.is_inference() else tensor._version

    def holds(self, tensor: Tensor) -> bool:
        """Whether `tensor` is unchanged: in-place changes raise the version, all others give new memory."""
        return (
            not tensor.is_inference()  # these keep no version: never counted as unchanged
            and tensor._version == self.version
            and tensor.data_ptr() == self.alias.data_ptr()
            and tensor.dtype == self.alias.dtype
            and tensor.device == self.alias.device
        )


class Packed(Generic[T]):
    """Holds one value computed from parameters.

    Not part of a module's state: a copied or unpickled module makes its own when needed. Writing in place through
    `.data` leaves no trace on a parameter; `PackingModule` therefore also drops the value when it changes between
    training and evaluation, or moves.
    """

    def __init__(self) -> None:
        self._cached: tuple[list[_Seen], T] | None = None

    def get(self, tensors: Iterable[Tensor], build: Callable[[], T]) -> T:
        """Return the value; call `build` first if it was never built or one of `tensors` has changed since.

        Where gradients of `tensors` are recorded, and under torch.compile, `build` is called each time: the value is
        then part of the graph.
        """
        if torch.compiler.is_compiling():
            return build()
        tensors = list(tensors)
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return build()
        cached = self._cached  # read once: another thread may replace it
        if cached is not None:
            seen, value = cached
            if len(tensors) == len(seen) and all(s.holds(t) for s, t in zip(seen, tensors, strict=True)):
                return value
        # normal tensors in full precision, whatever the caller's mode: others will use them
        with torch.inference_mode(False), torch.no_grad(), no_autocast(tensors[0].device):
            value = build()
            if not getattr(_local, "off", False):
                self._cached = [_Seen(t) for t in tensors], value
        return value

    def clear(self) -> None:
        """Forget the value."""
        self._cached = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Packed[T]:
        return Packed()

    def __reduce__(self) -> tuple[Any, ...]:
        return Packed, ()


class PackingModule(nn.Module, Generic[T]):
    """A module that keeps one value computed from its parameters in `_packed`, and maybe others."""

    def __init__(self) -> None:
        super().__init__()
        self._packed: Packed[T] = Packed()

    def train(self, mode: bool = True) -> Any:
        if mode != self.training:
            self._forget()
        return super().train(mode)

    def _forget(self) -> None:
        for value in vars(self).values():
            if isinstance(value, Packed):
                value.clear()

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._forget()  # the memory of what was packed for another dtype or device goes at once
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
