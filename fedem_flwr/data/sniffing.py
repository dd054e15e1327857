"""Work out a text's layout from its first records: what it is, its separator, its header, and which column is what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from fedem_flwr.data.columns import ABSENT, RATING_SCALE, ROLES, SAMPLE_ROWS, Columns, is_known, plain, rank
from fedem_flwr.data.roles import Roles, find_roles, shortened
from fedem_flwr.data.separators import SEPARATORS, Cut, best_cut, cut_by, named_separator
from fedem_flwr.data.texts import Record, Style, Text, records
from fedem_flwr.data.times import are_unix_times, is_number, notation_of
from fedem_flwr.errors import InputError

NEEDED: Final = ("user", "item")
_COMMENTS: Final = ("#", "%")
_MOSTLY: Final = 0.6  # of the lines of a damaged table have as many columns, at least
_WIDE: Final = 8  # columns that no table without a header has
_HIGHEST: Final = 10.0  # rating of a scale that is recognised by its values


@dataclass(frozen=True)
class Layout:
    """How the lines of a text are read.

    Attributes:
        style: how they are cut.
        lists: whether a line is one user and its items.
        skip: number of the last line before the first row: of the header, or 0.
        header: number of the header's line; 0: there is none.
        width: columns of every row; 0 for lists.
        roles: which column is what.
    """

    style: Style
    lists: bool
    skip: int
    header: int
    width: int
    roles: Roles


def find_layout(text: Text, columns: Columns, needed: tuple[str, ...] = NEEDED) -> Layout:
    """Find a text's layout from its head; what `columns` gives is not guessed.

    Args:
        needed: roles without which it is no data set.

    Raises:
        InputError: no layout fits, or two fit equally well; the message names the setting that decides.
    """
    path, head = text.path, text.head.decode(errors="replace")
    if not head.strip():
        raise InputError(f"{path}: the file is empty; expected rows of user, item[, rating][, time]")
    comment, named = _comment(text, head, columns)
    given = None if columns.separator is None else named_separator(columns.separator)
    first = next(records(path, head, Style(" ", False, comment)), None)
    if first is None:
        raise InputError(f"{path}: nothing but comments; expected rows of user, item[, rating][, time]")
    cut = cut_by(path, head, given, comment) if given is not None else _guess(text, head, comment, columns, needed)
    if columns.form == "lists" or (columns.form is None and _are_lists(text, cut, columns, named)):
        return Layout(cut.style, True, 0, 0, 0, Roles({"user": 0, "item": 1}, (), None))
    if cut.width == 1 and len(needed) > 1:
        raise InputError(
            f"{path}, line {first.line}: one column only in '{shortened(first.text)}'; expected user and item "
            "separated by tab, comma, '::', ';', '|' or spaces"
        )
    return _table(text, cut, columns, named, needed)


def _guess(text: Text, head: str, comment: str, columns: Columns, needed: tuple[str, ...]) -> Cut:
    if columns.form == "lists":
        every = [cut_by(text.path, head, separator, comment) for separator in SEPARATORS]
        return max(every, key=_fields)
    cut, cuts = best_cut(text.path, head, comment)
    if needed == NEEDED:
        if cut.fits:
            return cut
        whole = [each for each in cuts if _all_whole(each)]  # a user a line, with as many items as it has
        return max(whole, key=_fields, default=cut)
    # A list of names: blanks in them separate nothing, unless it is a header's names that they separate.
    if cut.style.separator == " " and not _names_items(cut.records[0].fields, columns):
        return Cut(
            Style("\t", False, comment), tuple(Record(r.line, r.text, [r.text.strip()]) for r in cut.records), 1, 1
        )
    return cut


def _fields(cut: Cut) -> int:
    return sum(len(record.fields) for record in cut.records)


def _names_items(fields: Sequence[str], columns: Columns) -> bool:
    items = [rank("item", name) is not None or (name, "item") in columns.aliases for name in fields]
    return any(items) and all(
        item or any(rank(r, name) is not None for r in ROLES) for item, name in zip(items, fields, strict=True)
    )


def _comment(text: Text, head: str, columns: Columns) -> tuple[str, list[str] | None]:
    """What comments start with, and the names that the last one above the rows holds, if it does."""
    lines = [line for line in head.split("\n")[: SAMPLE_ROWS + 1] if line.strip()]
    if columns.comment is not None:
        return columns.comment, None
    prefix = next((each for each in _COMMENTS if lines[0].startswith(each)), "")
    if not prefix or all(line.startswith(prefix) for line in lines):
        return "", None
    above = [line for at, line in enumerate(lines) if all(each.startswith(prefix) for each in lines[: at + 1])]
    said = above[-1].lstrip(prefix).strip()
    if not said:
        return prefix, None
    cut = best_cut(text.path, head, prefix)[0]
    fields = cut_by(text.path, said, cut.style.separator, "").records[0].fields
    if len(fields) != cut.width or cut.width < 2:
        return prefix, None
    if any(map(is_known, fields)):
        return prefix, fields
    raise InputError(
        f"{text.path}, line 1: '{shortened(above[-1])}' starts with '{prefix}' and has as many columns as the rows: "
        f'is it a comment (--set data.comment="{prefix}"), or a row (--set data.comment="")?'
    )


def _all_whole(cut: Cut) -> bool:
    """Whether every field is a whole number, and (nearly) every line has two or more."""
    several = sum(len(record.fields) > 1 for record in cut.records)
    return several >= 0.9 * len(cut.records) and all(all(map(_is_whole, record.fields)) for record in cut.records)


def _is_whole(field: str) -> bool:
    return field.isascii() and field.isdigit()


def _are_lists(text: Text, cut: Cut, columns: Columns, named: list[str] | None) -> bool:
    """Whether each line is a user and its items, rather than one interaction.

    Lists are whole numbers, and no user has two lines. Where all lines are equally long, only values tell: ratings of a
    scale and times speak for interactions, five columns and more without either for lists.

    Raises:
        InputError: it could be both.
    """
    told = any((columns.separator, columns.header, columns.given(), named))
    users = [record.fields[0] for record in cut.records]
    if told or not _all_whole(cut) or len(set(users)) < len(users) or len(users) < 2:
        return False
    if not cut.fits:
        return cut.alike < _MOSTLY or cut.width > _WIDE
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


def _are_ratings(values: Sequence[str]) -> bool:
    return len(set(values)) <= RATING_SCALE and all(float(value) <= _HIGHEST for value in values)


def _table(text: Text, cut: Cut, columns: Columns, named: list[str] | None, needed: tuple[str, ...]) -> Layout:
    """The layout of one interaction a line."""
    first, *below = cut.records
    header = named is None and (columns.header if columns.header is not None else _has_header(first, below, columns))
    rows = below if header else [first, *below]
    if not rows:
        raise InputError(f"{text.path}: a header and no rows; expected rows of user, item[, rating][, time] below it")
    names = named if named is not None else first.fields if header else None
    width = len(first.fields) if header else cut.width
    where = f"{text.path}, line {first.line}"
    seen = f"header '{shortened(first.text)}'" if header else f"'{shortened(first.text)}'"
    if len(needed) == 1 and width == 1:
        columns = replace(columns, item=0)
    elif len(needed) == 1 and names is None and columns.item is None:
        raise InputError(f"{where}: several columns need a header with 'item' (and 'user') in it")
    roles = find_roles(where, seen, names, [record.fields for record in rows], width, columns, needed)
    skip = rows[0].line - 1 if header else 0
    return Layout(cut.style, False, skip, first.line if header else 0, width, roles)


def _has_header(first: Record, below: Sequence[Record], columns: Columns) -> bool:
    """Whether the first line names the columns.

    It does where a column is named in the settings, where a name is known, and where it is unlike what stands below it:
    no number above numbers, no date above dates, no digit above labels that all have one.
    """
    names = first.fields
    if any(isinstance(at, str) and at != ABSENT for at in columns.given().values()) or any(
        name in names for name, _ in columns.aliases
    ):
        return True
    known = [{role for role in ("user", "item", "rating", "time") if rank(role, name) is not None} for name in names]
    if len(set().union(*known)) > 1 and any(map(is_known, names)):
        return True
    if len(names) == 1 and rank("item", names[0]) is not None:
        return True
    if not below or any(map(is_number, names)):
        return False
    unlike = [_is_unlike(name, [r.fields[at] for r in below if len(r.fields) > at]) for at, name in enumerate(names)]
    return any(each == "number" for each in unlike) or (len(unlike) > 1 and all(unlike[:2]))


def _is_unlike(name: str, values: Sequence[str]) -> str:
    """What all values below are and the name is not; empty where they are alike."""
    filled = [value for value in values if value]
    if not filled or not plain(name):
        return ""
    if all(map(is_number, filled)):
        return "" if is_number(name) else "number"
    if any(each.isdigit() for each in name):
        return ""
    if notation_of(filled) is not None:
        return "number"
    return "digit" if len(filled) > 1 and all(any(c.isdigit() for c in value) for value in filled) else ""
