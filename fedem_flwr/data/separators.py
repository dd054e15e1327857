"""Work out what separates the columns of a text: every candidate is tried, and two that do equally well are refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from fedem_flwr.data.records import Record, Style, first_records, quotes_are_quotes, split_plain, usual_width
from fedem_flwr.data.roles import shortened
from fedem_flwr.data.texts import separator_name
from fedem_flwr.data.times import is_number, notation_of
from fedem_flwr.errors import InputError, suggest

SEPARATORS: Final = ("::", "\t", ";", "|", ",", " ")
_BY_NAME: Final = {
    "tab": "\t",
    "\\t": "\t",
    "comma": ",",
    "semicolon": ";",
    "pipe": "|",
    "space": " ",
    "spaces": " ",
    "blank": " ",
    "blanks": " ",
}
_ALIKE: Final = 0.9  # share of lines with the same number of columns
_QUOTED: Final = re.compile(r'"(?:[^"]|"")*"')
_DECIMAL_COMMA: Final = re.compile(r"[+-]?\d+,\d+")


@dataclass(frozen=True)
class Cut:
    """The first records of a text, cut by one candidate.

    Attributes:
        style: the candidate.
        records: with all fields.
        width: columns of most records; alike: the share of records that have so many.
    """

    style: Style
    records: tuple[Record, ...]
    width: int
    alike: float

    @property
    def fits(self) -> bool:
        """Whether (nearly) all lines have as many columns, and more than one."""
        return self.width > 1 and self.alike >= _ALIKE


def named_separator(given: str) -> str:
    """The separator that a setting names.

    Raises:
        InputError: it is neither a name nor a single character.
    """
    separator = _BY_NAME.get(given, given)
    one_sign = len(separator) == 1 and separator.isascii() and not separator.isalnum() and separator not in '"\r\n'
    if separator not in SEPARATORS and not one_sign:
        raise InputError(f"unknown separator '{given}'{suggest(given, [*_BY_NAME, '::', ';', '|', ','])}")
    return separator


def cut_by(path: Path, head: str, separator: str, comment: str) -> Cut:
    """Cut the head of a text by one separator."""
    style = Style(separator, None, comment)
    style = replace(style, quoting=quotes_are_quotes(path, head, style))
    found = first_records(path, head, style)
    return Cut(style, found, *usual_width(found))


def best_cut(path: Path, head: str, comment: str) -> tuple[Cut, list[Cut]]:
    """The candidate that explains most, and all of them.

    A candidate leaves something unexplained where another one, which fits as well, still stands in (nearly) all fields
    of a column.

    Raises:
        InputError: two candidates are as good as each other, or each leaves something that the other explains.
    """
    cuts = [cut_by(path, head, separator, comment) for separator in SEPARATORS]
    fitting = [cut for cut in cuts if cut.fits]
    if len(fitting) > 1:
        left = {cut.style.separator: _unexplained(cut, fitting) for cut in fitting}
        least = min(left.values())
        good = [cut for cut in fitting if left[cut.style.separator] == least]
        if any(cut.style.separator == "\t" for cut in good):  # blanks cut at tabs, too
            good = [cut for cut in good if cut.style.separator != " "]
        same = [cut for cut in (good[1:] if least == 0 else fitting) if _fields(cut) != _fields(good[0])]
        if same:
            one, other = good[0], same[0]
            raise InputError(
                f"{path}, line {one.records[0].line}: '{shortened(one.records[0].text)}' could be {one.width} columns "
                f"separated by {separator_name(one.style.separator)}, or {other.width} by "
                f'{separator_name(other.style.separator)}; say which (--set data.separator="{one.style.separator}")'
            )
        return good[0], cuts
    ragged = [cut for cut in cuts if cut.width > 1]
    best = fitting or sorted(ragged, key=lambda cut: (-cut.alike, cut.style.separator == " ", -cut.width))
    return (best or cuts)[0], cuts


def _fields(cut: Cut) -> list[list[str]]:
    return [record.fields for record in cut.records]


def _unexplained(cut: Cut, fitting: Sequence[Cut]) -> int:
    """Columns in (nearly) all of whose fields, outside quotes, stands a separator of another candidate that fits."""
    rows = [record.fields for record in cut.records if len(record.fields) == cut.width]
    if cut.style.quoting:
        bare = [_QUOTED.sub('""', record.text) for record in cut.records]
        rows = [row for text in bare if len(row := split_plain(text, cut.style.separator)) == cut.width]
    others = [other.style.separator for other in fitting if other is not cut]
    return sum(any(_stands_in(column, other) for other in others) for column in map(list, zip(*rows, strict=True)))


def _stands_in(fields: list[str], separator: str) -> bool:
    """Whether a separator is in the fields of a column, and not as part of a date, a number or a name."""
    inside = [field.strip(" ") for field in fields if separator in field.strip(" ")]
    if len(inside) < _ALIKE * len(fields):
        return False
    if separator == ",":
        return not all(map(_DECIMAL_COMMA.fullmatch, inside))
    if separator == " ":  # names hold blanks, and so do dates
        return all(all(map(is_number, field.split())) for field in inside) and not _are_dates(inside)
    return True


def _are_dates(fields: list[str]) -> bool:
    return notation_of(fields) is not None
