"""Open a file, decompressing it on the way; name what it is where it is nothing that can be read."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from fedem_flwr.errors import InputError
from fedem_flwr.pulse import tell

ENDINGS: Final = {".gz", ".bz2", ".xz", ".zst"}
"""Of compressed files: not part of a data set's name."""
PARQUET: Final = b"PAR1"

_HEAD_BYTES: Final = 4096
_BLOCK_BYTES: Final = 1 << 18
_SAVE: Final = "save it as CSV, and name that"
_UNREADABLE: Final = (
    (b"\xd0\xcf\x11\xe0", f"an old Excel workbook; {_SAVE}"),
    (b"%PDF", f"a PDF; {_SAVE}"),
    (b"SQLite format 3", f"an SQLite database; {_SAVE}"),
    (b"\x89HDF", f"an HDF5 file; {_SAVE}, or as Parquet"),
    (b"\x93NUMPY", f"a NumPy array; {_SAVE}"),
    (b"ARROW1", "an Arrow file (Feather); save it as Parquet, and name that"),
    (b"Obj\x01", "an Avro file; save it as Parquet, and name that"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it, and name the file in it"),
    (b"Rar!", "a RAR archive; unpack it, and name the file in it"),
    (b"\x80\x04", f"a Python pickle; {_SAVE}"),
    (b"\x80\x05", f"a Python pickle; {_SAVE}"),
)
_BROKEN: Final = (EOFError, zlib.error, lzma.LZMAError, OSError)  # gzip.BadGzipFile is an OSError, and Arrow's too


class Readable(Protocol):
    """What blocks of bytes come from."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end."""


@dataclass(frozen=True)
class _Codec:
    name: str
    magic: bytes
    open: Callable[[Any], Any]


def _zstd(file: Any) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")


class _Members:
    """Decompressed blocks of all members of a bzip2 or xz file, of which zeros alone may stand between.

    Python's own readers take a damaged later member for the end of the file.
    """

    def __init__(self, begin: Callable[[], Any], file: BinaryIO) -> None:
        self._begin, self._file = begin, file
        self._member: Any = None
        self._waiting = b""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end.

        Raises:
            EOFError, OSError, lzma.LZMAError: what follows is truncated, or no member.
        """
        while True:
            data, self._waiting = self._waiting, b""
            if self._member is None:
                data = data or self._file.read(_BLOCK_BYTES)
                if not data:
                    return b""
                data = data.lstrip(b"\0")
                if not data:
                    continue
                self._member = self._begin()
            elif not data and self._member.needs_input:
                data = self._file.read(_BLOCK_BYTES)
                if not data:
                    raise EOFError("it ends too early")
            block: bytes = self._member.decompress(data, size)
            if self._member.eof:
                self._waiting, self._member = self._member.unused_data, None
            if block:
                return block


_CODECS: Final = (
    _Codec("gzip", b"\x1f\x8b", gzip.open),
    _Codec("bzip2", b"BZh", partial(_Members, bz2.BZ2Decompressor)),
    _Codec("xz", b"\xfd7zXZ\x00", partial(_Members, lzma.LZMADecompressor)),
    _Codec("zstd", b"\x28\xb5\x2f\xfd", _zstd),
)


class Opened:
    """A file that is read from its beginning, once.

    Attributes:
        path: the file.
        compression: how it was compressed, or nothing.
        head: its first bytes, decompressed; they are read again with the rest.
    """

    def __init__(self, path: Path, compression: str, stream: Readable, whole: Callable[[], tuple[int, int]]) -> None:
        self.path, self.compression, self._stream, self._whole = path, compression, stream, whole
        self._ended = False
        self.head = self._fill(_HEAD_BYTES)
        self._waiting = self.head

    def read(self, size: int) -> bytes:
        """The next bytes, as many as asked for but at the end.

        Raises:
            InputError: they are damaged.
        """
        start, self._waiting = self._waiting[:size], self._waiting[size:]
        return start if len(start) == size else start + self._fill(size - len(start))

    def _fill(self, size: int) -> bytes:
        found: list[bytes] = []
        try:
            while size > 0 and not self._ended:
                block = self._stream.read(size)
                self._ended = not block
                found.append(block)
                size -= len(block)
                tell(f"reading {self.path.name}", *self._whole())
        except _BROKEN as error:
            what = f"damaged or truncated {self.compression} file" if self.compression else "cannot be read"
            raise InputError(f"{self.path}: {what} ({error}); fetch it again") from None
        return b"".join(found)


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """Open a file for reading.

    Raises:
        InputError: there is none, it may not be read, or it is of a kind that cannot be.
    """
    try:
        file = path.open("rb")  # once: it may be a pipe
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; name the file in it") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    with file:
        codec = next((codec for codec in _CODECS if file.peek(len(codec.magic)).startswith(codec.magic)), None)
        stream: Readable = file if codec is None else codec.open(file)
        size = os.fstat(file.fileno()).st_size
        start = Opened(path, "" if codec is None else codec.name, stream, lambda: (_place(file), size))
        _refuse_other_kinds(start)
        yield start


def _place(file: BinaryIO) -> int:
    """How much of a file has been read; of a pipe that is not known."""
    return file.tell() if file.seekable() else 0


def _refuse_other_kinds(file: Opened) -> None:
    head, path = file.head, file.path
    if head.startswith(b"PK\x03\x04"):
        if b"[Content_Types].xml" in head or b"xl/" in head:
            raise InputError(f"{path} is an Excel workbook; {_SAVE}")
        raise InputError(f"{path} is a zip archive; unpack it, and name the file in it")
    if head[257:262] == b"ustar":
        raise InputError(f"{path} is a tar archive; unpack it, and name the file in it")
    for magic, words in _UNREADABLE:
        if head.startswith(magic):
            raise InputError(f"{path} is {words}")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise InputError(f"{path} is a web page or XML, perhaps instead of a download; fetch the data again")


def stem(path: Path) -> str:
    """The data set's name: the file's, without the endings of compression and form."""
    return Path(path.stem if path.suffix.lower() in ENDINGS else path.name).stem
