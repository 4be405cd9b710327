"""Files that are there as a whole, or as they were before: never half of one.

Owns how a file is replaced and removed. It refuses to know what is in it, and what a full disk
means to whoever asks.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

_FILE_MODE: Final = 0o640
_DIRECTORY_MODE: Final = 0o750


def replace(path: Path, text: str, *, lasting: bool) -> None:
    """Replace a file, and make its directory if need be. Raises OSError; then nothing has changed.

    ``lasting``: return once it is on the disk, so that it is there after a power cut too. A file
    that can be done without waits for no disk.
    """
    fresh = path.with_suffix(".new")
    try:
        path.parent.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        _write(fresh, text, lasting=lasting)
        fresh.replace(path)
        if lasting:
            _sync(path.parent)
    except OSError:
        with suppress(OSError):
            fresh.unlink()
        raise


def remove(path: Path) -> None:
    """Remove a file if it is there, and return once that is on the disk. Raises OSError."""
    path.unlink(missing_ok=True)
    if path.parent.exists():
        _sync(path.parent)


def _write(path: Path, text: str, *, lasting: bool) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, _FILE_MODE), "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), _FILE_MODE)  # whatever the umask is
        file.write(text)
        if lasting:
            file.flush()
            os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    """Have the new name on the disk as well: rename(2) alone promises no such thing."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
