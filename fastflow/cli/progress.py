"""A progress bar that moves within a file too: one long file is as much work as many short ones."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastflow.models import Vocoder

    T = TypeVar("T")

DELAY = 1.0  # seconds of work before the bar appears
FORMAT = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


def progress(items: Sequence[T], model: Vocoder) -> Iterator[T]:
    """Yield the items; on standard error, if it is a terminal, show how many networks of ``model`` have run."""
    from tqdm import tqdm

    each = len(model.networks())
    total = len(items) * each
    with (
        tqdm(
            total=total, bar_format=FORMAT, delay=DELAY, file=sys.stderr, disable=not on_terminal(), leave=False
        ) as bar,
        _after_each_network(model, bar.update),
    ):
        for number, item in enumerate(items):
            bar.set_postfix_str(f"file {number + 1} of {len(items)}", refresh=False)
            bar.update(number * each - bar.n)  # a file that failed has not run all of them
            yield item


def on_terminal() -> bool:
    return sys.stderr.isatty()


@contextmanager
def _after_each_network(model: Vocoder, act: Callable[[int], object]) -> Iterator[None]:
    def hook(*_: object) -> None:  # what a hook returns would replace the module's output
        act(1)

    hooks = [net.register_forward_hook(hook) for net in model.networks()]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
