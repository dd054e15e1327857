"""Histories that `fedem recommend` is asked about: ids, or a file that is read as the run's data were."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from fedem_flwr.config import Config
from fedem_flwr.data import ABSENT, Columns, Interactions, read_interactions
from fedem_flwr.data.opening import ENDINGS
from fedem_flwr.data.reading import Reading
from fedem_flwr.errors import InputError
from fedem_flwr.protocol.order import chronological, tie_bits
from fedem_flwr.protocol.rules import rules_of
from fedem_flwr.protocol.split import IntArray
from fedem_flwr.randomness import label_bits
from fedem_flwr.runtime.inputs import columns_of

_FILES: Final = {".csv", ".tsv", ".txt", ".dat", ".item", ".inter", ".json", ".jsonl", ".parquet", *ENDINGS}
"""Endings of what must be a file's name."""
_LAYOUT: Final = {
    *("format", "encoding", "separator", "header", "comment", "time_format", "order", "min_rating"),
    *("user_column", "item_column", "rating_column", "time_column"),
}


def read_histories(
    given: str, config: Config | None = None, trained: Reading | None = None, said: Mapping[str, Any] | None = None
) -> dict[str | None, list[str]]:
    """Items by user, oldest first: a list of ids, or a file of one history, belong to nobody (None).

    Args:
        given: ids separated by commas or blanks, or the path of a file in any form that training reads, or of an item a
            line. A column of times orders its rows, rows at equal times as training does; ratings that training drops
            are dropped.
        config: of the run. A file of the shape of its data is read with its settings; of others, the names of columns
            count, and that there is no rating or no time.
        trained: how the run's data were read.
        said: settings of the section `data` for this file; then they alone tell its shape.

    Raises:
        InputError: no such file, or not of that form.
    """
    path = Path(given)
    ids = [part for part in re.split(r"[,\s]+", given) if part]
    try:
        there = path.is_file()
    except (OSError, ValueError):  # a list that is too long for a name
        there = False
    if not there and len(ids) == 1 and ({*path.suffixes} & _FILES or "/" in given):
        raise InputError(f"--history {given}: there is no such file")
    if not there:
        return {None: ids}
    if said:
        config = _with(config or Config(), said)
        rows = read_interactions(path, columns_of(config), needed=("item",))
    else:
        rows = _read(path, columns_of(config) if config else Columns(), trained)
    kept = np.arange(rows.rows)
    if rows.rating is not None:
        least = None if config is None else config.data.min_rating
        kept = kept[rows.rating > 0 if least is None else rows.rating >= least]
    if rows.time is not None:
        kept = kept[_order(rows, kept, config)]
    histories: dict[str | None, list[str]] = {str(user) or None: [] for user in rows.user_ids}
    items = rows.item_ids[rows.item[kept]].tolist()
    for user, item in zip(rows.user_ids[rows.user[kept]].tolist(), items, strict=True):
        histories[user or None].append(item)
    return histories


def _order(rows: Interactions, kept: IntArray, config: Config | None) -> IntArray:
    """By user and time; at equal times as the run's protocol has it."""
    user, item = rows.user[kept], rows.item[kept]

    def draw(positions: IntArray) -> IntArray:
        users, items = label_bits(np.asarray(rows.user_ids, np.str_)), label_bits(np.asarray(rows.item_ids, np.str_))
        return tie_bits(config.run.seed if config else 0, users[user[positions]], items[item[positions]])

    in_file = config is not None and not rules_of(config.data.protocol).distinct
    time = None if rows.time is None else rows.time[kept]
    return chronological(user, rows.users, time, None if in_file else draw)


def _with(config: Config, said: Mapping[str, Any]) -> Config:
    """The run's configuration, with another layout."""
    wrong = [name for name in said if name not in _LAYOUT]
    if wrong:
        raise InputError(
            f"--set data.{wrong[0]} says nothing of a history; what does is data.{', '.join(sorted(_LAYOUT))}"
        )
    fresh = {name: type(config.data)().model_dump()[name] for name in _LAYOUT - {"min_rating"}}
    return config.changed("data", **{**fresh, **said})


def _read(path: Path, known: Columns, trained: Reading | None) -> Interactions:
    """As the run's data, where the file has their shape; else by its own header, or as items, one a line."""
    of_run = _like(trained, known)
    own = _names(known)
    failure = None
    for columns in _easier(of_run) if of_run != Columns() else ():
        try:
            rows = read_interactions(path, columns)
        except InputError as error:
            failure = failure or error
            continue
        if trained is None or _shape(rows.reading) == _shape(trained):
            return rows
        break
    last = None
    for columns in _easier(replace(own, encoding=known.encoding, time_format=known.time_format)):
        try:
            return read_interactions(path, columns, needed=("item",))
        except InputError as error:
            last = last or error
    assert last is not None
    if failure is None or str(failure) == str(last):
        raise last
    raise InputError(f"{last}; and read as the run's data: {failure}")


def _shape(reading: Reading | None) -> tuple[str, bool] | None:
    return None if reading is None else (reading.form, bool(reading.header))


def _like(trained: Reading | None, known: Columns) -> Columns:
    """What is known of a file that has the shape of the run's data; `Columns()` where that is nothing."""
    if trained is None or trained.form == "dataframe":
        return known
    if trained.form == "lists":
        return replace(known, form="lists", separator=known.separator or trained.separator)
    if trained.form == "rows" and not trained.header:
        at = {each.role: each.number for each in trained.columns if each.role is not None}
        none = {role: ABSENT for role in ("rating", "time") if role not in at and not known.in_order}
        return replace(known, separator=known.separator or trained.separator, **{**none, **at})  # type: ignore[arg-type]
    return known


def _names(known: Columns) -> Columns:
    """The names that a run's configuration gives its columns, for files that have them too; and what there is not."""
    aliases = [(at, role) for role, at in known.given().items() if isinstance(at, str) and at != ABSENT]
    none = {role: ABSENT for role in ("rating", "time") if getattr(known, role) == ABSENT}
    return Columns(in_order=known.in_order, aliases=tuple(aliases), **none)  # type: ignore[arg-type]


def _easier(columns: Columns) -> list[Columns]:
    """The same with fewer demands: UTF-8 before another encoding, any notation of dates after the one given."""
    notations = dict.fromkeys((columns.time_format, None))
    encodings = dict.fromkeys((None, columns.encoding))
    return [replace(columns, time_format=each, encoding=encoding) for each in notations for encoding in encodings]
