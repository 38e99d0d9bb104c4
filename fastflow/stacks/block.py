"""What a known block of a foreign model becomes: a class of ours in front of the block's own."""

from __future__ import annotations

import copy
import copyreg
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastflow.nn.packing import Packed
from fastflow.ops import registry
from fastflow.ops.checks import no_autocast

Randn = Callable[..., Tensor]
"""`randn(*shape)`: normal values in the dtype and on the device of the block, the same in every run."""


class Block(nn.Module):
    """Base of the classes that compute a foreign block's forward; a subclass is one kind of block of one stack.

    `replace` changes a module's class to a subclass of both, so that parameters, buffers, hooks, submodules and their
    names stay the very same objects, `isinstance` holds, and `super().forward` is the original. All that is added to
    the module is the cache `_fastflow`.

    A deep copy is replaced as well. A pickle holds the original, as if it had never been replaced: it opens where
    there is no fastflow.
    """

    stack: ClassVar[str]
    """Whose block this is, for the report."""
    op: ClassVar[str]
    """The operation of `fastflow.ops` that does its work, for the report."""
    whole: ClassVar[bool] = False
    """Whether it does the work of all that is inside of it, so that blocks there are not looked for."""

    _fastflow: Packed[Any]

    @classmethod
    def knows(cls, module: nn.Module) -> bool:
        """Whether `module` is of this kind, by its class's names and the names of what it holds."""
        raise NotImplementedError

    @classmethod
    def objection(cls, module: nn.Module) -> str | None:
        """Return why a module of this kind cannot be replaced, or None."""
        raise NotImplementedError

    @classmethod
    def no_gain(cls, module: nn.Module) -> str | None:
        """Return why the original is as fast where this module is, so that it is left, or None."""
        return None

    @classmethod
    def backend(cls, module: nn.Module) -> tuple[str, str]:
        """Return the backend that "auto" takes for a module of this kind, and why."""
        return registry.chosen(cls.op, like(module))

    @classmethod
    def example(cls, module: nn.Module, randn: Randn) -> list[dict[str, Any]]:
        """Return the arguments of a few short calls of `forward`, on which original and replacement must agree."""
        raise NotImplementedError

    @classmethod
    def results(cls, module: nn.Module, example: dict[str, Any]) -> Any:
        """Return what the module's class makes of an example, without the hooks on the module."""
        return type(module).forward(module, **example)

    def train(self, mode: bool = True) -> Any:
        if mode != self.training:
            self._fastflow.clear()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._fastflow.clear()  # the memory of what was packed for another dtype or device goes at once
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        make, arguments, state, *rest = reduced
        if make is copyreg.__newobj__:  # type: ignore[attr-defined]
            # picklers refuse this function with another class than the object's; the same in a form that they take
            make, arguments = copyreg._reconstructor, (original(self), object, None)  # type: ignore[attr-defined]
        return (make, arguments, {k: v for k, v in state.items() if k != "_fastflow"}, *rest)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        make, arguments, state, *_ = self.__reduce_ex__(4)
        copied: nn.Module = make(*arguments)
        memo[id(self)] = copied
        copied.__setstate__(copy.deepcopy(state, memo))  # type: ignore[no-untyped-call]
        replace(copied, kind(self))
        return copied


def like(module: nn.Module) -> Tensor:
    """Return a tensor of the dtype and on the device of a module."""
    return next(iter(module.parameters()), torch.empty(0))


def on_cpu(module: nn.Module) -> bool:
    """Whether a module is on a CPU."""
    return like(module).device.type == "cpu"


_classes: dict[tuple[type[Block], type[nn.Module]], type[nn.Module]] = {}


def _merged(block: type[Block], of: type[nn.Module]) -> type[nn.Module]:
    """Return the class that computes as `block` and is otherwise `of`, by name as well; made once."""
    if (block, of) in _classes:
        return _classes[block, of]
    names = {
        "__module__": of.__module__,
        "__qualname__": of.__qualname__,
        "__doc__": of.__doc__,
        "_fastflow_of": (block, of),
    }
    _classes[block, of] = type(of.__name__, (block, of), names)
    return _classes[block, of]


def kind(module: nn.Module) -> type[Block]:
    """Return which kind of block `module` was replaced by."""
    block: type[Block] = type(module)._fastflow_of[0]  # type: ignore[attr-defined]
    return block


def original(module: nn.Module) -> type[nn.Module]:
    """Return the class that `module` had before it was replaced."""
    of: type[nn.Module] = type(module)._fastflow_of[1]  # type: ignore[attr-defined]
    return of


def replace(module: nn.Module, block: type[Block]) -> None:
    """Let `module` compute as `block`, in place."""
    module.__dict__["_fastflow"] = Packed[Any]()
    module.__class__ = _merged(block, type(module))


def revert(module: nn.Module) -> None:
    """Undo `replace`."""
    module.__class__ = original(module)
    del module.__dict__["_fastflow"]


def disagreement(module: nn.Module, block: type[Block]) -> str | None:
    """Return how `block` differs from a module's own forward on the block's examples, or None; `module` is as before.

    A fork may keep all names and change the arithmetic. Both run in evaluation mode and without hooks on the module.
    The question here is only whether both are the same formula, up to rounding; the tests of each stack hold the
    results to closer bounds.
    """
    if (missing := _no_values(module)) is not None:
        return missing
    reference = like(module)
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(reference.device, reference.dtype)

    modes = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        with torch.no_grad(), no_autocast(reference.device):
            step = "no example can be made for it"
            try:
                examples = block.example(module, randn)
                step = "its own forward fails on an example"
                expected = [_tensors(block.results(module, example)) for example in examples]
                step = "its replacement fails on an example"
                replace(module, block)
                try:
                    got = [_tensors(block.results(module, example)) for example in examples]
                finally:
                    revert(module)
            except Exception as error:  # it only looks like what is known: anything may happen
                return f"{step}: {type(error).__name__}: {error}"
    finally:
        for part, mode in modes:
            part.training = mode
    tolerance = 1e-3 if reference.dtype in (torch.float32, torch.float64) else 5e-2
    for theirs, ours in zip(expected, got, strict=True):
        if [t.shape for t in theirs] != [t.shape for t in ours]:
            shapes = " for ".join(str([list(t.shape) for t in result]) for result in (ours, theirs))
            return f"its forward returns something else: {shapes}"
        if not any(torch.isfinite(t).any() for t in theirs):
            return "its forward returns nothing finite on an example: there is nothing to compare"
        for a, b in zip(theirs, ours, strict=True):
            finite = torch.isfinite(a)  # some logarithms of determinants are not
            a, b = a[finite].double(), b[finite].double()
            if not (a - b).norm() <= tolerance * a.norm():
                return f"its forward computes something else: off by {(a - b).norm() / a.norm():.2g}"
    return None


def _no_values(module: nn.Module) -> str | None:
    """Return that a module cannot be compared before its weights are loaded, or None."""
    if any(t.is_meta for t in (*module.parameters(), *module.buffers())):
        return "it has no values yet: load the weights first"
    for name, p in module.named_parameters():
        if not torch.isfinite(p.detach()).all():  # never set, it may be anything
            return f"`{name}` is not finite: load the weights first"
    return None


def _tensors(result: Any) -> list[Tensor]:
    items = result if isinstance(result, list | tuple) else [result]
    return [t.detach() for t in items if isinstance(t, Tensor)]
