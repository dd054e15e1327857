"""The two instants of the protocol ``temporal``, from shares of users, times or dates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedem_flwr.data.times import ISO, is_number, seconds, unit_of
from fedem_flwr.errors import InputError

DEFAULT_INSTANTS = (0.5, 0.75)


def instants_of(wanted: Sequence[float | str], last: NDArray[np.float64]) -> tuple[float, float]:
    """Both instants in the data's own unit.

    Args:
        wanted: below 1 a share of the users: the earliest time at which at least so many are behind their last row;
            else a time, or a date.
        last: (n,) time of each user's last row.

    Raises:
        InputError: one is neither, or they are not in order.
    """
    first, second = (_instant(each, last) for each in wanted)
    if not first < second:
        raise InputError(
            f"temporal.instants = {list(wanted)}: the first ({first:g}) is not before the second ({second:g}): "
            "choose instants that are further apart"
        )
    return first, second


def _instant(wanted: float | str, last: NDArray[np.float64]) -> float:
    if isinstance(wanted, str) and not is_number(wanted):
        found = float(seconds([wanted], ISO)[0])
        unit = unit_of(float(last.max()))
        if math.isnan(found):
            raise InputError(f"temporal.instants: '{wanted}' is no date: write it as 2008-01-31")
        if unit is None:
            raise InputError(
                f"temporal.instants: '{wanted}' is a date, and the data's times ({last.min():g} to {last.max():g}) are "
                "none: write a time in their unit, or a share of users"
            )
        return found * unit[0]
    value = float(wanted)
    if not 0 < value < 1:
        return value
    ordered = np.sort(last)
    return float(ordered[min(len(ordered) - 1, math.floor(value * len(ordered)))])
