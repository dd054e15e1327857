"""What was read, looked at as a whole: rows that are none, labels that stand for nobody, one label in two ways."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from fedem_flwr.data.interactions import Int64Array, Interactions, StrArray, first_appearance
from fedem_flwr.data.roles import shortened
from fedem_flwr.errors import InputError

MISSING: Final = (
    *("NULL", "null", "Null", "NaN", "nan", "NAN", "None", "NA", "N/A", "n/a", "<NA>", "#N/A", "NaT"),
    *("\\N", "(null)", "undefined"),
)
"""What programs write for a user or an item that they do not have."""
_FEWEST_LISTS: Final = 5  # rows without which it says nothing that no user has two
_FEWEST_ROWS: Final = 20  # of which a first line can be told to be the sizes


def refuse_missing(where: str, data: Interactions) -> None:
    """Refuse labels that stand for a missing one: all rows with it would be one large user, or item.

    Raises:
        InputError: there are such.
    """
    for role, codes, labels in (("user", data.user, data.user_ids), ("item", data.item, data.item_ids)):
        found = np.flatnonzero(np.logical_or.reduce([labels == word for word in MISSING]))
        if len(found):
            rows = np.flatnonzero(np.isin(codes, found))
            raise InputError(
                f"{where}: the {role} is missing in {len(rows):,} of {data.rows:,} rows (written '{labels[found[0]]}', "
                f"first in row {rows[0]}, from 0); remove these rows, or if it is a name, write it otherwise "
                f"('{labels[found[0]]}_')"
            )


def looked_over(where: str, data: Interactions, *, sized: bool) -> Interactions:
    """The same rows, where they can be meant; labels that differ by ".0" alone are one.

    Args:
        where: what errors begin with.
        sized: whether the first row may be the sizes of the table.

    Raises:
        InputError: rows that are none, or labels that stand for nobody.
    """
    refuse_missing(where, data)
    _refuse_header(where, data)
    if sized:
        _refuse_sizes(where, data)
    notes = []
    if data.users == data.rows >= _FEWEST_LISTS and data.reading is not None and data.reading.form == "rows":
        notes.append("no user has two rows (if a line is one user and its items: --set data.format=lists)")
    for role in ("user", "item"):
        codes, labels = (data.user, data.user_ids) if role == "user" else (data.item, data.item_ids)
        twins = _twins(labels)
        if len(twins):
            label, count = shortened(str(labels[twins[0, 0]])), len(twins)
            notes.append(f"{count:,} {role}s written both like '{label}' and like '{label[:-2]}' taken as one each")
            codes, labels = _merged(codes, labels, twins)
            if role == "user":
                data = replace(data, user=codes, user_ids=labels)
            else:
                data = replace(data, item=codes, item_ids=labels)
    if notes and data.reading is not None:
        data = replace(data, reading=replace(data.reading, notes=(*data.reading.notes, *notes)))
    return data


def _twins(labels: StrArray) -> Int64Array:
    """(twins, 2) codes of whole numbers with ".0", and of the same without it."""
    with_zero = np.flatnonzero(np.char.endswith(labels, ".0"))
    if not len(with_zero):
        return np.empty((0, 2), np.int64)
    places = {label: code for code, label in enumerate(labels.tolist())}
    found = [(code, places.get(str(labels[code])[:-2], -1)) for code in with_zero.tolist()]
    return np.array([(a, b) for a, b in found if b >= 0 and str(labels[b]).isdecimal()], np.int64).reshape(-1, 2)


def _merged(codes: Int64Array, labels: StrArray, twins: Int64Array) -> tuple[Int64Array, StrArray]:
    one = np.arange(len(labels))
    one[twins[:, 0]] = twins[:, 1]
    merged, kept = first_appearance(one[codes])
    return merged, labels[kept]


def _refuse_header(where: str, data: Interactions) -> None:
    """A header among the rows: of two files, one put below the other."""
    if data.reading is None or not data.reading.header:
        return
    names = {column.role: column.name for column in data.reading.columns}
    if "user" not in names:
        return
    user, item = np.flatnonzero(data.user_ids == names["user"]), np.flatnonzero(data.item_ids == names["item"])
    if not len(user) or not len(item):
        return
    rows = np.flatnonzero(np.isin(data.user, user) & np.isin(data.item, item))
    if len(rows):
        raise InputError(
            f"{where}: the header '{names['user']}, {names['item']}' stands again among the rows ({len(rows):,}, "
            f"first as row {rows[0]}, from 0); remove it there"
        )


def _refuse_sizes(where: str, data: Interactions) -> None:
    """A first line that holds how many users, items and perhaps rows there are.

    It does where its numbers are the labels of no other row, and as large as these numbers would be.
    """
    user, item = str(data.user_ids[0]), str(data.item_ids[0])
    below = data.rows - 1
    if below < _FEWEST_ROWS or not (user.isdecimal() and item.isdecimal()):
        return
    if np.count_nonzero(data.user == 0) > 1 or np.count_nonzero(data.item == 0) > 1:
        return
    users, items = data.users - 1, data.items - 1
    counted = data.rating is not None and data.rating[0] == below
    if counted or (users <= int(user) <= 2 * users and items <= int(item) <= 2 * items):
        raise InputError(
            f"{where}: the first line ('{user}, {item}') seems to be the table's sizes, not a row: there are {users:,} "
            f"users, {items:,} items and {below:,} rows below it; skip it (--set data.header=true), or say that it is "
            "a row (--set data.header=false)"
        )
