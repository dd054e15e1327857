"""The text of a file as UTF-8 with plain line ends, in pieces of whole records."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from fedem_flwr.data.opening import Opened
from fedem_flwr.data.reading import SEPARATOR_NAMES
from fedem_flwr.data.records import Style, quote_begins, quotes_are_quotes, records, whole_records
from fedem_flwr.data.roles import shortened
from fedem_flwr.errors import InputError

__all__ = ["HEAD_BYTES", "PIECE_BYTES", "Style", "Text", "encoding_of", "records", "separator_name"]

PIECE_BYTES: Final = 16 << 20
HEAD_BYTES: Final = 1 << 18
"""What a layout is worked out from."""
_LONGEST_RECORD: Final = 1 << 20
_MARKS: Final = (  # byte order marks; that of UTF-32 begins like that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAME: Final = {"utf-8", "utf-8-sig", "ascii"}  # encodings whose bytes need no translation


def separator_name(separator: str) -> str:
    """What messages call it."""
    return SEPARATOR_NAMES.get(separator, f"'{separator}'")


def encoding_of(file: Opened, given: str | None) -> str:
    """Python's name of a text's encoding: the given one, that of a byte order mark, else UTF-8.

    Raises:
        InputError: an unknown encoding, or a text that is clearly UTF-16 without a mark.
    """
    mark = next((name for mark, name in _MARKS if file.head.startswith(mark)), None)
    if given is not None:
        try:
            name = codecs.lookup(given).name
            "".encode(name)
        except (LookupError, ValueError):  # an unknown one, or one that is of no text
            raise InputError(
                f"unknown encoding '{given}'; for instance utf-8, latin-1, cp1252, utf-16, shift_jis"
            ) from None
        return mark if mark is not None and mark.startswith(name) else name
    if mark is not None:
        return mark
    sample = file.head[:1024]
    for odd, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        if (
            len(sample) >= 8
            and sample[odd::2].count(0) > 0.8 * len(sample[odd::2])
            and sample[1 - odd :: 2].count(0) == 0
        ):
            raise InputError(
                f"{file.path}: looks like UTF-16 without a byte order mark; say so (--set data.encoding={name})"
            )
    return "utf-8"


class Text:
    """A file's text, read once: first its head, then pieces of whole records."""

    def __init__(self, file: Opened, encoding: str) -> None:
        self._file, self.encoding = file, encoding
        self._decode = None if encoding in _SAME else codecs.getincrementaldecoder(encoding)("strict")
        self._lines, self._held, self._last = 1, b"", b""
        self._ended = self._started = False
        self._buffer = b""
        while not self._ended and len(self._buffer) < HEAD_BYTES:
            self._buffer += self._more()

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    @property
    def head(self) -> bytes:
        """Whole lines from the beginning, as UTF-8, for working out the layout."""
        start = self._buffer[:HEAD_BYTES]
        return start if len(start) == len(self._buffer) and self._ended else start[: start.rfind(b"\n") + 1] or start

    def pieces(self, style: Style) -> Iterator[tuple[int, bytes, Style]]:
        """Number of the first line, the text from there, that ends where a record does, and how to cut it.

        Where no quote has told so far whether quotes are quotes, the first ones that begin a field do.

        Raises:
            InputError: a quote that is not closed, bytes that are no text.
        """
        size = PIECE_BYTES
        while True:
            self._fill(size)
            if not self._buffer:
                return
            style = self._decided(style, size)
            window = self._buffer[:size]
            end = whole_records(window, style)
            if end == 0:
                if len(window) > _LONGEST_RECORD or (self._ended and len(window) == len(self._buffer)):
                    self._refuse_endless(style)
                size += PIECE_BYTES
                continue
            piece, self._buffer, size = window[:end], self._buffer[end:], PIECE_BYTES
            ends = _line_ends(self.path, piece, self._lines, style.separator)
            yield self._lines, piece, style
            self._lines += ends

    def _fill(self, size: int) -> None:
        while len(self._buffer) < size and not self._ended:
            self._buffer += self._more()

    def _decided(self, style: Style, size: int) -> Style:
        """With quotes being quotes or not, where a field in the next bytes begins with one."""
        if style.quoting is not None or self._buffer.find(b'"', 0, size) < 0:
            return style
        found = quote_begins(style.separator).search(self._buffer, 0, size)
        if found is None:
            return style
        start = self._buffer.rfind(b"\n", 0, found.start() + 1) + 1
        self._fill(start + HEAD_BYTES)
        below = self._buffer[start : start + HEAD_BYTES]
        whole = below[: below.rfind(b"\n") + 1].decode(errors="replace")
        return replace(style, quoting=quotes_are_quotes(self.path, whole, style))

    def _refuse_endless(self, style: Style) -> None:
        first = shortened(self._buffer[:400].decode(errors="replace").split("\n")[0])
        where = f"{self.path}, line {self._lines}"
        if not style.quoting:
            raise InputError(f"{where}: longer than any line of a table: '{first}'; is this a text with line ends?")
        raise InputError(
            f"{where}: a quote is opened and not closed: '{first}'; mend the line, or if quotes mean nothing in this "
            "file, separate its columns by tabs"
        )

    def _more(self) -> bytes:
        """The next bytes of the file as UTF-8 with plain line ends; the last line gets one if it has none."""
        data = self._file.read(PIECE_BYTES)
        self._ended = not data
        if self._decode is not None:
            data = self._decoded(data)
        elif not self._started:
            data = data.removeprefix(codecs.BOM_UTF8)
        self._started = True
        data = self._held + data
        self._held = b""
        if data.endswith(b"\r") and not self._ended:  # the first half of a line end, perhaps
            data, self._held = data[:-1], b"\r"
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._last = data[-1:] or self._last
        return data + b"\n" if self._ended and self._last not in (b"", b"\n") else data

    def _decoded(self, data: bytes) -> bytes:
        assert self._decode is not None
        try:
            text = self._decode.decode(data, final=self._ended)
        except UnicodeError as error:
            start = getattr(error, "start", 0)
            before = data[:start].decode(self.encoding, errors="replace")
            line = self._lines + self._buffer.count(b"\n") + before.count("\n")
            raise InputError(
                f"{self.path}, line {line}: not {self.encoding.upper()} text; say what it is (--set data.encoding=...)"
            ) from None
        return (text if self._started else text.removeprefix("\ufeff")).encode(errors="replace")


def _line_ends(path: Path, piece: bytes, first_line: int, separator: str) -> int:
    """How many lines end in a piece.

    Raises:
        InputError: it holds control characters, so that it is no text.
    """
    characters = np.frombuffer(piece, np.uint8)  # counting in numpy is several times as fast as in bytes
    ends = int(np.count_nonzero(characters == ord("\n")))
    allowed = {b"\t", separator.encode()} - {b"\n"}
    known = ends + sum(piece.count(each) for each in allowed if each < b" ")
    if np.count_nonzero(characters < ord(" ")) > known:
        found = next(each for each in re.finditer(rb"[\x00-\x09\x0b-\x1f]", piece) if each[0] not in allowed)
        line = first_line + piece.count(b"\n", 0, found.start())
        raise InputError(
            f"{path}, line {line}: holds the control character 0x{found[0].hex()}; is this a text? If it is, remove "
            "the character, or say the encoding (--set data.encoding=...)"
        )
    return ends
