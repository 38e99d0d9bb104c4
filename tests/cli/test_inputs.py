"""Which files the IN arguments stand for, what is read from them, and where the outputs go."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fastflow.cli.inputs import (
    InputError,
    Source,
    collisions,
    count,
    find_sources,
    load_mel,
    names_a_file,
    output_paths,
)


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def names(sources: list[Source]) -> list[str]:
    return [source.path.name for source in sources]


def test_directory_is_searched_recursively_for_known_suffixes(tmp_path: Path) -> None:
    for name in ("b.wav", "a/c.FLAC", "a/d/e.npy", "a/notes.txt", "a/model.safetensors", "f.pt", "g.npz"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    sources, missing = find_sources([str(tmp_path)])
    assert names(sources) == ["c.FLAC", "e.npy", "b.wav", "f.pt", "g.npz"]
    assert [source.folder for source in sources[:3]] == [Path("a"), Path("a/d"), Path(".")]
    assert missing == []


def test_outputs_of_an_earlier_run_are_not_inputs(tmp_path: Path, make_wav: Callable[..., Path]) -> None:
    make_wav(tmp_path / "in.wav")
    make_wav(tmp_path / "out" / "in.wav")
    assert names(find_sources([str(tmp_path)], exclude=tmp_path / "out")[0]) == ["in.wav"]
    assert names(find_sources([f"{tmp_path}/*"], exclude=tmp_path / "out")[0]) == ["in.wav"]
    assert names(find_sources([f"{tmp_path}/**/*.wav"], exclude=tmp_path / "out")[0]) == ["in.wav"]


def test_the_output_directory_may_be_searched_by_name(tmp_path: Path, make_wav: Callable[..., Path]) -> None:
    make_wav(tmp_path / "a.wav")
    for argument in (str(tmp_path), f"{tmp_path}/*.wav"):
        assert names(find_sources([argument], exclude=tmp_path)[0]) == ["a.wav"]


def test_globs_are_expanded(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav", "c.txt", "sub/d.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert names(find_sources([f"{tmp_path}/?.*"])[0]) == ["a.wav", "b.wav"]
    assert names(find_sources([f"{tmp_path}/**"])[0]) == ["a.wav", "b.wav", "d.wav"]
    assert find_sources([f"{tmp_path}/*.flac"]) == (
        [],
        [(f"{tmp_path}/*.flac", "no audio or mel files match")],
    )


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path: Path, make_wav: Callable[..., Path]) -> None:
    make_wav(tmp_path / "take[1].wav")
    make_wav(tmp_path / "take1.wav")
    assert names(find_sources([str(tmp_path / "take[1].wav")])[0]) == ["take[1].wav"]


def test_a_file_named_twice_counts_once(tmp_path: Path, make_wav: Callable[..., Path]) -> None:
    path = make_wav(tmp_path / "a.wav")
    assert len(find_sources([str(path), str(tmp_path), f"{tmp_path}/*.wav"])[0]) == 1


def test_what_is_not_there_is_listed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    sources, missing = find_sources([str(tmp_path / "no.wav"), str(tmp_path / "empty")])
    assert sources == []
    assert [reason for _, reason in missing] == [
        "no such file or directory",
        "no audio or mel files in this directory",
    ]


def test_every_mel_form_is_read(tmp_path: Path, mel: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", mel)
    np.savez(tmp_path / "b.npz", mel)
    np.savez(tmp_path / "c.npz", mel=mel, other=np.zeros(3))
    torch.save(torch.from_numpy(mel), tmp_path / "d.pt")
    torch.save({"mel": torch.from_numpy(mel), "text": "hello"}, tmp_path / "e.pt")
    for path in sorted(tmp_path.iterdir()):
        assert torch.equal(load_mel(path), torch.from_numpy(mel)), path.name


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", ">f8"])
def test_every_float_and_byte_order_is_read(tmp_path: Path, mel: np.ndarray, dtype: str) -> None:
    np.save(tmp_path / "a.npy", np.asfortranarray(mel.astype(dtype)))
    assert torch.allclose(load_mel(tmp_path / "a.npy").float(), torch.from_numpy(mel), atol=5e-3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(80, np.float32), r"`mel` must be \[80, T\] or \[B, 80, T\]; got \[80\]"),
        (
            np.zeros((1, 1, 80, 5), np.float32),
            r"`mel` must be \[80, T\] or \[B, 80, T\]; got \[1, 1, 80, 5\]",
        ),
        (np.zeros((0, 80, 5), np.float32), r"`mel` must hold at least one item; got \[0, 80, 5\]"),
        (np.zeros((80, 5), np.int16), "`mel` must be floating point; got int16"),
        (np.zeros((80, 5), np.complex64), "`mel` must be floating point; got complex64"),
        (
            np.array([None, {}], object),
            "refused: it holds pickled objects; only plain tensors and arrays are read",
        ),
    ],
)
def test_wrong_arrays_are_named(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(InputError, match=message):
        load_mel(tmp_path / "a.npy")


def test_wrong_npz_and_pt_are_named(tmp_path: Path, mel: np.ndarray) -> None:
    np.savez(tmp_path / "two.npz", x=mel, y=mel)
    with pytest.raises(InputError, match="must hold one array or one called `mel`; holds x, y"):
        load_mel(tmp_path / "two.npz")
    torch.save({"spec": torch.zeros(80, 5)}, tmp_path / "dict.pt")
    with pytest.raises(InputError, match="must hold a tensor or a dict with `mel`; its keys: spec"):
        load_mel(tmp_path / "dict.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match="must hold a tensor or a dict with `mel`; got list"):
        load_mel(tmp_path / "list.pt")
    torch.save(torch.zeros(80, 5, dtype=torch.int64), tmp_path / "int.pt")
    with pytest.raises(InputError, match="`mel` must be floating point; got int64"):
        load_mel(tmp_path / "int.pt")


@pytest.mark.parametrize(
    "make",
    [torch.Tensor.to_sparse, lambda x: x.to("meta"), lambda x: torch.nested.nested_tensor([x, x], layout=torch.jagged)],
)
def test_tensors_without_plain_memory_are_refused(tmp_path: Path, make: Callable[[torch.Tensor], torch.Tensor]) -> None:
    torch.save(make(torch.zeros(80, 5)), tmp_path / "a.pt")
    with pytest.raises(InputError, match="`mel` must be a plain dense tensor"):
        load_mel(tmp_path / "a.pt")


@pytest.mark.filterwarnings("error")
def test_old_files_are_read_without_a_warning(tmp_path: Path, mel: np.ndarray) -> None:
    torch.save(torch.from_numpy(mel), tmp_path / "a.pt", _use_new_zipfile_serialization=False, pickle_protocol=3)
    assert torch.equal(load_mel(tmp_path / "a.pt"), torch.from_numpy(mel))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt"])
@pytest.mark.parametrize(
    "content", [b"", b"hello, this is not an array", b"PK\x03\x04 truncated", b"\x80\x02truncated"]
)
def test_broken_mel_files_say_so_in_one_line(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        load_mel(path)
    expected = f"not a readable {suffix} file (damaged, or of another kind)" if content else "the file is empty"
    assert str(error.value) == expected


def test_truncated_mel_files_are_refused(tmp_path: Path, mel: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", mel)
    np.savez(tmp_path / "a.npz", mel=mel)
    torch.save(torch.from_numpy(mel), tmp_path / "a.pt")
    for path in sorted(tmp_path.iterdir()):
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(InputError, match="not a readable"):
            load_mel(path)


@pytest.mark.parametrize("form", ["pickle.pt", "torch.pt", "object.npy", "object.npz"])
def test_code_in_a_mel_file_is_refused_and_not_run(tmp_path: Path, form: str) -> None:
    target = tmp_path / "was-executed"
    path = tmp_path / form
    if form == "pickle.pt":
        path.write_bytes(pickle.dumps(Evil(target), protocol=2))
    elif form == "torch.pt":
        torch.save({"mel": Evil(target)}, path)
    elif form == "object.npy":
        np.save(path, np.array([Evil(target)], object), allow_pickle=True)
    else:
        np.savez(path, mel=np.array([Evil(target)], object))
    with pytest.raises(InputError, match=r"^refused: it holds (posix.mkdir|pickled objects); only plain"):
        load_mel(path)
    assert not target.exists()


def test_items_are_counted_and_named(tmp_path: Path) -> None:
    for name, shape in {"one": (80, 5), "single": (1, 80, 5), "batch": (3, 80, 5)}.items():
        np.save(tmp_path / f"{name}.npy", np.zeros(shape, np.float32))
    out = Path("out")
    for name, expected in {
        "one": ["one.wav"],
        "single": ["single.wav"],
        "batch": ["batch_0.wav", "batch_1.wav", "batch_2.wav"],
    }.items():
        source = Source(tmp_path / f"{name}.npy", Path("deep"))
        items = output_paths(source, count(source), out)
        assert [item.output for item in items] == [out / "deep" / name for name in expected]


def test_collisions_name_both_inputs() -> None:
    sources = [Source(Path("a/x.wav")), Source(Path("b/x.flac")), Source(Path("y.npy"))]
    items = [item for source in sources for item in output_paths(source, None, Path("out"))]
    assert collisions(items) == ["a/x.wav and b/x.flac would both be written to out/x.wav"]


def test_a_batch_may_collide_with_a_file() -> None:
    items = output_paths(Source(Path("x.npy")), 2, Path("out")) + output_paths(
        Source(Path("x_1.wav")), None, Path("out")
    )
    assert collisions(items) == ["x.npy[1] and x_1.wav would both be written to out/x_1.wav"]


def test_out_is_a_file_only_for_one_item_and_an_audio_suffix(tmp_path: Path) -> None:
    assert names_a_file(tmp_path / "x.wav", 1)
    assert not names_a_file(tmp_path / "x.wav", 2)
    assert not names_a_file(tmp_path / "x", 1)
    (tmp_path / "dir.wav").mkdir()
    assert not names_a_file(tmp_path / "dir.wav", 1)


def test_archives_under_each_others_names_are_named(tmp_path: Path, mel: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", mel=mel)
    np.save(tmp_path / "b.npy", mel)
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    (tmp_path / "b.npy").rename(tmp_path / "b.npz")
    for path in tmp_path.iterdir():
        with pytest.raises(InputError, match="not a readable"):
            load_mel(path)
