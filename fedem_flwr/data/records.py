"""The records of a text: where one ends, what its fields are, and whether quotes in it are quotes."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Final

from fedem_flwr.data.columns import SAMPLE_ROWS
from fedem_flwr.errors import InputError

_BLANK_FIELD: Final = re.compile(r'"(?:[^"\n]|"")*"(?![^ \t])|[^ \t]+')


@dataclass(frozen=True)
class Style:
    """How the lines of a text are cut into fields.

    Attributes:
        separator: one character, or "::"; " " is any blanks.
        quoting: whether a field may be in double quotes, with separators in it, and where no blanks separate also line
            breaks; None: no field has begun with a quote so far, so that it is not known yet.
        comment: what lines to skip start with, or nothing.
    """

    separator: str
    quoting: bool | None = False
    comment: str = ""


@dataclass(frozen=True)
class Record:
    """One record of a text: the number of its first line, that line, and the fields."""

    line: int
    text: str
    fields: list[str]


def whole_records(text: bytes, style: Style) -> int:
    """Where the last whole record of a text ends."""
    if not style.quoting or b'"' not in text:
        return text.rfind(b"\n") + 1
    found = records_pattern(style.separator, style.comment).match(text)
    return 0 if found is None else found.end()


@cache
def records_pattern(separator: str, comment: str = "") -> re.Pattern[bytes]:
    """Matches as many whole records as there are; blanks may stand before a quote, and text after a closed one.

    Not after one that holds a line break: there a quote that is not closed has met the next one.
    """
    cut = re.escape(separator.encode())
    if separator == " ":
        field_ = rb'(?:"(?:[^"\n]++|"")*+"(?![^ \t\n])|(?!")[^ \t\n]++)'
        record = rb"[ \t]*+(?:" + field_ + rb"(?:[ \t]++" + field_ + rb")*+[ \t]*+)?+\n"
    else:
        rest = rb"[^\n" + cut + rb"]*+"
        in_line = rb' *+"(?:[^"\n]++|"")*+"' + rest
        lines = rb' *+"(?:[^"]++|"")*+" *+(?=[\n' + cut + rb"])"
        field_ = rb"(?:" + in_line + rb"|" + lines + rb'|(?! *+")' + rest + rb")"
        record = field_ + rb"(?:" + cut + field_ + rb")*+\n"
    if comment:
        record = re.escape(comment.encode()) + rb"[^\n]*+\n|" + record
    return re.compile(rb"(?:" + record + rb")++")


@cache
def quote_begins(separator: str) -> re.Pattern[bytes]:
    """Finds a field that begins with a quote."""
    return re.compile(rb"(?:\A|[\n" + (b" \t" if separator == " " else re.escape(separator.encode())) + rb']) *+"')


def quotes_are_quotes(path: Path, text: str, style: Style) -> bool | None:
    """Whether fields in quotes are meant by the quotes in the first records of a text; None where no field begins so.

    Between commas and semicolons a quote is a quote; elsewhere where all are closed, or where it explains the columns.
    """
    if style.separator in (",", ";"):
        return True
    if style.separator == "::":
        return False
    plain = first_records(path, text, Style(style.separator, False, style.comment))
    begun = [field for record in plain for field in record.fields if field.startswith('"')]
    if not begun:
        return None
    if style.separator == " ":
        lines = "".join(record.text + "\n" for record in plain).encode(errors="replace")
        return records_pattern(" ").fullmatch(lines) is not None
    quoted = first_records(path, text, Style(style.separator, True, style.comment))
    return (
        all(len(field) > 1 and field.endswith('"') for field in begun) or usual_width(quoted)[1] > usual_width(plain)[1]
    )


def first_records(path: Path, text: str, style: Style) -> tuple[Record, ...]:
    """As many as a layout is worked out from."""
    return tuple(islice(records(path, text, style), SAMPLE_ROWS + 1))


def usual_width(found: Sequence[Record]) -> tuple[int, float]:
    """Columns of most records, and the share of records that have so many."""
    width, count = Counter(len(record.fields) for record in found).most_common(1)[0]
    return width, count / len(found)


def records(path: Path, text: str, style: Style, first_line: int = 1) -> Iterator[Record]:
    """The records of a text that are neither blank nor comments, one by one: exact, and slow.

    Raises:
        InputError: a field that is longer than any is.
    """
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    if style.quoting and style.separator != " ":
        yield from _quoted(path, lines, style, first_line)
        return
    if style.comment:
        lines = ["" if line.startswith(style.comment) else line for line in lines]
    for number, line in enumerate(lines, first_line):
        if line.strip(" "):
            yield Record(number, line, split_plain(line, style.separator, style.quoting))


def split_plain(line: str, separator: str, quoting: bool | None = False) -> list[str]:
    """The fields of a line, with quotes between blanks only."""
    if separator == " ":
        if quoting and '"' in line:
            fields = _BLANK_FIELD.findall(line)
            return [f[1:-1].replace('""', '"').strip(" ") if f[0] == f[-1] == '"' and f[1:] else f for f in fields]
        return re.split(r"[ \t]+", line.strip(" \t"))
    return [field.strip(" ") for field in line.split(separator)]


def _quoted(path: Path, lines: list[str], style: Style, first_line: int) -> Iterator[Record]:
    before, fresh = 0, True

    def feed() -> Iterator[str]:
        nonlocal fresh
        for line in lines:
            comment = fresh and style.comment and line.startswith(style.comment)  # inside quotes it is none
            fresh = False
            yield "\n" if comment else line + "\n"

    reader = csv.reader(feed(), delimiter=style.separator, skipinitialspace=True)
    try:
        for fields in reader:
            start, before, fresh = before, reader.line_num, True
            if not fields:
                continue
            if lines[start].strip(" "):
                yield Record(first_line + start, lines[start], [field.strip(" ") for field in fields])
    except csv.Error as error:
        raise InputError(f"{path}, line {first_line + before}: {error}; is a quote not closed there?") from None
