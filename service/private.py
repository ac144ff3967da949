"""Directories and files that nobody else on this machine can look into, and how they are made durable."""

import logging
import os
import tempfile
from pathlib import Path

DIRECTORY_MODE, FILE_MODE = 0o700, 0o600
_OTHERS = 0o077

_log = logging.getLogger(__name__)


def make_private(directory: Path, *, below: bool = False) -> None:
    """Make a directory that nobody else on this machine can look into.

    Args:
        below: close also what an earlier release left open in it.
    """
    directory.mkdir(DIRECTORY_MODE, parents=True, exist_ok=True)
    if below and directory.stat().st_mode & _OTHERS:
        for path in directory.rglob("*"):
            close_to_others(path, DIRECTORY_MODE if path.is_dir() else FILE_MODE)
    close_to_others(directory, DIRECTORY_MODE)


def close_to_others(path: Path, mode: int) -> None:
    """Give a path that is there this mode, where it is open to others."""
    try:
        if path.stat().st_mode & _OTHERS:
            path.chmod(mode)
    except FileNotFoundError:
        pass
    except PermissionError:
        _log.warning("other users of this machine can read %s, which is not this user's to close", path)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file durably and put it in place in one step."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sync_directory(directory: Path) -> None:
    """Make renames within a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
