"""Which configuration a launch uses, what it says about it, and the search for a better one. None of it needs a GPU."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastflow.ops import tuning

H200 = tuning.Target("sm_90", tuning.SHARED_MEMORY["sm_90"], "nvidia-h200")


def entry(sizes: dict[str, int], **config: int) -> dict[str, Any]:
    return {"sizes": sizes, "config": {"BLOCK": 32, "num_warps": 4, "num_stages": 2, **config}}


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Returns a function that writes one table of a folder of the test's own."""

    def forget() -> None:
        for cached in (tuning.table, tuning.table_names, tuning.preference):
            cached.cache_clear()
        tuning._chosen.clear()
        tuning._seen.clear()
        tuning._logged.clear()

    def write(name: str, **kernels: Any) -> None:
        (tmp_path / f"{name}.json").write_text(json.dumps(kernels))
        forget()

    monkeypatch.setattr(tuning, "TABLES", tmp_path)
    forget()
    yield write
    monkeypatch.undo()
    forget()


def test_the_nearest_sizes_are_chosen(tables: Any) -> None:
    tables("sm_90", toy={"half": [entry({"C": 64}, BLOCK=1), entry({"C": 256}, BLOCK=2), entry({"C": 512}, BLOCK=3)]})
    choices = {c: tuning.choose("toy", "half", {"C": c}, H200) for c in (1, 100, 192, 256, 300, 400, 4096)}
    assert [choice.config["BLOCK"] for choice in choices.values()] == [1, 1, 2, 2, 2, 3, 3]
    assert [c for c, choice in choices.items() if choice.exact] == [256]


def test_lengths_count_by_powers_of_two_and_less_than_channels(tables: Any) -> None:
    tables("sm_90", toy={"half": [entry({"C": 64, "T": 1 << 20}, BLOCK=1), entry({"C": 256, "T": 1000}, BLOCK=2)]})
    for length in (513, 1000, 1024):
        assert tuning.choose("toy", "half", {"C": 256, "T": length}, H200).exact
    assert not tuning.choose("toy", "half", {"C": 256, "T": 1025}, H200).exact
    assert tuning.choose("toy", "half", {"C": 256, "T": 8000}, H200).config["BLOCK"] == 2
    assert tuning.choose("toy", "half", {"C": 100, "T": 1 << 20}, H200).config["BLOCK"] == 1


def test_of_equally_near_entries_the_more_specific_one(tables: Any) -> None:
    tables("sm_90", toy={"half": [entry({}, BLOCK=1), entry({"C": 64}, BLOCK=2)]})
    assert tuning.choose("toy", "half", {"C": 64}, H200).config["BLOCK"] == 2
    assert tuning.choose("toy", "half", {"C": 65}, H200).config["BLOCK"] == 1


def test_a_devices_own_table_goes_before_its_capabilitys(tables: Any) -> None:
    tables("sm_90", toy={"half": [entry({"C": 64}, BLOCK=1), entry({"C": 256}, BLOCK=2)]})
    tables("nvidia-h200", toy={"half": [entry({"C": 64}, BLOCK=3)]})
    assert tuning.choose("toy", "half", {"C": 64}, H200).config["BLOCK"] == 3
    assert tuning.choose("toy", "half", {"C": 256}, H200).config["BLOCK"] == 2
    assert tuning.choose("toy", "half", {"C": 64}, H200._replace(model="nvidia-h100")).config["BLOCK"] == 1


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("sm_80", ["sm_80", "sm_89"]),
        ("sm_86", ["sm_89"]),
        ("sm_87", ["sm_80", "sm_89"]),
        ("sm_89", ["sm_89"]),
        ("sm_90", ["sm_90", "sm_89", "sm_80", "sm_100"]),
        ("sm_100", ["sm_100", "sm_90", "sm_89", "sm_80"]),
        ("sm_103", ["sm_100", "sm_90", "sm_89", "sm_80"]),
        ("sm_120", ["sm_89"]),
        ("gfx942", ["gfx942", "gfx"]),
        ("gfx1100", ["gfx"]),
        ("interpreter", ["interpreter"]),
    ],
)
def test_no_table_asks_for_more_shared_memory_than_there_is(tables: Any, arch: str, expected: list[str]) -> None:
    for name in ("sm_80", "sm_89", "sm_90", "sm_100", "gfx", "gfx942", "interpreter"):
        tables(name)
    target = tuning.Target(arch, tuning.SHARED_MEMORY.get(arch, 65536))
    assert [name for group in tuning.preference(target) for name in group] == expected


def test_an_unknown_kernel_is_looked_for_in_the_next_table_and_else_an_error(tables: Any) -> None:
    tables("sm_90", other={"half": [entry({})]})
    tables("sm_80", toy={"half": [entry({})]})
    assert tuning.choose("toy", "half", {"C": 1}, H200).tables == ("sm_80",)
    assert not tuning.choose("toy", "half", {"C": 1}, H200).exact
    with pytest.raises(LookupError, match=r"fits sm_90 has an entry for kernel 'none', kind 'half'"):
        tuning.choose("none", "half", {}, H200)


def test_tf32_takes_entries_of_its_own_or_those_of_float32(tables: Any) -> None:
    tables("sm_90", toy={"float32": [entry({}, BLOCK=1)]}, both={"float32": [entry({}, BLOCK=1)], "tf32": [entry({})]})
    assert tuning.kind_of(torch.float32, "tf32") == "tf32"
    assert tuning.kind_of(torch.float32, "ieee") == "float32"
    assert tuning.kind_of(torch.bfloat16, "ieee") == "half"
    assert tuning.choose("toy", "tf32", {}, H200).config["BLOCK"] == 1
    assert tuning.choose("both", "tf32", {}, H200).config["BLOCK"] == 32


def test_one_log_line_where_there_is_no_exact_entry(
    tables: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tables("sm_90", toy={"half": [entry({"C": 256})]})
    monkeypatch.setattr(tuning, "target_of", lambda device: H200)
    device = torch.device("cuda", 0)
    with caplog.at_level(logging.INFO, "fastflow"):
        for length in (100, 1000, 10000):  # not among the entry's sizes
            for _ in range(2):
                tuning.configuration("toy", device, torch.float16, {"C": 256, "T": length})
        assert not caplog.records
        for length in (100, 1000):
            tuning.configuration("toy", device, torch.float16, {"C": 192, "T": length})
    (record,) = caplog.records
    assert record.name == "fastflow" and record.levelno == logging.INFO
    assert record.getMessage() == (
        "no tuned entry for kernel 'toy' (half) with C 192 on nvidia-h200: using that of sm_90 for C 256; "
        "FASTFLOW_AUTOTUNE=1 searches for a better one"
    )


def test_the_tables_of_this_version_are_well_formed() -> None:
    for path in sorted(tuning.TABLES.glob("*.json")):
        for kernel, kinds in json.loads(path.read_text(encoding="utf-8")).items():
            assert "float32" in kinds and set(kinds) <= {"half", "float32", "tf32"}, (path.name, kernel)
            for item in (item for entries in kinds.values() for item in entries):
                assert set(item) == {"sizes", "config"}, (path.name, kernel)
                assert {"num_warps", "num_stages"} <= set(item["config"]), (path.name, kernel)
                assert all(isinstance(v, int) for part in item.values() for v in part.values()), (path.name, kernel)


@pytest.mark.parametrize("arch", ["interpreter", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942"])
def test_every_kernel_has_an_entry_that_fits_every_device(arch: str) -> None:
    tables = [json.loads(path.read_text(encoding="utf-8")) for path in tuning.TABLES.glob("*.json")]
    target = tuning.Target(arch, tuning.SHARED_MEMORY.get(arch, 65536))
    for kernel, kind in {(kernel, kind) for table in tables for kernel, kinds in table.items() for kind in kinds}:
        assert any(tuning._entries(kernel, kind, group) for group in tuning.preference(target)), (kernel, kind)


# Launching and searching, with a stand-in for a kernel


class Kernel:
    """Adds 1 to its first argument, in place, as some kernels accumulate; refuses blocks that are too large."""

    __name__ = "toy_kernel"

    def __init__(self, largest: int = 1 << 20) -> None:
        self.largest = largest
        self.launches: list[dict[str, Any]] = []
        self.grids: list[tuple[int, ...]] = []
        self.args: tuple[Any, ...] = ()

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def run(x: torch.Tensor, *args: Any, **options: Any) -> None:
            if options["BLOCK"] * options["num_stages"] > self.largest:
                from triton.runtime.errors import OutOfResources

                raise OutOfResources(options["BLOCK"] * options["num_stages"], self.largest, "shared memory")
            self.launches.append(options)
            self.grids.append(grid)
            self.args = args
            x += 1

        return run


def launch(kernel: Kernel, x: torch.Tensor, *args: Any, **options: Any) -> None:
    tuning.launch(kernel, lambda config: (-(-x.numel() // config["BLOCK"]),), x, *args, sizes={"C": 7}, **options)


needs_triton = pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")


def test_a_launch_takes_the_tables_configuration_and_looks_it_up_once(
    tables: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables("interpreter", toy={"float32": [entry({}, BLOCK=16)]})
    kernel, x = Kernel(), torch.zeros(100)
    launch(kernel, x, PRECISION="ieee")
    monkeypatch.setattr(tuning, "choose", None)  # not called again
    launch(kernel, x, PRECISION="ieee")
    assert (
        kernel.launches
        == [{"PRECISION": "ieee", "BLOCK": 16, "num_warps": 4, "num_stages": 2, **tuning.COMPILER_OPTIONS}] * 2
    )
    assert kernel.grids == [(7,)] * 2
    assert (x == 2).all()


def test_what_launches_remember_is_bounded(tables: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tables("interpreter", toy={"float32": [entry({})]})
    monkeypatch.setattr(tuning, "_SEEN", 10)
    kernel, x = Kernel(), torch.zeros(3)
    for length in range(1, 100):
        tuning.launch(kernel, lambda config: (1,), x, sizes={"C": 7, "T": length})
    assert len(tuning._seen) <= 10 and len(tuning._chosen) == 8
    assert len(kernel.launches) == 99


def test_a_workspace_is_made_for_the_configuration(tables: Any) -> None:
    tables("interpreter", toy={"float32": [entry({}, BLOCK=16)]})
    kernel = Kernel()
    launch(kernel, torch.zeros(100), 3, tuning.Workspace(lambda config: torch.zeros(config["BLOCK"])))
    assert kernel.args[0] == 3
    assert kernel.args[1].shape == (16,)


@needs_triton
def test_what_does_not_fit_runs_with_smaller_blocks(tables: Any, caplog: pytest.LogCaptureFixture) -> None:
    tables("interpreter", toy={"float32": [entry({}, BLOCK=128, num_stages=4)]})
    kernel, x = Kernel(largest=64), torch.zeros(1)
    for _ in range(2):
        launch(kernel, x)
    assert [(c["BLOCK"], c["num_stages"]) for c in kernel.launches] == [(64, 1)] * 2
    (record,) = caplog.records
    assert "out of resource" in record.getMessage() and "'BLOCK': 64" in record.getMessage()
    assert x.item() == 2
    from triton.runtime.errors import OutOfResources

    tuning._chosen.clear()
    tuning._seen.clear()
    with pytest.raises(OutOfResources):
        launch(Kernel(largest=8), x)
    assert x.item() == 2


@pytest.fixture
def search(tables: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Turns the search on, with a timer to which BLOCK 256 and 8 warps are best; returns what was timed."""
    timed: list[dict[str, Any]] = []
    tables("interpreter", toy={"float32": [entry({}, BLOCK=32)]})
    tables("sm_80", toy={"float32": [entry({}, BLOCK=128)], "half": [entry({}, BLOCK=4096)]})

    def timer(run: Any) -> float:
        run()
        run()
        config = kernels[-1].launches[-1]
        timed.append(config)
        return abs(config["BLOCK"] - 256) + abs(config["num_warps"] - 8) + config["num_stages"] / 10

    kernels: list[Kernel] = []
    original = Kernel.__init__

    def remember(self: Kernel, **options: int) -> None:
        original(self, **options)
        kernels.append(self)

    monkeypatch.setattr(Kernel, "__init__", remember)
    monkeypatch.setattr(tuning, "timer", timer)
    monkeypatch.setenv("FASTFLOW_AUTOTUNE", "1")
    return timed


def test_the_search_finds_the_fastest_and_prints_it(
    search: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    kernel = Kernel()
    whole = torch.arange(12.0)
    x, later = whole[:5], whole[3:8]
    tuning.launch(kernel, lambda config: (1,), x, sizes={"C": 7, "T": 1000}, OTHER=later)
    best = {"BLOCK": 256, "num_warps": 8, "num_stages": 2}
    assert len(search) > 5
    assert {k: v for k, v in kernel.launches[-1].items() if k in best} == best
    assert torch.equal(whole, torch.arange(12.0) + torch.tensor([1.0] * 5 + [0.0] * 7)), (
        "exactly one launch has counted"
    )
    said = capsys.readouterr().err
    assert f'For "toy", "float32" in {tmp_path / "interpreter.json"}' in said
    assert json.loads(said.splitlines()[-1]) == {"sizes": {"C": 7, "T": 1024}, "config": best}
    count = len(search)
    for length in (600, 1024):  # the same bucket
        tuning.launch(kernel, lambda config: (1,), x, sizes={"C": 7, "T": length})
    assert len(search) == count
    assert {k: v for k, v in kernel.launches[-1].items() if k in best} == best
    assert tuning.configuration("toy", x.device, x.dtype, {"C": 7, "T": 700}) == best


def test_the_search_skips_what_fails_and_raises_where_all_does(search: list[dict[str, Any]]) -> None:
    kernel, x = Kernel(largest=128), torch.zeros(3)
    launch(kernel, x)
    assert kernel.launches[-1]["BLOCK"] * kernel.launches[-1]["num_stages"] <= 128
    assert x.tolist() == [1, 1, 1]
    tuning._chosen.clear()
    tuning._seen.clear()
    with pytest.raises(Exception, match="out of resource"):
        launch(Kernel(largest=1), x)
    assert x.tolist() == [1, 1, 1]


def test_expanded_and_empty_arguments_are_kept_too(search: list[dict[str, Any]]) -> None:
    x = torch.zeros(3)
    launch(Kernel(), x, torch.ones(1).expand(5), torch.zeros(0), (torch.ones(2), None))
    assert x.tolist() == [1, 1, 1]


@pytest.mark.parametrize("value", ["0", ""])
def test_nothing_is_searched_unless_asked(
    search: list[dict[str, Any]], value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTFLOW_AUTOTUNE", value)
    kernel = Kernel()
    launch(kernel, torch.zeros(3))
    assert not search and len(kernel.launches) == 1


def test_nothing_is_searched_on_the_cpu_by_the_real_timer(tables: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tables("interpreter", toy={"float32": [entry({})]})
    monkeypatch.setenv("FASTFLOW_AUTOTUNE", "1")
    kernel = Kernel()
    launch(kernel, torch.zeros(3))
    assert len(kernel.launches) == 1


class FakeCuda:
    """A tensor's stand-in on a device that is not there."""

    dtype = torch.float32
    device = torch.device("cuda", 0)


def test_a_captured_launch_searches_nothing_and_leaves_it_to_the_next(
    search: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    capturing = [True]
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    monkeypatch.setattr(tuning, "target_of", lambda device: H200)

    class NoWrite(Kernel):
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda x, **options: self.launches.append(options)

    kernel = NoWrite()
    for _ in range(2):
        tuning.launch(kernel, lambda config: (1,), FakeCuda(), sizes={"C": 1})
    assert not search and len(kernel.launches) == 2
    capturing[0] = False
    tuning.launch(kernel, lambda config: (1,), FakeCuda(), sizes={"C": 1})
    assert search and kernel.launches[-1]["BLOCK"] == 256


def test_a_kernel_runs_on_its_tensors_device(tables: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tables("sm_90", toy={"float32": [entry({})]})
    devices: list[int] = [1]
    entered: list[torch.device] = []

    class Guard:
        def __init__(self, device: torch.device) -> None:
            entered.append(device)

        def __enter__(self) -> None:
            devices.append(0)

        def __exit__(self, *_: Any) -> None:
            devices.pop()

    monkeypatch.setattr(torch.cuda, "current_device", lambda: devices[-1])
    monkeypatch.setattr(torch.cuda, "device", Guard)
    monkeypatch.setattr(tuning, "target_of", lambda device: H200)
    seen: list[int] = []

    class Where(Kernel):
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda x, **options: seen.append(devices[-1])

    tuning.launch(Where(), lambda config: (1,), FakeCuda(), sizes={"C": 1})
    devices.append(0)
    tuning.launch(Where(), lambda config: (1,), FakeCuda(), sizes={"C": 1})
    assert seen == [0, 0]
    assert entered == [torch.device("cuda", 0)], "no guard where the device is current"


# Precision

PRECISION = """
import sys, warnings
warnings.simplefilter("error")
import torch
from fastflow.ops import tuning
for line in sys.stdin.read().splitlines():
    exec(line)
    print(tuning.precision(torch.float32), tuning.precision(torch.bfloat16))
"""


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["pass"], ["ieee"]),
        (["m.allow_tf32 = True", "m.allow_tf32 = False"], ["tf32", "ieee"]),
        (["m.fp32_precision = 'tf32'", "m.fp32_precision = 'ieee'"], ["tf32", "ieee"]),
        (["b.fp32_precision = 'tf32'", "m.fp32_precision = 'ieee'"], ["tf32", "ieee"]),
        (["f('high')", "f('highest')"], ["tf32", "ieee"]),
        (["m.allow_tf32 = True", "m.fp32_precision = 'ieee'", "f('high')"], ["tf32", "ieee", "tf32"]),
    ],
)
def test_tf32_only_where_torch_allows_it(lines: list[str], expected: list[str]) -> None:
    """In a process of its own: once both of PyTorch's interfaces are used, its own getters raise for good."""
    setup = "b = torch.backends; m = b.cuda.matmul; f = torch.set_float32_matmul_precision; "
    done = subprocess.run(
        [sys.executable, "-c", PRECISION],
        input="\n".join(setup + line for line in lines),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == [f"{word} ieee" for word in expected]


def test_channels_last_copies_only_what_is_not_so_already() -> None:
    dense = torch.randn(2, 16, 10).transpose(1, 2).contiguous().transpose(1, 2)  # [2, 16, 10] with channels last
    assert tuning.aligned_channels_last(dense).data_ptr() == dense.data_ptr()
    for x in (torch.randn(2, 16, 10), dense[:, 3:], torch.randn(2, 10, 15).transpose(1, 2)):
        y = tuning.aligned_channels_last(x)
        assert torch.equal(y, x.transpose(1, 2))
        assert y.stride(2) == 1 and y.data_ptr() % 16 == 0
