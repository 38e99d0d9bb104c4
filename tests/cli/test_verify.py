"""`fastflow verify`: functions and checkpoints, what is past the bound, and what is wrong with an entry point."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import click.testing
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fastflow.stacks import accelerate, compare, parallel_wavegan
from tests.stacks.checks import randomise
from tests.stacks.parallel_wavegan_twin import ParallelWaveGANGenerator, WaveNetResidualBlock
from tests.stacks.vits_twin import NORMS, WN

Run = Callable[..., click.testing.Result]
HERE = "tests.cli.test_verify"
ROW = re.compile(r"^(.+?)  +(\d+)  +(\S+)  +(\S+)  +[\d.]+  +[\d.]+  +[\d.]+(  past the bound)?$", re.MULTILINE)


def wavegan() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = randomise(ParallelWaveGANGenerator(WaveNetResidualBlock, NORMS["hooks"]))
    return model, (torch.randn(1, 1, 24), torch.randn(1, 5, 6))


def bare_block() -> tuple[nn.Module, dict[str, Tensor]]:
    return randomise(WN(8, 3, 1, 2)), {"x": torch.randn(1, 8, 20), "x_mask": torch.ones(1, 1, 20)}


class Speaker(nn.Module):
    """Draws its noise, has another method than forward, and a block that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.flow, self.posterior = (randomise(WN(8, 3, 1, 2)) for _ in range(2))

    def infer(self, frames: int) -> dict[str, Tensor]:
        x = torch.from_numpy(np.random.standard_normal((1, 8, frames))).float()
        return {"audio": self.flow(self.flow(x, 1), 1), "steps": torch.arange(frames)}


def speaker() -> tuple[nn.Module, dict[str, int]]:
    return Speaker(), {"frames": 9}


def spoilt() -> tuple[nn.Module, dict[str, int]]:
    model = Speaker()
    model.posterior.in_layers[0] = nn.Conv1d(8, 16, 3, padding=1, groups=8)
    return model, {"frames": 9}


class Restless(Speaker):
    """Its noise does not depend on any seed."""

    runs = 0

    def forward(self) -> Tensor:
        self.runs += 1
        return self.flow(torch.randn(1, 8, 9, generator=torch.Generator().manual_seed(self.runs)), 1)


def a_dict() -> dict[str, int]:
    return {}


def a_list() -> tuple[nn.Module, list[int]]:
    return bare_block()[0], [1]


def wrong_inputs() -> tuple[nn.Module, Tensor]:
    return bare_block()[0], torch.randn(1, 8, 9)


def failing() -> nn.Module:
    raise KeyError("no such weight")


def halved() -> nn.Module:
    return bare_block()[0].half()


def unknown() -> tuple[nn.Module, Tensor]:
    return nn.Linear(2, 2), torch.randn(1, 2)


def rows(output: str) -> dict[str, tuple[int, float]]:
    return {name.strip(): (int(calls), float(error)) for name, calls, error, _, _ in ROW.findall(output)}


def test_a_function_of_a_model_and_its_inputs(run: Run, tmp_path: Path) -> None:
    picture = tmp_path / "table.png"
    result = run("verify", f"{HERE}:wavegan", "--rounds", 2, "-o", picture)
    assert result.exit_code == 0, result.output
    found = rows(result.output)
    assert list(found) == ["conv_layers", "end to end"]
    assert all(0 < error < 1e-5 for _, error in found.values())
    assert "all within the bound of 0.0001" in result.output
    assert Image.open(picture).width > 1000
    assert "exists" in run("verify", f"{HERE}:wavegan", "-o", picture).output


def test_named_inputs_and_the_model_itself(run: Run) -> None:
    result = run("verify", f"{HERE}:bare_block", "--rounds", 1)
    assert result.exit_code == 0 and list(rows(result.output)) == ["(the model)", "end to end"]


def test_another_method_and_blocks_that_it_does_not_call(run: Run) -> None:
    result = run("verify", f"{HERE}:speaker", "--method", "infer", "--rounds", 1)
    assert result.exit_code == 0, result.output
    assert rows(result.output)["flow"][0] == 2
    assert re.search(r"^posterior +0 +not called$", result.output, re.MULTILINE)


def test_left_blocks_are_named(run: Run) -> None:
    result = run("verify", f"{HERE}:spoilt", "--method", "infer", "--rounds", 1)
    assert result.exit_code == 0 and list(rows(result.output)) == ["flow", "end to end"]
    assert re.search(r"^left: posterior .*8 groups", result.output, re.MULTILINE)


def test_past_the_bound_is_status_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    right = parallel_wavegan.Layers._skips
    monkeypatch.setattr(
        parallel_wavegan.Layers, "_skips", lambda self, *args: (None, right(self, *args)[1] * (1 + 2e-4))
    )
    result = run("verify", f"{HERE}:wavegan", "--rounds", 1)
    assert result.exit_code == 1
    assert result.output.count("past the bound") == 3  # of two rows, and in the verdict
    assert "2 of 2 past the bound of 0.0001" in result.output


def test_a_checkpoint(run: Run, checkpoint: Path) -> None:
    result = run("verify", checkpoint, "--seconds", 0.05, "--rounds", 1)
    assert result.exit_code == 0, result.output
    assert list(rows(result.output)) == ["WN.0", "WN.1", "end to end"]


@pytest.mark.parametrize(
    ("target", "status", "message"),
    [
        ("no_such_package:model", 2, "cannot import no_such_package: ModuleNotFoundError"),
        (f"{HERE}:modell", 2, "has no 'modell'; it has "),
        (f"{HERE}:HERE", 2, "must be a function; got str"),
        (f"{HERE}:a_dict", 2, "must return a torch.nn.Module, or a pair of one and its inputs; got dict"),
        (f"{HERE}:a_list", 2, "a tuple of arguments or a dict of named ones; got list"),
        (f"{HERE}:halved", 2, "must be in float32 or float64, for which the bound is; got torch.float16"),
        (f"{HERE}:failing", 1, "fails: KeyError: 'no such weight'"),
        (f"{HERE}:wrong_inputs", 1, "fails on its inputs: TypeError"),
        (f"{HERE}:unknown", 1, "nothing is replaced"),
        ("no_such_file.pt", 2, "no_such_file.pt"),
    ],
)
def test_what_is_wrong_is_said(run: Run, target: str, status: int, message: str) -> None:
    result = run("verify", target, "--rounds", 1)
    assert result.exit_code == status and message in result.output


def test_a_method_that_is_not_there(run: Run) -> None:
    result = run("verify", f"{HERE}:bare_block", "--method", "sing")
    assert result.exit_code == 2 and "has no method 'sing'" in result.output


def test_noise_of_its_own_is_noticed() -> None:
    model = Restless()
    report = accelerate(model)
    methods = compare.replaced_methods(model, report)
    with pytest.raises(compare.CompareError, match="differs from run to run"):
        compare.compare(model, methods, compare.between_original_and_replaced(model, report), 1)


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(compare.CompareError, match="no floating-point tensor"):
        compare.compare(lambda: None, {}, lambda fast: nullcontext(), 1)
