"""Pickles that want to run something: each is refused by name, and nothing happens."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastflow
from fastflow.checkpoints import CheckpointError, pickles
from fastflow.checkpoints.pickles import MAX_INSTRUCTIONS, Global, Recorded, evaluate


def value_of(data: bytes) -> Any:
    def none(identifier: Any) -> Any:
        raise AssertionError("no persistent ids here")

    return evaluate(io.BytesIO(data), none)


def as_zip(path: Path, data: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")


def as_legacy(path: Path, data: bytes) -> None:
    header = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    keys: list[str] = []
    path.write_bytes(b"".join(pickle.dumps(part, 2) for part in header) + data + pickle.dumps(keys, 2))


def as_bare(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def as_header(path: Path, data: bytes) -> None:
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + data)


def as_nemo(path: Path, data: bytes) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("archive/data.pkl", data)
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("model_weights.ckpt")
        member.size = inner.tell()
        inner.seek(0)
        tar.addfile(member, inner)


CONTAINERS = [as_zip, as_legacy, as_bare, as_header, as_nemo]


class Call:
    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> Any:
        return self.function, self.args


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def opcode_attacks(target: str) -> dict[str, tuple[bytes, str]]:
    """Pickles written by hand: instructions that pickle.dumps does not emit, and names it would not write."""
    quoted = target.encode()
    touch = b"(S'touch " + quoted + b"'\n"
    return {
        "GLOBAL and REDUCE": (b"cposix\nsystem\n" + touch + b"tR.", "posix.system"),
        "INST": (touch + b"iposix\nsystem\n.", "posix.system"),
        "OBJ": (b"(cposix\nsystem\nS'touch " + quoted + b"'\no.", "posix.system"),
        "NEWOBJ": (b"\x80\x02cposix\nsystem\n" + touch + b"t\x81.", "posix.system"),
        "NEWOBJ_EX": (b"\x80\x04cposix\nsystem\n" + touch + b"t}\x92.", "posix.system"),
        "STACK_GLOBAL": (b"\x80\x04" + short("os") + short("system") + b"\x93" + touch + b"tR.", "os.system"),
        "dotted name": (
            b"\x80\x04" + short("torch") + short("hub.load") + b"\x93" + touch + b"tR.", "torch.hub.load"
        ),
        "dotted name below an allowed module": (
            b"\x80\x04" + short("torch.nn.modules.conv") + short("Conv1d.__init__.__globals__") + b"\x93.",
            "torch.nn.modules.conv.Conv1d.__init__.__globals__",
        ),
        "dotted name below an allowed class": (
            b"\x80\x04" + short("collections") + short("OrderedDict.__reduce__") + b"\x93.",
            "collections.OrderedDict.__reduce__",
        ),
        "module of an allowed module": (b"ctorch._utils\nimportlib\n.", "torch._utils.importlib"),
        "getattr": (b"cbuiltins\ngetattr\n(cbuiltins\nobject\nS'__subclasses__'\ntR.", "builtins.getattr"),
        "eval, Python 2 spelling": (b"c__builtin__\neval\n(S'1'\ntR.", "__builtin__.eval"),
        "path in the module": (b"cglow/../os\nWaveGlow\n.", "glow/../os.WaveGlow"),
        "similar module": (b"cnotglow\nWaveGlow\n.", "notglow.WaveGlow"),
        "another class of a published module": (b"cglow\nfused\n.", "glow.fused"),
        "torch, not a dtype": (b"ctorch\nload\n.", "torch.load"),
        "name with spaces": (b"ctorch Size\nSize\n.", "torch.Size Size"),
    }  # fmt: skip


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("attack", opcode_attacks(""))
def test_foreign_globals_are_refused_by_name(
    attack: str, container: Callable[[Path, bytes], None], tmp_path: Path
) -> None:
    target = tmp_path / "created"
    data, name = opcode_attacks(str(target))[attack]
    container(tmp_path / "evil.pt", data)
    with pytest.raises(CheckpointError) as caught:
        fastflow.load(tmp_path / "evil.pt")
    assert f"refers to `{name}`" in str(caught.value)
    assert str(tmp_path / "evil.pt") in str(caught.value)
    assert not target.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_pickle_itself_writes_is_refused_in_every_protocol(protocol: int, tmp_path: Path) -> None:
    created = tmp_path / "created"
    # Older protocols write the names that Python 2 had; a method is written as a call of getattr.
    attacks = {
        ("posix.system", "nt.system"): Call(os.system, f"touch {created}"),
        ("posix.mkdir", "nt.mkdir"): Call(os.mkdir, str(created)),
        ("builtins.eval", "__builtin__.eval"): Call(eval, f"open({str(created)!r}, 'w')"),
        ("builtins.exec", "__builtin__.exec"): Call(exec, f"open({str(created)!r}, 'w')"),
        ("io.open", "_io.open", "__builtin__.open"): Call(open, str(created), "w"),
        ("subprocess.Popen", "commands.Popen"): Call(subprocess.Popen, ["touch", str(created)]),
        ("torch.hub.load",): Call(torch.hub.load, "owner/name", "model"),
        ("torch.serialization.load",): Call(torch.load, str(created)),
        ("pathlib.Path.touch", "builtins.getattr", "__builtin__.getattr"): Call(Path.touch, created),
    }
    for names, attack in attacks.items():
        path = tmp_path / "evil.pt"
        torch.save({"state_dict": {"WN.0.start.bias": attack}}, path, pickle_protocol=max(protocol, 2))
        as_bare(tmp_path / "bare.pkl", pickle.dumps(attack, protocol))
        for file in (path, tmp_path / "bare.pkl"):
            with pytest.raises(CheckpointError) as caught:
                fastflow.load(file)
            assert any(f"refers to `{name}`" in str(caught.value) for name in names), str(caught.value)
    assert not created.exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"}(S'__class__'\nS'x'\nub.", "damaged"),  # BUILD with nothing below it
        (b"]}S'append'\nNsb.", "a dict is needed where a list is"),  # BUILD on a list
        (b"K\x01)R.", "calls a value of type int"),
        (b"S'x'\n)\x81.", "makes an object of a class that is a value of type str"),
        (b"cbuiltins\nobject\n)\x81.", "`builtins.object`, which may only be named"),
        (b"ctorch\nFloatStorage\n(K\x10tR.", "`torch.FloatStorage`, which may only be named"),
        (b"\x82\x01.", "the instruction EXT1"),
        (b"\x80\x05\x97.", "the instruction NEXT_BUFFER"),
        (b"h\x05.", "damaged"),  # a memo entry that is not there
        (b"0.", "damaged"),
        (b"(.", "damaged"),
        (b"R.", "damaged"),
        (b"\x85.", "damaged"),
        (b"((tt", "damaged"),
        (b"]K\x01K\x02s.", "a dict is needed where a list is"),
        (b"}]K\x01s.", "uses a list as a key"),
        (b"}K\x01\x85K\x01s.", "uses a tuple as a key"),
        (b"\x8f(K\x01\x85\x90.", "uses a tuple as a key"),
        (b"(K\x01d.", "a key but no value"),
        (b"ccollections\nOrderedDict\n(K\x01K\x02K\x03tR.", "damaged"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00))\x89NtR.", "not a storage"),
        (b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.", "_codecs.encode"),
        (b"ccopyreg\n_reconstructor\n(cglow\nWN\nS'x'\nNtR.", "base other than `object`"),
        (b"I" + b"9" * 5000 + b"\n.", "damaged"),
        (b"\x8d" + struct.pack("<Q", 2**63 - 1) + b"x.", "damaged"),  # a string of 2^63 bytes
        (b"\x8e" + struct.pack("<Q", 2**40) + b"x.", "damaged"),
        (b"\x8a", "damaged"),
        (b"", "damaged"),
    ],
)  # fmt: skip
def test_malformed_pickles(data: bytes, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        value_of(data)

    assert message in str(caught.value)


def test_size_attacks() -> None:
    # The largest memo index costs an entry, not an array of that size.
    assert value_of(b"Nr" + struct.pack("<I", 2**32 - 1) + b".") is None
    with pytest.raises(CheckpointError, match="more than 2000000 instructions"):
        value_of(b"}" * (MAX_INSTRUCTIONS + 1) + b".")
    # 60 doublings of a tuple: 2^60 leaves. It may be built, as it takes 60 tuples; nothing walks it.
    doubled = b"K\x01" + b"2\x86" * 60
    assert isinstance(value_of(doubled + b"."), tuple)
    with pytest.raises(CheckpointError, match="uses a tuple as a key"):
        value_of(b"}" + doubled + b"Ns.")
    with pytest.raises(CheckpointError, match="calls a value of type tuple"):
        value_of(doubled + b")R.")


def test_attributes_given_to_a_dict_are_dropped() -> None:
    # An OrderedDict has attributes, and one called `items` would be found before the method.
    built = value_of(b"ccollections\nOrderedDict\n)R}S'items'\nS'evil'\nsb.")
    assert built == {}
    assert type(built) is dict


def test_state_of_a_recorded_object_never_shadows_anything() -> None:
    built = value_of(b"cglow\nWaveGlow\n)\x81}(S'state'\nS'x'\nS'__class__'\nS'y'\nS'__setstate__'\nS'z'\nub.")
    assert type(built) is Recorded
    assert built.cls == Global("glow", "WaveGlow")
    assert built.state == {"state": "x", "__class__": "y", "__setstate__": "z"}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_of_every_protocol(protocol: int) -> None:
    value = {
        "numbers": [0, -1, 255, 65536, -(2**31), 2**80, 1.5, float("inf"), True, False, None],
        "text": ["", "short", "long" * 100, "ünïcödé \U0001f600\n\\"],
        "bytes": [b"", b"\x00\xff" * 300],
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "sets": [set(), {1, 2}, frozenset({"a"})],
        3: {"nested": {}},
    }
    value["shared"] = value["text"]  # by way of the memo
    assert value_of(pickle.dumps(value, protocol)) == value
    ordered = collections.OrderedDict([("b", 1), ("a", 2)])
    assert list(value_of(pickle.dumps(ordered, protocol)).items()) == [("b", 1), ("a", 2)]
    assert value_of(pickle.dumps(collections.defaultdict(list, {"k": [1]}), protocol)) == {"k": [1]}
    assert value_of(pickle.dumps(torch.Size([2, 3]), protocol)) == (2, 3)
    assert value_of(pickle.dumps(torch.float16, protocol)) == Global("torch", "float16")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_leftovers_of_training_are_recorded_and_do_nothing(protocol: int) -> None:
    leftovers = {
        "loss": np.float64(1.5),
        "rng": np.random.RandomState(0).get_state(),
        "at": torch.device("cuda:0"),
    }
    built = value_of(pickle.dumps(leftovers, protocol))
    assert built.keys() == leftovers.keys()
    assert isinstance(built["loss"], Recorded)
    assert isinstance(built["at"], Recorded)


def test_no_table_maps_to_anything_that_acts() -> None:
    # Every function that a pickle can reach is one of this module's own.
    for function in pickles._FUNCTIONS.values():
        assert function.__module__ == "fastflow.checkpoints.pickles"
