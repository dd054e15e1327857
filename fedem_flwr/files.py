"""Files that are there in full or not at all, whatever happens to the process or the machine."""

from __future__ import annotations

import os
from pathlib import Path

from fedem_flwr.errors import FedemError


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` so that a reader, or a crash, finds the old file or the new one whole.

    Raises:
        FedemError: the file cannot be written (permissions, disk full).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        flush_to_disk(path.parent)  # the name: what older files say may be deleted next
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise FedemError(f"cannot write {path}: {error.strerror}; free space or choose another --out") from error


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
