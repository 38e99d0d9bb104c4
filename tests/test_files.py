"""Files that appear whole, and what stays of a process that is killed while it writes one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fastflow
from fastflow import files
from fastflow.files import remove_leftovers, write_whole

KILLED = """
import os, signal, sys
from pathlib import Path
from fastflow.files import write_whole

with write_whole(Path(sys.argv[1]), overwrite=True, error=RuntimeError) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(path: Path) -> None:
    """Have a process killed while it writes `path`."""
    environment = os.environ | {"PYTHONPATH": str(Path(fastflow.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("stem", ["m", "m" * 220, "\u00e9" * 110])
def test_what_killed_processes_left_goes(tmp_path: Path, stem: str) -> None:
    output = tmp_path / f"{stem}.safetensors"
    output.write_bytes(b"good")
    killed(output)
    killed(output.with_suffix(".state.pt"))
    assert output.read_bytes() == b"good" and len(list(tmp_path.iterdir())) == 3
    others = [f".fastflow-{stem[:20]}.tmp", f".fastflow-other.json.{'0' * 16}.tmp"]
    for name in others:
        (tmp_path / name).touch()
    remove_leftovers(output)
    assert {path.name for path in tmp_path.iterdir()} == {output.name, *others}


@pytest.mark.parametrize("replaced", [False, True])
def test_what_is_being_written_stays(tmp_path: Path, replaced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "m.safetensors"
    synced = []

    def fsync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        remove_leftovers(output)

    monkeypatch.setattr(files.os, "fsync", fsync)
    with write_whole(output, overwrite=True, error=RuntimeError) as temporary:
        if replaced:  # as the writer of safetensors does
            (tmp_path / "new").write_bytes(b"whole")
            (tmp_path / "new").replace(temporary)
        else:
            remove_leftovers(output)
            temporary.write_bytes(b"whole")
    assert output.read_bytes() == b"whole"
    assert synced == [output.stat().st_ino]  # before the rename
    assert list(tmp_path.iterdir()) == [output]


def test_no_folder_is_no_error(tmp_path: Path) -> None:
    remove_leftovers(tmp_path / "none" / "m.safetensors")
