"""The order that a user's rows are in: by time; at equal times by a keyed draw, or as in the file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedem_flwr.data.sorting import stable_order
from fedem_flwr.protocol.split import IntArray
from fedem_flwr.randomness import keyed_bits

Draw = Callable[[IntArray], IntArray]
"""(r,) positions of rows to (r,) integers that the rows are ordered by where nothing else decides."""

_LONGEST_RANGE: Final = 2.0**62  # of whole numbers as float64, so that their differences are integers


def chronological(user: IntArray, users: int, time: NDArray[Any] | None, draw: Draw | None) -> IntArray:
    """Positions of rows by user, then by time; rows that are equal in both in the order drawn.

    Args:
        user: (rows,) codes in [0, users).
        time: (rows,); None: all at the same time.
        draw: for rows at equal times; None: they stay in the order given.
    """
    order = _by_user_and_time(user, users, time)
    if draw is None or not len(order):
        return order
    ordered = user[order]
    same = ordered[1:] == ordered[:-1]
    if time is not None:
        ordered = time[order]
        same &= ordered[1:] == ordered[:-1]
    if not same.any():
        return order
    tied = np.append(same, False)
    tied[1:] |= same
    positions = np.flatnonzero(tied)
    rows = order[positions]
    first = np.append(True, ~same)[positions]
    order[positions] = rows[np.lexsort((draw(rows), np.cumsum(first)))]
    return order


def tie_bits(seed: int, users: Tensor, items: Tensor) -> IntArray:
    """(r,) what rows at equal times are ordered by: drawn by the seed and the data's own ids, wherever they stand.

    Args:
        users, items: (r,) `fedem_flwr.randomness.label_bits` of the rows' ids.
    """
    bits: IntArray = keyed_bits(seed, "split/held-out", users, items).numpy()
    return bits


def _by_user_and_time(user: IntArray, users: int, time: NDArray[Any] | None) -> IntArray:
    """Stable; the rows of one user after another, oldest first, are what they are."""
    if time is None:
        return stable_order(user, users)
    if (user[1:] >= user[:-1]).all() and ((user[1:] > user[:-1]) | (time[1:] >= time[:-1])).all():
        return np.arange(len(user), dtype=np.int64)
    first, last = float(time.min()), float(time.max())
    if last - first < _LONGEST_RANGE and (time == np.floor(time)).all():
        by_time = stable_order((time - first).astype(np.int64), int(last - first) + 1)
    else:
        by_time = np.argsort(time, kind="stable")
    ordered: IntArray = by_time[stable_order(user[by_time], users)]
    return ordered
