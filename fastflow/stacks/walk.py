"""`accelerate`: replace what is known inside a model, and say what was done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from fastflow.stacks import block as blocks
from fastflow.stacks.block import Block
from fastflow.stacks.known import BLOCKS


class AccelerateError(RuntimeError):
    """`strict` was asked for, and a known block cannot be replaced, or there is nothing to replace."""


class Entry(NamedTuple):
    """One known block: what became of it."""

    path: str
    """Its name in the model; "" is the model itself. A shared module has the first of its names here."""
    also: tuple[str, ...]
    """Its other names."""
    cls: str
    """Its class, as "module.Class"."""
    stack: str
    """Whose block it is."""
    op: str
    """The operation that computes it now, "" where it was left."""
    backend: str
    """What "auto" runs the operation on, for this block's dtype and device; "" where it was left."""
    reason: str
    """Why that backend, or why the block was left."""
    refused: bool = False
    """Whether it was left because it cannot be replaced, and not because the original is as fast."""

    @property
    def replaced(self) -> bool:
        """Whether the block was replaced."""
        return bool(self.op)


class Report:
    """What `accelerate` did: an `Entry` for each known block, in the order of the model's modules."""

    def __init__(self, entries: list[Entry], replaced: list[nn.Module]) -> None:
        self.entries = entries
        self._replaced = replaced

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def replaced(self) -> list[Entry]:
        """What was replaced."""
        return [entry for entry in self.entries if entry.replaced]

    @property
    def left(self) -> list[Entry]:
        """What is known, but was left alone; `reason` says why."""
        return [entry for entry in self.entries if not entry.replaced]

    @property
    def refused(self) -> list[Entry]:
        """What of that cannot be replaced; the rest is as fast as it is."""
        return [entry for entry in self.entries if entry.refused]

    def revert(self) -> None:
        """Make every block that was replaced the original again, bit for bit. A second call does nothing."""
        for module in self._replaced:
            if isinstance(module, Block):
                blocks.revert(module)
        self._replaced = []

    def __str__(self) -> str:
        if not self.entries:
            return "fastflow.accelerate: no known block"
        head = f"fastflow.accelerate: {len(self.replaced)} of {len(self)} known blocks replaced"
        rows = [("block", "class", "stack", "now", "why")]
        for e in self.entries:
            name = ", ".join(path or "(the model)" for path in (e.path, *e.also))
            rows.append(
                (name, e.cls.rpartition(".")[2], e.stack, f"{e.op} on {e.backend}" if e.replaced else "left", e.reason)
            )
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)) for row in rows]
        return "\n".join([head, *(line.rstrip() for line in lines)])


def revert(module: nn.Module) -> None:
    """Make every replaced block inside `module` the original again, bit for bit: for copies, which have no report."""
    for part in list(module.modules()):
        if isinstance(part, Block):
            blocks.revert(part)


def accelerate(module: nn.Module, *, strict: bool = False) -> Report:
    """Replace, in place, every block of `module` that is known, by one that computes the same with fastflow's kernels.

    Known blocks are recognised by the names of their classes, arguments and parts; their packages are not imported.
    Before a block is replaced, the replacement must give the original's results on a short example.

    Parameters, buffers, hooks and their names stay the same objects: optimizers, `state_dict`, `.to()`, `.half()`, DDP,
    `torch.compile` and deep copies go on working, gradients flow, and weight norm keeps training. A pickled model is
    the original one. In training, blocks with dropout run the original's code, and on a CPU all gated stacks do. Folded
    weights are kept until a parameter changes; writing through `.data` is noticed only at the next change between
    training and evaluation. What is inside a replaced block is read and not called: parts that are exchanged there
    afterwards, or get hooks, need another call, after `revert`. So do `torch.onnx.export` and `torch.jit`, which need
    the original.

    Args:
        module: any model.
        strict: raise, and change nothing, if a known block cannot be replaced, or there is nothing to replace.

    Returns:
        the report: print it, iterate over it, or `revert` with it.

    Raises:
        TypeError: `module` is not a module.
        AccelerateError: with `strict`, naming what is left.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"`module` must be a torch.nn.Module; got {type(module).__name__}")
    names: dict[nn.Module, list[str]] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        names.setdefault(part, []).append(path)
    entries, chosen = [], []
    inside: set[nn.Module] = set()  # of blocks that do the work of their parts
    for part, (path, *also) in names.items():
        if part in inside:
            continue
        known = [block for block in BLOCKS if _knows(block, part)]
        if not known:
            continue
        block, refusal = _fitting(part, known)
        of = blocks.original(part) if isinstance(part, Block) else type(part)
        about = (path, tuple(also), f"{of.__module__}.{of.__qualname__}", block.stack)
        if refusal is not None:
            entries.append(Entry(*about, "", "", refusal, True))
            if isinstance(part, Block) and block.whole:
                inside.update(part.modules())
        elif (gainless := block.no_gain(part)) is not None:
            entries.append(Entry(*about, "", "", gainless))
        else:
            entries.append(Entry(*about, block.op, *block.backend(part)))
            chosen.append((part, block))
            if block.whole:
                inside.update(part.modules())
    report = Report(entries, [part for part, _ in chosen])
    if strict and (not chosen or report.refused):
        found = "known blocks cannot be replaced" if report.refused else "there is nothing to replace"
        lines = [f"\n  {e.path or '(the model)'} ({e.cls}): {e.reason}" for e in report.refused or report.left]
        raise AccelerateError(f"`strict`: {found}{''.join(lines)}")
    for part, block in chosen:
        blocks.replace(part, block)
    return report


def _knows(block: type[Block], module: nn.Module) -> bool:
    """Whether `module` is of this kind; what a look-alike makes `knows` fail on is not."""
    if isinstance(module, torch.jit.ScriptModule):  # whose class cannot be exchanged
        return False
    try:
        return block.knows(module)
    except Exception:
        return False


def _objection(module: nn.Module, block: type[Block]) -> str | None:
    try:
        return block.objection(module)
    except Exception as error:
        return f"it has not the parts that its names promise: {type(error).__name__}: {error}"


def _fitting(module: nn.Module, known: list[type[Block]]) -> tuple[type[Block], str | None]:
    """Return the kind of block that can replace a module; or the first that knows it, and why it cannot."""
    if isinstance(module, Block):
        return blocks.kind(module), "replaced by an earlier call"
    reasons = []
    for block in known:
        reason = _changed_part(module, block) or _objection(module, block) or blocks.disagreement(module, block)
        if reason is None:
            return block, None
        reasons.append(reason)
    return known[0], reasons[0]


def _changed_part(module: nn.Module, block: type[Block]) -> str | None:
    """Return which part whose work `block` would do no longer does what its class says, or None."""
    for name, part in module.named_modules() if block.whole else [("", module)]:
        if isinstance(part, Block):
            return f"`{name}` in it was replaced by an earlier call"
        if "forward" in part.__dict__:  # which calls prefer to any class's
            return f"{f'`{name}` in it' if name else 'it'} has a `forward` of its own, which would not run"
    return None
