"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

from fastflow.audio.errors import AudioError

# What a file system without hard links (FAT, some network mounts) answers to link(2).
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}


def check_target(path: Path, overwrite: bool) -> None:
    """Refuses, before any work is done, a target that `write_whole` would refuse after it."""
    if path.is_dir():
        raise AudioError(f"cannot write {path}: it is a directory")
    if not overwrite and os.path.lexists(path):
        raise AudioError(f"cannot write {path}: it already exists (overwrite=True replaces it)")
    if not path.parent.exists():
        raise AudioError(f"cannot write {path}: the directory {path.parent} does not exist")
    if not path.parent.is_dir():
        raise AudioError(f"cannot write {path}: {path.parent} is not a directory")


def write_whole(path: Path, data: bytes, *, overwrite: bool) -> None:
    """Puts `data` at `path` in one step: readers see the old state or the complete new file.

    The bytes go to a temporary file in the same directory, which is then renamed over the target
    (`overwrite`) or linked to it, which fails if the target has come to exist in the meantime. The temporary
    file never stays behind. Raises AudioError naming the path and the reason.
    """
    check_target(path, overwrite)
    # A name of its own: the target's with an addition could exceed the file system's limit.
    temporary = path.parent / f".fastflow-{secrets.token_hex(8)}.tmp"
    try:
        # "x" and not mkstemp: the file's mode then follows the umask, as any other written file's does.
        with open(temporary, "xb") as file:
            file.write(data)
        if overwrite:
            os.replace(temporary, path)
        else:
            _publish_new(temporary, path)
    except FileExistsError:
        raise AudioError(f"cannot write {path}: it already exists (overwrite=True replaces it)") from None
    except OSError as error:
        raise AudioError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _publish_new(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # Without hard links the check and the rename are two steps; no portable call joins them.
        check_target(path, overwrite=False)
        os.replace(temporary, path)
