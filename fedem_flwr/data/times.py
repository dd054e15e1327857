"""Times as text: which notation they are in, and what they are in seconds."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedem_flwr.data.notations import digits_in, notations_like, notations_of_digits
from fedem_flwr.errors import InputError

ISO: Final = "ISO8601"
AS_NUMBERS: Final = "number"
"""As a notation that is given: times are numbers in a unit of their own, whatever they look like."""

_OR: Final = " or "  # between notations of which the rows so far leave several
_UNITS: Final = ((1.0, "seconds"), (1e3, "milliseconds"), (1e6, "microseconds"), (1e9, "nanoseconds"))
_EARLIEST, _LATEST = 3e8, 4.1e9  # 1979 and 2099, in seconds
_FIRST, _LAST = -2_208_988_800, 4_133_980_800  # the years 1900 and 2101: what digits without separators may mean
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


def unit_name(value: float) -> str:
    """The unit of a number that looks like a time since 1970; empty where it does not."""
    unit = unit_of(value)
    return "" if unit is None else unit[1]


def other_unit(values: NDArray[np.float64], unit: str = "") -> int | None:
    """Position of the first time since 1970 that is in another unit than the others; None: there is none.

    Args:
        values: (rows,) finite numbers; those that are no such times, as 0, do not count.
        unit: of the others; empty: that of the first one.
    """
    if not len(values):
        return None
    low, high = unit_name(float(values.min())), unit_name(float(values.max()))
    if low == high and (unit or low) == low:
        return None
    codes = np.zeros(len(values), np.int8)
    for code, (per_second, _) in enumerate(_UNITS, 1):
        codes[(values >= _EARLIEST * per_second) & (values <= _LATEST * per_second)] = code
    known = np.flatnonzero(codes)
    first = [code for code, (_, name) in enumerate(_UNITS, 1) if name == unit] or codes[known[:1]]
    other = known[codes[known] != first]
    return int(other[0]) if len(other) else None


def choices(notation: str) -> list[str]:
    """The notations of which it is open which one it is; one where it is not."""
    return notation.split(_OR)


def is_open(notation: str) -> bool:
    """Whether all rows must be there to tell the notation, or to write numbers as dates."""
    return _OR in notation or digits_in(notation) > 0


def seconds_in_any(texts: Sequence[str], notation: str) -> NDArray[np.float64]:
    """(rows,) seconds in the first of some notations that a text is in, NaN where it is in none."""
    found = np.full(len(texts), np.nan)
    for each in choices(notation):
        found = np.where(np.isfinite(found), found, seconds(texts, each))
    return found


def seconds(texts: Sequence[str] | NDArray[np.object_], notation: str) -> NDArray[np.float64]:
    """(rows,) seconds since 1970 in UTC, NaN where a text is not in the notation; dates without a zone count as UTC.

    Raises:
        InputError: the notation is none.
    """
    import pandas as pd

    stripped = pd.Series(np.asarray(texts, dtype=object), dtype=object).str.strip(" ")
    if width := digits_in(notation):
        stripped = stripped.str.removesuffix(".0")
        filled = stripped.str.zfill(width) if width == 8 and not notation.startswith("%Y") else stripped
        stripped = filled.where(filled.str.fullmatch(rf"\d{{{width}}}"), None)
    try:
        parsed = pd.to_datetime(stripped, format=notation, utc=True, errors="coerce")
    except (ValueError, TypeError) as error:
        raise InputError(f"data.time_format = '{notation}' is none of strptime's: {error}") from None
    stamps = parsed.dt.tz_localize(None).to_numpy().astype("datetime64[us]")  # nanoseconds do not reach to every year
    values = np.where(np.isnat(stamps), np.nan, stamps.astype(np.int64) / 1e6)
    if width:
        values = np.where((values >= _FIRST) & (values < _LAST), values, np.nan)
    return values


def notation_of(values: Sequence[str], given: str | None = None) -> str | None:
    """The notation that most of some fields are in; None where they are no dates.

    Args:
        values: some fields; empty ones do not count.
        given: the notation, where it is known.

    Returns:
        the notation; where several fit equally well all of them, for `settled` to choose from when all rows are there.

    Raises:
        InputError: the one given is none.
    """
    filled = [value for value in values if value]
    if given == AS_NUMBERS:
        return None
    if given is not None:
        fit = np.isfinite(seconds(filled, given)).sum()
        return given if 0 < len(filled) <= 2 * fit else None
    if filled and all(map(is_number, filled)):
        whole = [value.removesuffix(".0") for value in filled]
        fitting = [each for each in notations_of_digits(whole) if np.isfinite(seconds(whole, each)).all()]
        return _OR.join(fitting) or None
    if not filled or sum(map(_looks_dated, filled)) < len(filled) / 2:
        return None
    if np.isfinite(seconds(filled, ISO)).all():
        return ISO
    fits = {each: int(np.isfinite(seconds(filled, each)).sum()) for each in (ISO, *notations_like(filled))}
    most = max(fits.values())
    if most < len(filled) / 2:
        return None
    return _OR.join(notation for notation, good in fits.items() if good == most)


def settled(where: str, column: str, texts: Sequence[str], notation: str) -> tuple[str, NDArray[np.float64]]:
    """The one notation that all texts are in, and their seconds.

    Args:
        where, column: what errors begin with, and what they call the column.
        texts: the different ones of all rows; each is in one of the notations.
        notation: one, or several of which it is open which one it is.

    Raises:
        InputError: no notation fits all, or two do and give different times.
    """
    parsed = {each: seconds(texts, each) for each in choices(notation)}
    fits = {each: values for each, values in parsed.items() if np.isfinite(values).all()}
    if not fits:
        bad = [f"'{texts[int(np.flatnonzero(~np.isfinite(v))[0])]}' is not {each}" for each, v in parsed.items()]
        raise InputError(
            f"{where}: {column} holds times in more than one notation: {', '.join(bad[:3])}; write all in one, or say "
            "it (data.time_format)"
        )
    (first, values), *others = fits.items()
    for other, differing in others:
        if not np.array_equal(values, differing):
            example = texts[int(np.flatnonzero(values != differing)[0])]
            raise InputError(
                f"{where}: {column} holds dates such as '{example}', which could be {first} or {other}, and no row "
                f'tells; say which (--set data.time_format="{first}")'
            )
    return first, values


def _looks_dated(text: str) -> bool:
    return 6 <= len(text) <= 40 and sum(each.isdigit() for each in text) >= 3 and not is_number(text)
