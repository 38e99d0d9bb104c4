"""A cache of what is computed from parameters, rebuilt when one of them changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


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

    Not part of a module's state: a copied or unpickled module makes its own when needed.
    """

    def __init__(self) -> None:
        self._seen: list[_Seen] = []
        self._value: T | None = None

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
        fresh = len(tensors) == len(self._seen) and all(s.holds(t) for s, t in zip(self._seen, tensors, strict=True))
        if self._value is None or not fresh:
            with torch.inference_mode(False), torch.no_grad():
                self._value = build()
                self._seen = [_Seen(t) for t in tensors]
        return self._value

    def __deepcopy__(self, memo: dict[int, Any]) -> Packed[T]:
        return Packed()

    def __reduce__(self) -> tuple[Any, ...]:
        return Packed, ()
