"""Texts of one user a line, its items after it: what tells them from tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fedem_flwr.data.columns import RATING_SCALE, Columns
from fedem_flwr.data.records import split_plain
from fedem_flwr.data.roles import shortened
from fedem_flwr.data.separators import Cut, cut_by
from fedem_flwr.data.texts import Text, separator_name
from fedem_flwr.data.times import are_unix_times, is_number
from fedem_flwr.errors import InputError

_FEWEST_LISTS: Final = 5  # lines without which nothing says that they are lists
MOSTLY: Final = 0.6
"""Share of the lines of a damaged table that have as many columns, at least."""
_WIDE: Final = 8  # columns that no table without a header has
_HIGHEST: Final = 10.0  # rating of a scale that is recognised by its values


def are_lists(text: Text, cut: Cut, columns: Columns, named: list[str] | None) -> bool:
    """Whether each line is a user and its items, rather than one interaction.

    Lists are whole numbers, and no user has two lines. Where all lines are equally long, only values tell: ratings of a
    scale and times speak for interactions, five columns and more without either for lists.

    Raises:
        InputError: it could be both.
    """
    told = any((columns.separator, columns.header, columns.given(), named))
    users = [record.fields[0] for record in cut.records]
    if told or not all_whole(cut) or len(set(users)) < len(users) or len(users) < 2:
        return False
    if not cut.fits:
        return cut.alike < MOSTLY or cut.width > _WIDE
    others = [
        list(column) for column in zip(*(r.fields for r in cut.records if len(r.fields) == cut.width), strict=True)
    ]
    timed = any(map(are_unix_times, others[2:]))
    rated = cut.width in (3, 4) and _are_ratings(others[2])
    if cut.width == 2 or timed or rated:
        return False
    if cut.width > 4:
        return True
    more = ", rating" if cut.width == 3 else ", rating, time"
    raise InputError(
        f"{text.path}, line {cut.records[0].line}: '{shortened(cut.records[0].text)}' could be one interaction (user, "
        f"item{more}) or one user and {cut.width - 1} items, as no user has a second "
        "line; say which (--set data.format=rows, or lists)"
    )


def items_in_one_field(text: Text, head: str, comment: str, cut: Cut) -> Cut:
    """The cut of lists whose users a tab divides from their items, and blanks the items; else the one there is.

    Raises:
        InputError: two other separators divide users from items, and items.
    """
    for outer in ("\t", ";", "|", ":", ","):
        lines = [record.text.split(outer) for record in cut.records]
        if len(lines) < 2 or not all(len(line) == 2 and is_whole(line[0].strip()) for line in lines):
            continue
        users = [line[0].strip() for line in lines]
        for inner in (" ", ",", ";", "|"):
            items = [split_plain(line[1].strip(), inner) for line in lines]
            several = sum(len(each) > 1 for each in items)
            if several < MOSTLY * len(lines) or not all(all(map(is_whole, each)) for each in items):
                continue
            if len(set(users)) < len(users) or inner == outer:
                continue
            if (outer, inner) == ("\t", " "):
                return cut_by(text.path, head, " ", comment)
            raise InputError(
                f"{text.path}, line {cut.records[0].line}: '{shortened(cut.records[0].text)}' seems to be one user and "
                f"its items, with {separator_name(outer)} after the user and {separator_name(inner)} between items; "
                "separate all by one of them, and if need be --set data.format=lists"
            )
    return cut


def may_be_lists(cut: Cut) -> bool:
    """Whether lines may be users and their items by names: of many lengths or fields, and without a table's numbers."""
    users = [record.fields[0] for record in cut.records]
    if len(users) < _FEWEST_LISTS or len(set(users)) < len(users) or cut.width < 3:
        return False
    others = [field for record in cut.records for field in record.fields[2:]]
    return (not cut.fits or cut.width > 4) and sum(map(is_number, others)) < len(others) / 2


def all_whole(cut: Cut) -> bool:
    """Whether every field is a whole number, and (nearly) every line has two or more."""
    several = sum(len(record.fields) > 1 for record in cut.records)
    return several >= 0.9 * len(cut.records) and all(all(map(is_whole, record.fields)) for record in cut.records)


def is_whole(field: str) -> bool:
    """Whether a field is a whole number, without a sign."""
    return field.isascii() and field.isdigit()


def _are_ratings(values: Sequence[str]) -> bool:
    return len(set(values)) <= RATING_SCALE and all(float(value) <= _HIGHEST for value in values)
