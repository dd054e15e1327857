"""Dates that are in several columns: a day beside its month and year, a date beside its time of day."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fedem_flwr.data.columns import ABSENT, plain
from fedem_flwr.data.notations import is_clock
from fedem_flwr.data.times import is_number
from fedem_flwr.errors import InputError

_YEARS: Final = frozenset(("year", "yr", "yyyy"))
_OF_DATES: Final = _YEARS | frozenset(("month", "mon", "mm", "day", "dd", "dayofmonth", "dayofyear", "week", "weekday"))
_HOURS: Final = frozenset(("hour", "hours", "hr", "hh", "hourofday"))
_REMEDY: Final = "write date and time of day into one column, such as '2019-03-01 12:30:05'"


def check_parts(
    where: str, names: Sequence[str], values: Sequence[Sequence[str]], time: int | None, notation: str | None
) -> None:
    """Make sure that the time is not a part of one that other columns hold the rest of.

    Args:
        where: what errors begin with.
        names: of the columns; empty ones without a header.
        values: (columns, rows) what is in them.
        time: the column that was taken for the time, without having been given; None: none was.
        notation: of the times.

    Raises:
        InputError: it is.
    """
    parts = [column for column, name in enumerate(names) if plain(name) in _OF_DATES and column != time]
    years = [column for column in parts if plain(names[column]) in _YEARS]
    called = {column: f"'{name}'" if name else f"{column}" for column, name in enumerate(names)}
    if time is None and years and len(parts) > 1:
        several = " and ".join(called[column] for column in parts)
        raise InputError(
            f"{where}: the columns {several} are parts of a date; {_REMEDY}, or --set data.time_column={ABSENT}"
        )
    if time is None:
        return
    setting = f"--set data.time_column={names[time] or time}"
    if plain(names[time]) in _OF_DATES and parts:
        several = " and ".join(called[column] for column in parts)
        raise InputError(
            f"{where}: column {called[time]} is a part of a date, and {several} beside it another; {_REMEDY} (to go by "
            f"this column alone: {setting})"
        )
    if not _is_date_alone(values[time], notation):
        return
    for column, texts in enumerate(values):
        filled = [text for text in texts if text]
        hours = plain(names[column]) in _HOURS and all(is_number(text) and 0 <= float(text) < 24 for text in filled)
        if column != time and filled and (hours or all(map(is_clock, filled))):
            raise InputError(
                f"{where}: column {called[time]} holds dates, and column {called[column]} times of day; {_REMEDY} (to "
                f"go by the date alone: {setting})"
            )


def check_empty(where: str, field: str) -> None:
    """Make sure that a column that was empty in the first rows is, where it could have been the rating or the time.

    Raises:
        InputError: there is something in a field of it.
    """
    if field.strip():
        raise InputError(
            f"{where}: '{field[:60]}' in a column that is empty in the first rows; say which columns are the rating "
            f"and the time (--set data.rating_column=..., data.time_column=..., '{ABSENT}' for none), and fill what is "
            "empty in one that is used"
        )


def _is_date_alone(values: Sequence[str], notation: str | None) -> bool:
    return notation is not None and not any(":" in value for value in values) and "%H" not in notation
