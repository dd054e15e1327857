"""A split's folder: written beside its place and renamed, its large arrays row by row."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedem_flwr.files import close_all, new_file, remove_if_empty

SETTINGS_FILE: Final = "split.json"


@contextmanager
def replaced_folder(directory: Path, *, public: bool = False) -> Iterator[Path]:
    """A new folder that takes the place of `directory` when the block ends without an error, and else disappears.

    Args:
        public: what is written there is for everybody; else, from the first moment on, for nobody but its owner.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    work.chmod(0o700)  # whatever the umask is
    try:
        new = work / "new"
        new.mkdir()
        new.chmod(new.stat().st_mode | 0o700 if public else 0o700)
        yield new
        if not public:
            close_all(new)
        if directory.exists():
            os.rename(directory, work / "old")  # a folder that is not empty cannot be renamed over
        os.rename(new, directory)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def removed_if_empty(directory: Path) -> Iterator[None]:
    """A folder that the block may make; where that comes to nothing, no empty folder stays behind."""
    there = directory.exists()
    try:
        yield
    except BaseException:
        if not there:
            remove_if_empty(directory)
        raise


@contextmanager
def appended(path: Path, dtype: np.dtype[Any], row_shape: tuple[int, ...] = ()) -> Iterator[Callable[[Any], None]]:
    """Write an ``.npy`` file whose number of rows is not known before its end; a mapping could not grow.

    Yields:
        a function that appends an array (rows, *row_shape), converted to `dtype`.
    """
    rows = 0
    with open(new_file(path), "wb") as file:

        def write_header() -> None:
            # numpy leaves room in it for the first axis to grow to any length
            header = {"descr": dtype.str, "fortran_order": False, "shape": (rows, *row_shape)}
            np.lib.format.write_array_header_1_0(file, header)

        def append(values: NDArray[Any]) -> None:
            nonlocal rows
            rows += len(values)
            file.write(np.ascontiguousarray(values, dtype).data)

        write_header()
        yield append
        file.seek(0)
        write_header()


def stored_type(items: int) -> np.dtype[Any]:
    """The integers that codes of `items` items, and -1, are stored as: half as wide where they fit."""
    return np.dtype(np.int32 if items <= np.iinfo(np.int32).max else np.int64)


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write what of a split is no array."""
    with open(new_file(folder / SETTINGS_FILE), "w", encoding="utf-8") as file:
        json.dump(settings, file)
