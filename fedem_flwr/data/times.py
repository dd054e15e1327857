"""Times as text: which notation they are in, and what they are in seconds."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedem_flwr.errors import InputError

ISO: Final = "ISO8601"
_CLOCKS: Final = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f")
_DATES: Final = ("%Y/%m/%d", "%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%d %b %Y", "%b %d, %Y")
_FORMATS: Final = (
    *(date + clock for date in (*_DATES, "%m %d, %Y", "%B %d, %Y") for clock in _CLOCKS),
    "%a %b %d %H:%M:%S %z %Y",
    "%a, %d %b %Y %H:%M:%S %z",
)
_UNITS: Final = ((1.0, "seconds"), (1e3, "milliseconds"), (1e6, "microseconds"), (1e9, "nanoseconds"))
_EARLIEST, _LATEST = 3e8, 4.1e9  # 1979 and 2099, in seconds
_NUMBER: Final = re.compile(r" *[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)? *", re.ASCII)


def is_number(text: str) -> bool:
    """Whether a field is a finite number."""
    return _NUMBER.fullmatch(text) is not None and math.isfinite(float(text))


def unit_of(value: float) -> tuple[float, str] | None:
    """Units in a second, and their name, if a number looks like a time since 1970."""
    return next((unit for unit in _UNITS if _EARLIEST <= value / unit[0] <= _LATEST), None)


def are_unix_times(values: Sequence[str]) -> bool:
    """Whether all of some fields are numbers that look like times since 1970."""
    return bool(values) and all(is_number(each) and unit_of(float(each)) is not None for each in values)


def seconds(texts: Sequence[str] | NDArray[np.object_], notation: str) -> NDArray[np.float64]:
    """(rows,) seconds since 1970 in UTC, NaN where a text is not in the notation; dates without a zone count as UTC.

    Raises:
        InputError: the notation is none.
    """
    import pandas as pd

    stripped = pd.Series(np.asarray(texts, dtype=object), dtype=object).str.strip(" ")
    try:
        parsed = pd.to_datetime(stripped, format=notation, utc=True, errors="coerce")
    except (ValueError, TypeError) as error:
        raise InputError(f"data.time_format = '{notation}' is none of strptime's: {error}") from None
    values = (parsed - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)
    return np.asarray(values, np.float64)


def notation_of(where: str, column: str, values: Sequence[str], given: str | None) -> str | None:
    """The notation that most of some fields are in; None where they are no dates.

    Args:
        where: what errors begin with.
        column: what they call the column.
        given: the notation, where it is known.

    Raises:
        InputError: two notations fit equally well and give different times, or the one given is none.
    """
    filled = [value for value in values if value]
    if given is not None:
        fit = np.isfinite(seconds(filled, given)).sum()
        return given if 0 < len(filled) <= 2 * fit else None
    if not filled or sum(map(_looks_dated, filled)) < len(filled) / 2:
        return None
    if np.isfinite(seconds(filled, ISO)).all():
        return ISO
    fits: dict[str, tuple[int, NDArray[np.float64]]] = {}
    for notation in (ISO, *_FORMATS):
        parsed = seconds(filled, notation)
        if good := int(np.isfinite(parsed).sum()):
            fits[notation] = good, parsed
    most = max((good for good, _ in fits.values()), default=0)
    if most < len(filled) / 2:
        return None
    best = [(notation, parsed) for notation, (good, parsed) in fits.items() if good == most]
    for notation, parsed in best[1:]:
        if not np.array_equal(parsed, best[0][1], equal_nan=True):
            raise InputError(
                f"{where}: {column} holds dates such as '{filled[0]}', which could be {best[0][0]} or {notation}; say "
                f'which (--set data.time_format="{best[0][0]}")'
            )
    return best[0][0]


def _looks_dated(text: str) -> bool:
    return 6 <= len(text) <= 40 and sum(each.isdigit() for each in text) >= 4 and not is_number(text)
