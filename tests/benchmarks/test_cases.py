"""The registry of sizes is complete, its arguments fit, and its arithmetic is that of the published models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import roofline
from fastflow.bench import cases, models
from fastflow.bench.cases import CASES, Block, Maker
from fastflow.bench.published import PublishedHiFiGAN
from fastflow.ops import registry
from tests.ops.cases import tensors

ROOT = Path(__file__).parents[2]


def test_every_operation_has_a_main_case_and_names_are_unique() -> None:
    assert {case.op for case in CASES if case.main} == {*registry.SCHEMAS, *registry.BACKWARD_SCHEMAS}
    assert len({(case.op, case.name) for case in CASES}) == len(CASES)


SHAPES = [c for c in CASES if "10 s" in c.name and not c.name.endswith(("batch 8", "batch 32"))]  # the rest differ in T


@pytest.mark.parametrize("case", SHAPES, ids=lambda c: f"{c.op} {c.name}")
def test_arguments_fit_the_operation(case: cases.Case) -> None:
    results = registry._implementations["reference"][case.op](*case.arguments(torch.bfloat16, "meta"))
    assert all(t.device.type == "meta" for t in tensors(results))


def test_bytes_are_those_of_the_arguments_and_results() -> None:
    """Counted from the tensors themselves, up to small ones: masks, and biases that a gradient does not read."""
    for case in SHAPES:
        arguments = case.arguments(torch.bfloat16, "meta")
        results = registry._implementations["reference"][case.op](*arguments)
        count = sum(t.numel() for t in tensors([*arguments, results]))
        assert case.elements == pytest.approx(count, rel=0.03), (case.op, case.name)


def test_the_block_counts_what_pytorch_counts() -> None:
    block = Block("toy", 8, 3, 3, (1, 2, 4), 6)
    args = block.arguments(Maker(torch.float32, "cpu"), 2, 50)
    with FlopCounterMode(display=False) as counter:
        registry._implementations["reference"]["wn"](*args)
    assert counter.get_total_flops() == sum(block.layer_flops(2, 50, i) for i in range(3))


def test_waveglow_costs_what_is_published() -> None:
    """10.13 million multiply-accumulates per sample: 447 GFLOP per second of audio."""
    case = models.infer_case(models.waveglow(tiny=False), "", 1, 861)
    assert case.flops / (861 * 256) * 22050 == pytest.approx(447e9, rel=0.005)


def test_hifi_gan_has_the_published_weights_and_length() -> None:
    """13.92 million for the generator of V1."""
    gan = PublishedHiFiGAN()
    assert sum(p.numel() for p in gan.parameters()) == 13_926_017
    small = PublishedHiFiGAN(4, 16).double()
    audio = small(torch.randn(2, 4, 5).double())
    assert audio.shape == (2, 5 * 256) and 1e-3 < float(audio.std()) < 1
    with FlopCounterMode(display=False) as counter:
        small(torch.randn(2, 4, 5).double())
    assert counter.get_total_flops() == pytest.approx(small.flops(2, 5), rel=0.02)  # padding that is cut off


def test_the_limits_in_the_readme_are_up_to_date() -> None:
    readme = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert roofline.generated(readme) == readme, "python -m benchmarks.roofline --write benchmarks/README.md"


def test_the_limit_is_the_larger_of_two() -> None:
    device = roofline.Device("toy", half=100.0, float32=10.0, bandwidth=1.0, source="")
    case = cases.Case("toy", "wn", lambda m: (), flops=1e12, elements=1e9)
    assert roofline.limit(case, torch.bfloat16, device) == (10000.0, "arithmetic")
    assert roofline.limit(case, torch.float32, device) == (100000.0, "arithmetic")
    assert roofline.limit(replace(case, flops=1e9), torch.bfloat16, device) == (2000.0, "memory")
    assert roofline.limit(replace(case, matrix=False), torch.bfloat16, device) == (100000.0, "arithmetic")
