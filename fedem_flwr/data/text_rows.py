"""The rows of a text, piece by piece: Arrow's parser, and where a piece is not to its taste an exact, slow one.

The slow one names the line that is wrong. Where none is, what it read is taken, so that the fast way is never another
reading.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from fedem_flwr.data.columns import ABSENT, LONGEST_LABEL
from fedem_flwr.data.gathering import Unfit, Values, check_units, finite, labels_of, of_fields, times_of
from fedem_flwr.data.parts import check_empty
from fedem_flwr.data.records import Record, Style, records
from fedem_flwr.data.roles import shortened
from fedem_flwr.data.sniffing import Layout
from fedem_flwr.data.texts import Text
from fedem_flwr.data.times import is_number, other_unit, seconds_in_any
from fedem_flwr.errors import InputError

_UNIT: Final = b"\x1f"  # Arrow takes one-character separators only, so "::" becomes this; a text holds none
_BLOCK: Final = 4 << 20  # bytes that one thread parses at a time
_WORKERS: Final = 2
_SPACED_QUOTE: Final = re.compile(rb'(?:\A|[^\w" ]) +"')  # a blank before a quote: Arrow takes such a quote as a letter
_SPACED: Final = re.compile(rb"\t|  | \n|\n ")  # more than single blanks between fields

T = TypeVar("T")
R = TypeVar("R")


def row_pieces(text: Text, layout: Layout) -> Iterator[Values]:
    """The columns of one piece of a text after the other, of one interaction a line.

    Raises:
        InputError: a line that is wrong: which, and how.
    """
    numbered = _without_head(text, layout)
    yield from (values for values in _ahead(partial(_values, text.path, layout), numbered) if values is not None)


def _without_head(text: Text, layout: Layout) -> Iterator[tuple[int, bytes, Style]]:
    """The pieces of a text from its first row on."""
    for number, piece, style in text.pieces(layout.style):
        first_line = max(number, layout.skip + 1)
        yield first_line, piece if first_line == number else piece.split(b"\n", first_line - number)[-1], style


def _values(path: Path, layout: Layout, numbered: tuple[int, bytes, Style]) -> Values | None:
    """The columns of a piece; None where there is nothing in it."""
    first_line, piece, style = numbered
    layout = replace(layout, style=style)
    cleaned = _cleaned(piece, style)
    if not cleaned.strip(b"\n"):
        return None
    try:
        if style.quoting and style.comment and b'"' in piece:
            raise Unfit  # what looks like a comment may be inside quotes
        return _fast(cleaned, layout)
    except Unfit:
        return _slow(path, piece, layout, first_line)


def _ahead(work: Callable[[T], R], given: Iterator[T]) -> Iterator[R]:
    """What `map` gives, with a few results worked out ahead: what Arrow does leaves the interpreter free."""
    with ThreadPoolExecutor(_WORKERS) as pool:
        waiting = deque(pool.submit(work, each) for each in islice(given, _WORKERS))
        while waiting:
            done = waiting.popleft().result()
            waiting.extend(pool.submit(work, each) for each in islice(given, 1))
            yield done


def _cleaned(piece: bytes, style: Style) -> bytes:
    """Without comments and lines of blanks, and with single blanks where these separate."""
    if style.comment and style.comment.encode() in piece:
        piece = re.sub(rb"(?m)^" + re.escape(style.comment.encode()) + rb".*\n", b"", piece)
    quoted = style.quoting and b'"' in piece
    if style.separator == " " and not quoted and _SPACED.search(piece):
        piece = re.sub(rb"(?m)^ | (?=\n)", b"", re.sub(rb"[ \t]+", b" ", piece))
    elif (b"\n " in piece or piece.startswith(b" ")) and not quoted:
        piece = re.sub(rb"(?m)^ +\n", b"", piece)
    return piece


def _fast(piece: bytes, layout: Layout) -> Values:
    """Arrow's reading.

    Raises:
        Unfit: the slow one must look.
    """
    import pyarrow as pa
    import pyarrow.compute
    import pyarrow.csv as pc

    separator, quoting = layout.style.separator, bool(layout.style.quoting) and b'"' in piece
    if quoting and (_SPACED.search(piece) if separator == " " else _SPACED_QUOTE.search(piece)):
        raise Unfit
    if separator == "::":
        piece, separator = piece.replace(b"::", _UNIT), _UNIT.decode()
    at, notation = layout.roles.at, layout.roles.notation
    text, dictionary = pa.string(), pa.dictionary(pa.int32(), pa.string())
    types = {role: dictionary if role in ("user", "item") else pa.float64() for role in at}
    if notation is not None:
        types["time"] = text
    kinds = {str(at[role]): kind for role, kind in types.items()} | {str(i): text for i in layout.roles.watched}
    try:
        table = pc.read_csv(
            pa.BufferReader(piece),
            read_options=pc.ReadOptions(
                column_names=[str(i) for i in range(layout.width)], block_size=_BLOCK, use_threads=False
            ),
            parse_options=pc.ParseOptions(
                delimiter=separator, quote_char='"' if quoting else False, newlines_in_values=quoting
            ),
            convert_options=pc.ConvertOptions(
                column_types=kinds,
                include_columns=list(kinds),
                null_values=[],
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:
        raise Unfit from None
    found: Values = {}
    for role, column in at.items():
        values = table[str(column)]
        if role in ("user", "item"):
            found[role] = labels_of(values)
        else:
            found[role] = times_of(values, notation) if role == "time" and notation else finite(values.to_numpy())
    if "time" in at and notation is None and other_unit(found["time"], layout.roles.unit) is not None:
        raise Unfit
    if any(pa.compute.any(pa.compute.not_equal(table[str(column)], "")).as_py() for column in layout.roles.watched):
        raise Unfit
    return found


def _slow(path: Path, piece: bytes, layout: Layout, first_line: int) -> Values | None:
    """The same, record by record.

    Raises:
        InputError: of the first that is wrong.
    """
    fields: dict[str, list[str]] = {role: [] for role in layout.roles.at}
    lines: list[int] = []
    try:
        for record in records(path, piece.decode(errors="surrogateescape"), layout.style, first_line):
            _check(path, record, layout)
            lines.append(record.line)
            for role, column in layout.roles.at.items():
                fields[role].append(record.fields[column])
    finally:  # a date that is wrong may stand above another fault
        check_dates(lambda row: f"{path}, line {lines[row]}", fields.get("time", []), layout.roles.notation)
    if not lines:
        return None
    values = of_fields(fields, layout.roles.notation)  # type: ignore[arg-type]
    if "time" in values and layout.roles.notation is None:
        check_units(values["time"], lambda row: f"{path}, line {lines[row]}", layout.roles.unit)
    return values


def _check(path: Path, record: Record, layout: Layout) -> None:
    where = f"{path}, line {record.line}"
    if len(record.fields) != layout.width:
        count, cause = len(record.fields), "truncated?"
        if count > layout.width:
            cause = "a separator inside a label needs quotes"
        if record.text[:1] in ("#", "%", "/"):
            cause = f'a comment? --set data.comment="{record.text[:1]}"'
        raise InputError(f"{where}: {count} columns, expected {layout.width} ({cause}): '{shortened(record.text)}'")
    for role, column in layout.roles.at.items():
        check_field(f"{where}, column {column}", role, record.fields[column], layout.roles.notation)
    for column in layout.roles.watched:
        check_empty(f"{where}, column {column}", record.fields[column])


def check_dates(where: Callable[[int], str], fields: Sequence[str], notation: str | None) -> None:
    """Make sure that all of some times are dates; nothing is asked of numbers.

    Args:
        where: the place of a row.

    Raises:
        InputError: one is none.
    """
    bad = [] if notation is None else np.flatnonzero(~np.isfinite(seconds_in_any(fields, notation))).tolist()
    if bad:
        raise InputError(
            f"{where(bad[0])}: the time '{shortened(fields[bad[0]])}' is not a date in the notation {notation}; mend "
            f"the line, or say which column is the time ('{ABSENT}' for none)"
        )


def check_field(where: str, role: str, field: str, notation: str | None) -> None:
    """Make sure that a field can be what it is taken for; dates are looked at together (`check_dates`).

    Raises:
        InputError: it cannot.
    """
    if not field.isascii() and any("\udc80" <= each <= "\udcff" for each in field):
        raise InputError(f"{where}: not UTF-8 text; say its encoding (--set data.encoding=latin-1, or cp1252, ...)")
    if not field.isascii() and any("\ud800" <= each <= "\udfff" for each in field):
        raise InputError(f"{where}: the {role} holds half a character (a lone surrogate); mend it")
    if role in ("user", "item"):
        if not 0 < len(field.strip()) <= LONGEST_LABEL:
            fault = f"is longer than {LONGEST_LABEL} characters" if field.strip() else "is empty"
            raise InputError(f"{where}: the {role} {fault}; mend or remove the line")
        return
    remedy = f"mend the line, or say which column is the {role} ('{ABSENT}' for none)"
    if not (role == "time" and notation is not None) and not is_number(field):
        dates = ", or the notation of its dates (data.time_format)" if role == "time" else ""
        if re.fullmatch(r"[+-]?\d+,\d+", field):
            dates = "; it has a decimal comma, where a point is expected"
        raise InputError(f"{where}: the {role} '{shortened(field)}' is not a finite number; {remedy}{dates}")


def list_pieces(text: Text, layout: Layout, on_empty: Callable[[int], None]) -> Iterator[Values]:
    """The same of a text of one user a line, its items after it.

    Args:
        on_empty: told how many users of a piece have no item.

    Raises:
        InputError: a line that is wrong: which, and how.
    """
    import pyarrow as pa
    import pyarrow.csv as pc

    for first_line, piece, style in text.pieces(layout.style):
        layout = replace(layout, style=style)
        cleaned = re.sub(rb"(?m)^\n", b"", _cleaned(piece, style))
        separator = style.separator.encode()
        if (style.quoting and b'"' in piece) or not cleaned:
            values, empty = _slow_lists(text.path, piece, layout, first_line)
        else:
            # one field a line; which of them are users is told by the line ends of the text as it was
            counts = _fields_of_lines(cleaned, separator)
            try:
                column = pc.read_csv(
                    pa.BufferReader(cleaned.replace(separator, b"\n")),
                    read_options=pc.ReadOptions(column_names=["0"], block_size=_BLOCK),
                    parse_options=pc.ParseOptions(delimiter="\x1f", quote_char=False, ignore_empty_lines=False),
                    convert_options=pc.ConvertOptions(
                        column_types={"0": pa.dictionary(pa.int32(), pa.string())}, null_values=[]
                    ),
                )["0"]
                values, empty = _users_and_items(labels_of(column), counts)
            except (pa.ArrowInvalid, Unfit):
                values, empty = _slow_lists(text.path, piece, layout, first_line)
        on_empty(empty)
        if len(values["item"]):
            yield values


def _fields_of_lines(piece: bytes, separator: bytes) -> Any:
    """(lines,) how many fields each line has."""
    if len(separator) > 1:
        piece, separator = piece.replace(separator, _UNIT), _UNIT
    characters = np.frombuffer(piece, np.uint8)
    ends = np.flatnonzero(characters == ord("\n"))
    before = np.searchsorted(np.flatnonzero(characters == separator[0]), ends)
    return np.diff(before, prepend=0) + 1


def _users_and_items(fields: Any, counts: Any) -> tuple[Values, int]:
    """Cut a column of all fields into items and their users."""
    import pyarrow as pa

    starts = np.cumsum(counts) - counts
    item = np.ones(int(counts.sum()), bool)
    item[starts] = False
    taken = {"user": fields.take(pa.array(np.repeat(starts, counts - 1))), "item": fields.filter(pa.array(item))}
    # encoded anew: each with its own labels alone
    values: Values = {role: column.cast(pa.string()).dictionary_encode() for role, column in taken.items()}
    return values, int((counts == 1).sum())


def _slow_lists(path: Path, piece: bytes, layout: Layout, first_line: int) -> tuple[Values, int]:
    fields: dict[str, list[str]] = {"user": [], "item": []}
    empty = 0
    for record in records(path, piece.decode(errors="surrogateescape"), layout.style, first_line):
        user, *items = record.fields
        for column, field in enumerate(record.fields):
            check_field(f"{path}, line {record.line}, column {column}", "item" if column else "user", field, None)
        fields["user"] += [user] * len(items)
        fields["item"] += items
        empty += not items
    return (of_fields(fields, None) if fields["item"] else {"item": []}), empty  # type: ignore[arg-type]
