"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What a file system without hard links (FAT, some network mounts) answers to link(2).
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}


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

    Readers see the old state or the complete new file. The temporary lies in the same directory and is renamed over the
    target (`overwrite`) or linked to it, which fails if the target has come to exist in the meantime; it never stays
    behind. An OSError, also one of the block's, becomes an `error` that names the path and the reason.
    """
    check_target(path, overwrite=overwrite, error=error)
    # A name of its own: the target's with an addition could exceed the file system's limit.
    temporary = path.parent / f".fastflow-{secrets.token_hex(8)}.tmp"
    try:
        # "x" and not mkstemp: the file's mode then follows the umask, as any other written file's does.
        with open(temporary, "xb"):
            pass
        mode = os.stat(temporary).st_mode
        yield temporary
        os.chmod(temporary, mode)  # whatever filled it may have put a new file there
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


def _publish_new(temporary: Path, path: Path, error: type[Exception]) -> None:
    try:
        os.link(temporary, path)
    except OSError as reason:
        if reason.errno not in _NO_HARD_LINKS:
            raise
        # Without hard links the check and the rename are two steps; no portable call joins them.
        check_target(path, overwrite=False, error=error)
        os.replace(temporary, path)
