"""Read a file of interactions: text in many shapes, JSON lines or Parquet, compressed or not.

Three steps: open the file (opening.py); work out from its head what it is and which column is what (sniffing.py,
roles.py), where two readings that do equally well are refused; and read it piece by piece (text_rows.py, objects.py).
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Final, get_args

from fedem_flwr.data.columns import ABSENT, Columns
from fedem_flwr.data.gathering import Gathered
from fedem_flwr.data.interactions import Interactions
from fedem_flwr.data.objects import json_pieces, parquet_pieces
from fedem_flwr.data.opening import PARQUET, Opened, opened, stem
from fedem_flwr.data.plausible import looked_over
from fedem_flwr.data.reading import ColumnRead, Form, Reading
from fedem_flwr.data.sniffing import NEEDED, find_layout
from fedem_flwr.data.text_rows import list_pieces, row_pieces
from fedem_flwr.data.texts import Text, encoding_of
from fedem_flwr.errors import InputError, suggest

__all__ = ["ABSENT", "FORMS", "Columns", "read_interactions"]

_MATRIX: Final = "a matrix of users (rows) and items (columns), by MatrixMarket"
FORMS: Final = tuple(form for form in get_args(Form) if form != "dataframe")


def read_interactions(
    path: Path, columns: Columns | None = None, name: str | None = None, needed: tuple[str, ...] = NEEDED
) -> Interactions:
    """Read a file; rows stay in file order, duplicates included.

    Args:
        path: the file, plain or compressed with gzip, bzip2, xz or zstd.
        columns: what is known of its layout; the rest is detected.
        name: the data set's name; the file's stem where None.
        needed: roles that must have a column; without "user", all rows may be one nameless user's.

    Returns:
        the rows, whose `reading` says how they were read.

    Raises:
        InputError: a missing, empty, truncated, malformed or ambiguous file; the message names the line and the remedy.
    """
    known = columns or Columns()
    if known.form is not None and known.form not in FORMS:
        raise InputError(f"data.format = '{known.form}' is unknown{suggest(known.form, FORMS)}")
    gathered = Gathered()
    with opened(path) as file:
        reading = _read(file, known, needed, gathered)
    time = next((column for column in reading.columns if column.role == "time"), None)
    if time is not None:
        reading = reading.with_notation(gathered.settle_times(str(path), f"column {time.called}"))
    if not gathered.rows:
        raise InputError(f"{path}: no rows; expected rows of user, item[, rating][, time]")
    if known.in_order:
        reading = replace(reading, notes=(*reading.notes, "rows taken as being in the order of time (data.order)"))
    data = gathered.interactions(name or stem(path), lambda rows: replace(reading, rows=rows), in_order=known.in_order)
    sized = reading.form == "rows" and not reading.header and known.header is None and _MATRIX not in reading.notes
    return looked_over(str(path), data, sized=sized)


def _read(file: Opened, known: Columns, needed: tuple[str, ...], gathered: Gathered) -> Reading:
    source = file.path.name
    if file.head.startswith(PARQUET) or known.form == "parquet":
        roles, pieces = parquet_pieces(file, known, needed)
        gathered.notation = roles.notation
        for values in pieces:
            gathered.add(values)
        return Reading(source, "parquet", file.compression, columns=roles.columns)
    text = Text(file, encoding_of(file, known.encoding))
    encoding = text.encoding.upper().removesuffix("-SIG")
    if known.form == "jsonl" or (known.form is None and re.match(rb"\s*(\{|\[\s*[\[{])", text.head)):
        roles, pieces = json_pieces(text, known, needed)
        gathered.notation = roles.notation
        for values in pieces:
            gathered.add(values)
        return Reading(source, "jsonl", file.compression, encoding, columns=roles.columns)
    layout = find_layout(text, known, needed)
    notes: tuple[str, ...] = ()
    if layout.lists:
        empty: list[int] = []
        for values in list_pieces(text, layout, empty.append):
            gathered.add(values)
        if sum(empty):
            notes = (f"{sum(empty):,} users without an item",)
        found: tuple[ColumnRead, ...] = (
            ColumnRead(0, role="user", how="position"),
            ColumnRead(1, "all that follow", role="item", how="position"),
        )
        if not known.in_order:
            notes = (*notes, "the order in a line is not taken as time (if it is: --set data.order=rows)")
    else:
        gathered.notation = layout.roles.notation
        for values in row_pieces(text, layout):
            gathered.add(values)
        if layout.entries is not None:
            notes = (_MATRIX,)
            if gathered.rows != layout.entries:
                raise InputError(
                    f"{file.path}, line {layout.skip}: {layout.entries:,} entries are said, and {gathered.rows:,} are "
                    "there; truncated? Fetch it again"
                )
        found = layout.roles.columns
    style = layout.style
    form: Form = "lists" if layout.lists else "rows"
    return Reading(
        source, form, file.compression, encoding, style.separator, layout.header, style.comment, found, notes=notes
    )
