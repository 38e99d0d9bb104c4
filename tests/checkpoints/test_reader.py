"""torch.save's two file formats: what is read, and what happens when bytes are missing or wrong."""

from __future__ import annotations

import io
import pickle
import random
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import fastflow
from fastflow.checkpoints import CheckpointError, reader
from fastflow.checkpoints.tensors import StoredTensor
from tests import golden
from tests.checkpoints.conftest import Save, State


def load_all(path: Path) -> Any:
    with path.open("rb") as file:
        tree = reader.read(file)
        return {key: value.load() if isinstance(value, StoredTensor) else value for key, value in tree.items()}


DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.complex128,
]  # fmt: skip


def test_every_dtype_shape_and_layout(save_torch: Save) -> None:
    base = torch.arange(24).reshape(2, 3, 4)
    saved = {str(dtype): base.to(dtype) for dtype in DTYPES}
    saved |= {
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(3, 0),
        "transposed": base.float().transpose(0, 2),
        "slice": base.float()[:, 1:, ::2],
        "parameter": torch.nn.Parameter(base.float()),
        "shared": saved["torch.float32"][1],
    }
    loaded = load_all(save_torch(saved))
    assert loaded.keys() == saved.keys()
    for key, tensor in saved.items():
        assert loaded[key].dtype == tensor.dtype
        assert torch.equal(loaded[key], tensor), key
    loaded["torch.int64"] += 1  # what is read is ordinary memory


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol(protocol: int, tiny: State, tmp_path: Path) -> None:
    torch.save(tiny, tmp_path / "m.pt", pickle_protocol=protocol)
    loaded = load_all(tmp_path / "m.pt")
    assert all(torch.equal(loaded[key], value) for key, value in tiny.items())


def test_cuda_storages_come_to_the_cpu(tmp_path: Path, tiny: State) -> None:
    """The bytes of a file say "cuda:0" where this one says "cpu"; rewriting them needs no GPU."""
    path = tmp_path / "m.pt"
    torch.save(tiny, path)
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    location = b"X\x03\x00\x00\x00cpu"
    pickled = next(name for name in contents if name.endswith("data.pkl"))
    assert location in contents[pickled]
    contents[pickled] = contents[pickled].replace(location, b"X\x06\x00\x00\x00cuda:0")
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    loaded = load_all(path)
    assert all(torch.equal(loaded[key], value) for key, value in tiny.items())


def rewrite(path: Path, change: Any, compression: int = zipfile.ZIP_STORED) -> Path:
    """The zip file with each entry (name without folder, data) replaced by `change(name, data)`; None leaves
    it out."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    changed = path.with_name("changed.pt")
    with zipfile.ZipFile(changed, "w", compression) as archive:
        for name, data in contents.items():
            new = change(name.partition("/")[2], data)
            if new is not None:
                archive.writestr(name, new)
    return changed


def test_big_endian_storages(tmp_path: Path) -> None:
    values = {"f": torch.arange(6).float(), "h": torch.arange(6).half(), "l": torch.arange(6), "b": torch.ones(2) > 0}
    torch.save(values, tmp_path / "m.pt")
    sizes = iter((4, 2, 8, 1))

    def swap(name: str, data: bytes) -> bytes:
        if name == "byteorder":
            return b"big"
        if not name.startswith("data/"):
            return data
        size = next(sizes)
        return b"".join(data[i : i + size][::-1] for i in range(0, len(data), size))

    loaded = load_all(rewrite(tmp_path / "m.pt", swap))
    assert all(torch.equal(loaded[key], value) for key, value in values.items())


def test_zip_entries_that_are_missing_wrong_or_compressed(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(1000.0), "b": torch.zeros(3000)}, tmp_path / "m.pt")

    def message(change: Any, compression: int = zipfile.ZIP_STORED) -> str:
        with pytest.raises(CheckpointError) as caught:
            load_all(rewrite(tmp_path / "m.pt", change, compression))
        return str(caught.value)

    assert "`m/data/0` is missing" in message(lambda name, data: None if name == "data/0" else data)
    assert "0 entries called data.pkl" in message(lambda name, data: None if name == "data.pkl" else data)
    assert "has 3999 bytes; its pickle says 4000" in message(lambda name, data: data[1:] if name == "data/0" else data)
    assert "is compressed" in message(lambda name, data: data, zipfile.ZIP_DEFLATED)
    assert "byte order is `middle`" in message(lambda name, data: b"middle" if name == "byteorder" else data)


def test_torchscript_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.ones(1)), tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="TorchScript program, which is code"):
        fastflow.load(tmp_path / "m.pt")


def forged(path: Path, offset: str, size: str, stride: str, numel: int = 4) -> Path:
    """A zip file of one tensor with 4 floats that is described by the pickled values given."""
    data = (
        "ctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\n"
        f"I{numel}\ntQ{offset}{size}{stride}I00\nNtR."
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"}S'a'\n" + data.encode()[:-1] + b"s.")
        archive.writestr("m/data/0", bytes(16))
    return path


def numbers(*values: int) -> str:
    return "(" + "".join(f"I{value}\n" for value in values) + "t"


@pytest.mark.parametrize(
    ("offset", "size", "stride", "message"),
    [
        ("I1\n", numbers(4), numbers(1), "reaches element 5 of a storage with 4"),
        ("I0\n", numbers(2, 2), numbers(4, 1), "reaches element 6"),
        ("I5\n", numbers(0), numbers(1), "reaches element 5"),
        ("I-1\n", numbers(1), numbers(1), "whole numbers >= 0"),
        ("I0\n", numbers(-1), numbers(1), "whole numbers >= 0"),
        ("I3\n", numbers(2), numbers(-1), "whole numbers >= 0"),
        ("I0\n", numbers(2), numbers(1, 1), "1 sizes and 2 strides"),
        ("I0\n", numbers(10**12), numbers(0), "1000000000000 elements in a storage with 4"),
        ("I0\n", numbers(0, 2**63), numbers(1, 1), "whole numbers >= 0"),
        ("I0\n", numbers(*[1] * 65), numbers(*[1] * 65), "65 dimensions"),
        ("F0.5\n", numbers(1), numbers(1), "whole numbers >= 0"),
        ("I0\n", "S'ab'\n", numbers(1), "a list is needed where a str is"),
        ("I01\n", numbers(1), numbers(1), "whole numbers >= 0"),  # True
    ],
)
def test_tensors_outside_their_storage(offset: str, size: str, stride: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_all(forged(tmp_path / "m.pt", offset, size, stride))


def test_storages_of_impossible_size(tmp_path: Path) -> None:
    for numel in (-1, 10**15, 10**30):
        with pytest.raises(CheckpointError, match="cut off or damaged: a storage of more than its"):
            load_all(forged(tmp_path / "m.pt", "I0\n", numbers(1), numbers(1), numel))
    with pytest.raises(CheckpointError, match="has 16 bytes; its pickle says 20"):
        load_all(forged(tmp_path / "m.pt", "I0\n", numbers(1), numbers(1), 5))


def test_many_tensors_on_one_storage_take_no_more_memory_than_the_file(tiny: State, tmp_path: Path) -> None:
    """Every tensor a view of the same bytes: each is inside its storage, together they are larger than the
    file."""
    pool = torch.randn(8 * 8 * 1024)
    torch.save({key: pool[: value.numel()].view(value.shape) for key, value in tiny.items()}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="its tensors overlap"):
        fastflow.load(tmp_path / "m.pt")


def test_nothing_but_the_wanted_storages_is_read(tiny: State, tmp_path: Path) -> None:
    """A storage of the optimizer with a wrong checksum is not noticed, one of the model's is."""
    torch.save({"model": tiny, "optimizer": {"exp_avg": torch.full((64,), 1.25)}}, tmp_path / "m.pt")
    data = (tmp_path / "m.pt").read_bytes()
    average = torch.full((64,), 1.25).numpy().tobytes()
    assert data.count(average) == 1
    (tmp_path / "m.pt").write_bytes(data.replace(average, b"\x00" * len(average)))
    fastflow.load(tmp_path / "m.pt")
    weight = tiny["upsample.bias"].numpy().tobytes()
    (tmp_path / "m.pt").write_bytes(data.replace(weight, b"\x00" * len(weight)))
    with pytest.raises(CheckpointError, match=r"`data/1` is damaged or cut off \(Bad CRC-32"):
        fastflow.load(tmp_path / "m.pt")


def small_checkpoint() -> State:
    """A complete WaveGlow of 50 kB, so that many damaged copies of it can be tried."""
    wn = {"n_layers": 1, "n_channels": 2, "kernel_size": 1}
    model = fastflow.models.WaveGlow(2, 2, 4, 4, 2, wn, hop_length=8, win_length=32)
    return {key: torch.ones(value.shape) for key, value in model.state_dict().items()}


@pytest.mark.parametrize("legacy", [False, True])
def test_cut_off_anywhere(legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"state_dict": small_checkpoint()}, path, _use_new_zipfile_serialization=not legacy)
    data = path.read_bytes()
    fastflow.load(path)
    for length in [*range(0, 300), *range(300, len(data), 97), *range(len(data) - 60, len(data))]:
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="cannot load"):
            fastflow.load(path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "module", "legacy module", "safetensors", "nemo"])
def test_random_damage_raises_nothing_but_checkpoint_error(kind: str, tmp_path: Path) -> None:
    """Flipped, inserted, deleted and copied bytes. A change in a weight may go unnoticed; nothing else may
    happen."""
    path = tmp_path / "m.pt"
    if kind.endswith("module"):
        name = "waveglow_tiny_nvidia" + ("_legacy" if kind.startswith("legacy") else "")
        data = bytearray((golden.GOLDEN / f"{name}.pt").read_bytes())
    else:
        data = bytearray(undamaged(kind, path))
    # Half of the damage goes to the ends, where the descriptions are; the rest anywhere.
    ends = 40_000 if kind.endswith("module") else len(data)
    draw = random.Random(0)
    refused = 0
    rounds = 40 if kind.endswith("module") else 150
    for _ in range(rounds):
        damaged = bytearray(data)
        for _ in range(draw.choice((1, 1, 2, 8))):
            at = draw.choice((draw.randrange(min(ends, len(data))), -1 - draw.randrange(min(ends, len(data)))))
            match draw.randrange(4):
                case 0:
                    damaged[at] ^= 1 << draw.randrange(8)
                case 1:
                    damaged[at] = draw.randrange(256)
                case 2:
                    del damaged[at : at + draw.randrange(1, 20)]
                case _:
                    source = draw.randrange(len(data))
                    damaged[at:at] = data[source : source + draw.randrange(1, 20)]
        path.write_bytes(damaged)
        try:
            fastflow.load(path)
        except CheckpointError:
            refused += 1
    assert refused > rounds // 4


def undamaged(kind: str, path: Path) -> bytes:
    state = small_checkpoint()
    if kind == "safetensors":
        import safetensors.torch

        safetensors.torch.save_file(state, path)
        return path.read_bytes()
    if kind == "nemo":
        import tarfile

        torch.save({f"waveglow.{key}": value for key, value in state.items()}, path)
        inner = path.read_bytes()
        with tarfile.open(path, "w") as tar:
            member = tarfile.TarInfo("./model_weights.ckpt")
            member.size = len(inner)
            tar.addfile(member, io.BytesIO(inner))
        return path.read_bytes()
    torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    return path.read_bytes()
