"""Work out a delimited file's layout from its first lines: separator, header, and which column is what."""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedem_flwr.errors import InputError, suggest

ABSENT: Final = "-"
"""As a column of `Columns`: the file has no such column, whatever it looks like."""

SEPARATORS: Final = ("::", "\t", ";", "|", ",", " ")
_SEPARATOR_NAMES: Final = {
    "tab": "\t",
    "\\t": "\t",
    "comma": ",",
    "semicolon": ";",
    "pipe": "|",
    "space": " ",
    "spaces": " ",
}
_ROLES: Final = ("user", "item", "rating", "time")
_HEADER_NAMES: Final = {
    "user": {"user", "userid", "uid", "username", "customer", "customerid", "reviewerid", "visitorid"},
    "item": {
        "item",
        "itemid",
        "iid",
        "movie",
        "movieid",
        "artist",
        "artistid",
        "product",
        "productid",
        "asin",
    }
    | {"book", "bookid", "isbn", "song", "songid", "track", "trackid", "business", "businessid"},
    "rating": {"rating", "ratings", "score", "stars", "overall"},
    "time": {"time", "timestamp", "unixtime", "unixreviewtime", "ts"},
}
_EARLIEST_UNIX_TIME: Final = 1e8  # 1973 in seconds; no rating scale goes that far
SAMPLE_LINES: Final = 50
"""How many rows are looked at to work out a layout."""


@dataclass(frozen=True)
class Columns:
    """Where a file keeps what; None means "detect it".

    Attributes:
        user, item, rating, time: a column number from 0, a name in the header, or `ABSENT` ("-") for
            "there is none".
        separator: one of `SEPARATORS` or its name (tab, comma, semicolon, pipe, spaces); " " is any blanks.
        header: whether the first line names the columns.
    """

    user: int | str | None = None
    item: int | str | None = None
    rating: int | str | None = None
    time: int | str | None = None
    separator: str | None = None
    header: bool | None = None

    def given(self) -> dict[str, int | str]:
        """The columns that need no detection, by role; digits in a string count as a number."""
        wanted = {role: getattr(self, role) for role in _ROLES if getattr(self, role) is not None}
        return {role: int(at) if isinstance(at, str) and at.isdecimal() else at for role, at in wanted.items()}


@dataclass(frozen=True)
class Layout:
    """How a file's lines are read: separator, lines above the first row, and the place of each column."""

    separator: str
    skip: int  # lines before the first row: the header and blank lines above it
    header: bool
    width: int  # columns of every row
    at: dict[str, int]  # role to column number; rating and time only where present


def numbered_lines(path: Path, data: bytes) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of every line that is not blank."""
    for number, raw in enumerate(io.BytesIO(data), start=1):
        try:
            line = raw.rstrip(b"\r\n").decode()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}, line {number}: not UTF-8 text (byte {error.start + 1}); convert the file to UTF-8"
            ) from None
        if line.strip(" "):
            yield number, line


def split_line(line: str, separator: str) -> list[str]:
    """Fields of a line; runs of blanks count as one separator where it is a space."""
    if separator == " ":
        return re.split(r"[ \t]+", line.strip(" \t"))
    if separator in ",;" and '"' in line:
        return next(csv.reader([line], delimiter=separator, skipinitialspace=True))
    return [field.strip(" ") for field in line.split(separator)]


def is_number(text: str) -> bool:
    """Whether a field is a finite number."""
    try:
        return math.isfinite(float(text)) and "_" not in text
    except ValueError:
        return False


def shortened(text: str) -> str:
    """One printable line of at most 60 characters."""
    line = "".join(c if c.isprintable() else " " for c in text).strip()
    return line if len(line) <= 60 else line[:57] + "..."


def detect_layout(path: Path, data: bytes, columns: Columns) -> Layout:
    """Find a file's layout from its first lines; what `columns` gives is not guessed."""
    sample = [line for line, _ in zip(numbered_lines(path, data), range(SAMPLE_LINES), strict=False)]
    first_number, first_line = sample[0]
    separator = _separator(path, [line for _, line in sample], columns.separator)
    first, *below = [split_line(line, separator) for _, line in sample]
    header = columns.header if columns.header is not None else _has_header(first, below, columns)
    rows = below if header else [first, *below]
    if not rows:
        raise InputError(f"{path}: a header and no rows; expected rows of user, item[, rating][, time] below it")
    width = len(first) if header else Counter(map(len, rows)).most_common(1)[0][0]
    where = f"{path}, line {first_number}"
    seen = f"header '{shortened(first_line)}'" if header else f"'{shortened(first_line)}'"
    at = find_roles(where, seen, first if header else None, rows, width, columns)
    return Layout(separator, first_number if header else first_number - 1, header, width, at)


def find_roles(
    where: str, seen: str, names: list[str] | None, rows: list[list[str]], width: int, columns: Columns
) -> dict[str, int]:
    """Which column is what: as given, else by the names in a header, else by position.

    Args:
        where: what errors begin with.
        seen: what they call the header, or the first row.
        names: of the columns; None without a header.
        rows: some, as text.
        width: how many columns there are.

    Returns:
        Role to column number; user and item, and rating and time where there are such columns.

    Raises:
        InputError: no user or item column, or `columns` names one that is not there.
    """
    at = _named(where, names, width, columns)
    if names is None or ("user" not in at and "item" not in at):
        _place(at, rows, width, set(_ROLES) - columns.given().keys())
    for role in ("user", "item"):
        if role not in at:
            raise InputError(
                f"{where}: no {role} column in {seen}; say which column is the {role} (--set data.{role}_column=...)"
            )
    return at


def _separator(path: Path, lines: Sequence[str], given: str | None) -> str:
    """The given separator, or the one that cuts most sampled lines into the same number (> 1) of columns."""
    if given is not None:
        separator = _SEPARATOR_NAMES.get(given, given)
        if separator not in SEPARATORS:
            raise InputError(f"unknown separator '{given}'{suggest(given, [*_SEPARATOR_NAMES, '::', ';', '|', ','])}")
        return separator

    def quality(separator: str) -> tuple[int, bool, int]:
        width, lines_alike = Counter(len(split_line(line, separator)) for line in lines).most_common(1)[0]
        return (lines_alike if width > 1 else 0, separator != " ", width)  # blanks also occur inside labels

    best = max(SEPARATORS, key=quality)
    if quality(best)[0] == 0:
        raise InputError(
            f"{path}, line 1: one column only in '{shortened(lines[0])}'; expected user and item"
            " separated by tab, comma, '::', ';', '|' or spaces"
        )
    return best


def _plain(name: str) -> str:
    """A header name without case, punctuation and type suffix: "user_id:token", "userId" -> "userid"."""
    return re.sub(r"[^a-z0-9]", "", name.split(":", maxsplit=1)[0].lower())


def _has_header(first: list[str], below: list[list[str]], columns: Columns) -> bool:
    if any(isinstance(at, str) and at != ABSENT for at in columns.given().values()):
        return True
    names = {_plain(field) for field in first}
    if names & _HEADER_NAMES["user"] and names & _HEADER_NAMES["item"]:
        return True
    numeric = [all(len(row) > at and is_number(row[at]) for row in below) for at in range(len(first))]
    return bool(below) and any(numeric) and not any(map(is_number, first))


def _named(where: str, names: list[str] | None, width: int, columns: Columns) -> dict[str, int]:
    """Columns that were given, and those whose header name is recognised."""
    at: dict[str, int] = {}
    given = columns.given()
    for role, wanted in given.items():
        if wanted == ABSENT:
            continue
        if isinstance(wanted, int):
            if not 0 <= wanted < width:
                raise InputError(f"{where}: no column {wanted} for the {role}; the columns are 0 to {width - 1}")
            at[role] = wanted
        elif names is None:
            raise InputError(f"{where}: no header to look up the {role} column '{wanted}' in; give a column number")
        elif wanted in names:
            at[role] = names.index(wanted)
        else:
            raise InputError(f"{where}: no column '{wanted}' in the header{suggest(wanted, names)}")
    for role in [role for role in _ROLES if names is not None and role not in given]:
        matches = [i for i, name in enumerate(names or []) if _plain(name) in _HEADER_NAMES[role]]
        free = [i for i in matches if i not in at.values()]
        if free:
            at[role] = free[0]
    for column, count in Counter(at.values()).items():
        if count > 1:
            roles = " and ".join(role for role in at if at[role] == column)
            raise InputError(f"{where}: column {column} is given as {roles}; give each its own column")
    return at


def _place(at: dict[str, int], rows: list[list[str]], width: int, wanted: set[str]) -> None:
    """Fill in the wanted roles by position: user, item, rating, time; a lone large number is a time."""
    free = [i for i in range(width) if i not in at.values()]
    for role in [role for role in _ROLES if role in wanted and role not in at]:
        if role == "rating" and len(free) == 1 and "time" in wanted and "time" not in at:
            values = [row[free[0]] for row in rows if len(row) > free[0]]
            if all(is_number(value) and float(value) >= _EARLIEST_UNIX_TIME for value in values):
                continue
        if free:
            at[role] = free.pop(0)
