"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

# What a file system without hard links (FAT, some network mounts) answers to link(2).
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}
LONGEST = 200  # bytes of a target's name in its temporary's, of the 255 that file systems take


def check_target(path: Path, *, overwrite: bool, error: type[Exception]) -> None:
    """Raise `error`, before any work is done, for a target that `write_whole` would refuse after it."""
    if os.path.isdir(path):
        raise error(f"cannot write {path}: it is a directory")
    if not overwrite and os.path.lexists(path):
        raise error(f"cannot write {path}: it already exists (overwrite=True replaces it)")
    if not os.path.exists(path.parent):
        raise error(f"cannot write {path}: the directory {path.parent} does not exist")
    if not os.path.isdir(path.parent):
        raise error(f"cannot write {path}: {path.parent} is not a directory")


@contextmanager
def write_whole(path: Path, *, overwrite: bool, error: type[Exception]) -> Iterator[Path]:
    """Give an empty temporary file to fill, which becomes `path` in one step when the `with` block ends well.

    Readers see the old state or the complete new file, also after a loss of power. The temporary lies in the same
    directory and is renamed over the target (`overwrite`) or linked to it, which fails if the target has come to exist
    in the meantime. It goes if the block fails; only a process that is killed leaves it behind, for
    `remove_leftovers`. An OSError, also one of the block's, becomes an `error` that names the path and the reason.
    """
    check_target(path, overwrite=overwrite, error=error)
    temporary = path.parent / f"{_beginning(path.name)}.{secrets.token_hex(8)}.tmp"
    try:
        # "x" and not mkstemp: the file's mode then follows the umask, as any other written file's does.
        with open(temporary, "xb") as empty:
            _lock(empty)
            mode = os.stat(temporary).st_mode
            yield temporary
            os.chmod(temporary, mode)  # whatever filled it may have put a new file there
            with open(temporary, "rb+") as filled:
                _lock(filled)
                os.fsync(filled.fileno())  # a rename can reach the disk before what it names
                if overwrite:
                    os.replace(temporary, path)
                else:
                    _publish_new(temporary, path, error)
    except FileExistsError:
        raise error(f"cannot write {path}: it already exists (overwrite=True replaces it)") from None
    except OSError as reason:
        raise error(f"cannot write {path}: {reason.strerror or reason}") from reason
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes have left behind of `path` and of the files beside it named STEM.*.

    A temporary that a process is still writing is locked, and stays; so do all where the file system has no locks.
    """
    pattern = re.compile(re.escape(_beginning(f"{path.stem}.")) + r".*\.[0-9a-f]{16}\.tmp", re.DOTALL)
    with suppress(OSError):  # a folder that cannot be listed is for `check_target` to name
        for name in filter(pattern.fullmatch, os.listdir(path.parent)):
            temporary = path.parent / name
            with suppress(OSError), open(temporary, "rb+") as file:
                if _lock(file):
                    temporary.unlink()


def _beginning(name: str) -> str:
    """How the temporaries of a file of this name begin; not all of a name near the file system's limit."""
    return ".fastflow-" + os.fsencode(name)[:LONGEST].decode("utf-8", "ignore")


def _lock(file: IO[bytes]) -> bool:
    """Whether `file` is this process's alone from now on, until it is closed or the process ends, in whatever way."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another has it, or the file system has no locks
        return False
    return True


def _publish_new(temporary: Path, path: Path, error: type[Exception]) -> None:
    try:
        os.link(temporary, path)
    except OSError as reason:
        if reason.errno not in _NO_HARD_LINKS:
            raise
        # Without hard links the check and the rename are two steps; no portable call joins them.
        check_target(path, overwrite=False, error=error)
        os.replace(temporary, path)
