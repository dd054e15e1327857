"""Work out a text's layout from its first records: what it is, its separator, its header, and which column is what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from fedem_flwr.data.columns import ABSENT, ROLES, SAMPLE_ROWS, Columns, is_known, plain, rank
from fedem_flwr.data.listed import MOSTLY, all_whole, are_lists, is_whole, items_in_one_field, may_be_lists
from fedem_flwr.data.records import Record, Style, first_records, records
from fedem_flwr.data.roles import Roles, find_roles, shortened
from fedem_flwr.data.separators import SEPARATORS, Cut, best_cut, cut_by, named_separator
from fedem_flwr.data.texts import Text, separator_name
from fedem_flwr.data.times import is_number, notation_of
from fedem_flwr.errors import InputError

NEEDED: Final = ("user", "item")
_MATRIX: Final = "%%MatrixMarket"
_COMMENTS: Final = ("#", "%")


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
        entries: how many rows the text says that it has.
    """

    style: Style
    lists: bool
    skip: int
    header: int
    width: int
    roles: Roles
    entries: int | None = None


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
    if head.startswith(_MATRIX):
        return _matrix(text, head, columns, needed)
    comment, named = _comment(text, head, columns)
    given = None if columns.separator is None else named_separator(columns.separator)
    first = next(records(path, head, Style(" ", False, comment)), None)
    if first is None:
        raise InputError(f"{path}: nothing but comments; expected rows of user, item[, rating][, time]")
    cut = cut_by(path, head, given, comment) if given is not None else _guess(text, head, comment, columns, needed)
    if needed == NEEDED and columns.form in (None, "lists") and given is None and not columns.given() and named is None:
        cut = items_in_one_field(text, head, comment, cut)
    if columns.form == "lists" or (columns.form is None and are_lists(text, cut, columns, named)):
        return Layout(cut.style, True, 0, 0, 0, Roles({"user": 0, "item": 1}, (), None))
    if cut.width == 1 and len(needed) > 1:
        raise InputError(
            f"{path}, line {first.line}: one column only in '{shortened(first.text)}'; expected user and item "
            "separated by tab, comma, '::', ';', '|' or spaces"
        )
    return _table(text, cut, columns, named, needed)


def _matrix(text: Text, head: str, columns: Columns, needed: tuple[str, ...]) -> Layout:
    """The layout of a sparse matrix in MatrixMarket's format: its size stands between the comments and the entries.

    Source: R. F. Boisvert, R. Pozo, K. A. Remington, The Matrix Market Exchange Formats, NISTIR 5935, 1996.

    Raises:
        InputError: another kind of matrix, or a size that is none.
    """
    kind = head[len(_MATRIX) : head.index("\n")].lower().split()
    if kind[:2] != ["matrix", "coordinate"] or kind[2:3] == ["complex"] or kind[3:] != ["general"]:
        raise InputError(
            f"{text.path}, line 1: a MatrixMarket file of the kind '{shortened(' '.join(kind))}'; what can be read is "
            "'matrix coordinate integer general' (or real, or pattern)"
        )
    style = Style(" ", False, "%")
    size, *rows = first_records(text.path, head, style) or [Record(1, head, [])]
    if len(size.fields) != 3 or not all(map(is_whole, size.fields)) or not rows:
        raise InputError(
            f"{text.path}, line {size.line}: '{shortened(size.text)}' is no size (rows, columns, "
            "entries) with entries below it"
        )
    width = 2 if kind[2:3] == ["pattern"] else 3
    where, seen = f"{text.path}, line {rows[0].line}", f"'{shortened(rows[0].text)}'"
    roles = find_roles(where, seen, None, [record.fields for record in rows], width, columns, needed)
    return Layout(style, False, size.line, 0, width, roles, int(size.fields[2]))


def _guess(text: Text, head: str, comment: str, columns: Columns, needed: tuple[str, ...]) -> Cut:
    if columns.form == "lists":
        every = [cut_by(text.path, head, separator, comment) for separator in SEPARATORS]
        return max(every, key=_fields)
    cut, cuts = best_cut(text.path, head, comment)
    if needed == NEEDED:
        if cut.fits:
            return cut
        whole = [each for each in cuts if all_whole(each)]  # a user a line, with as many items as it has
        return max(whole, key=_fields, default=cut)
    # A list of names: blanks in them separate nothing, unless it is a header's names that they separate.
    if cut.style.separator == " " and not _names_items(cut.records[0].fields, columns):
        return cut_by(text.path, head, "\t", comment)
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
    if names is not None:
        refuse_twins(where, names, columns)
        _refuse_row_names(where, names, cut)
    elif columns.form is None and not columns.given() and may_be_lists(cut):
        raise InputError(
            f"{where}: '{shortened(first.text)}' is no row of user, item[, rating][, time] separated by "
            f"{separator_name(cut.style.separator)}; if a line is one user and its items: --set data.format=lists, "
            "else say what separates columns (data.separator), or which is what (data.user_column, data.item_column)"
        )
    if len(needed) == 1 and width == 1:
        columns = replace(columns, item=0)
    elif len(needed) == 1 and names is None and columns.item is None:
        raise InputError(f"{where}: several columns need a header with 'item' (and 'user') in it")
    roles = find_roles(where, seen, names, [record.fields for record in rows], width, columns, needed)
    skip = rows[0].line - 1 if header else 0
    return Layout(cut.style, False, skip, first.line if header else 0, width, roles)


def refuse_twins(where: str, names: Sequence[str], columns: Columns) -> None:
    """Refuse a column that is given, or would be found, by a name that two columns have.

    Raises:
        InputError: there is one.
    """
    given = columns.given()
    for role in ROLES:
        ranked = [(place, name) for name in names if (place := rank(role, name)) is not None]
        name = given.get(role, min(ranked, default=(0, None))[1])
        places = [at for at, each in enumerate(names) if each == name]
        if len(places) > 1:
            raise InputError(
                f"{where}: two columns are called '{name}' (numbers {', '.join(map(str, places))}, from 0); say which "
                f"is the {role} by its number (--set data.{role}_column={places[0]})"
            )


def _refuse_row_names(where: str, names: Sequence[str], cut: Cut) -> None:
    """A header that is one name short: of row names, as R writes them, or of an end that each row has."""
    rows = [record.fields for record in cut.records[1:]]
    if cut.width != len(names) + 1 or sum(len(row) == cut.width for row in rows) < MOSTLY * len(rows):
        return
    cause = "if the first column holds the rows' names (R's write.table), write without them (row.names=FALSE)"
    if not any(row[-1] for row in rows):
        cause = "the rows end with a separator: remove it"
    raise InputError(
        f"{where}: the header has {len(names)} names, and the rows have {cut.width} columns; {cause}, or give the "
        "header one name more, in its place; or a separator inside a label or number needs quotes"
    )


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
