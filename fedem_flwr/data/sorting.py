"""Stable sorting of integer keys, several times as fast as numpy's own where key and position fit into one integer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]


def stable_order(keys: Int64Array, bound: int) -> Int64Array:
    """What ``np.argsort(keys, kind="stable")`` gives.

    Args:
        keys: (rows,) integers in [0, bound).
        bound: more than the largest key; a small one leaves room for the positions and so for the fast way.
    """
    bits = max(len(keys) - 1, 0).bit_length()
    if (bound - 1).bit_length() + bits > 63:
        return np.argsort(keys, kind="stable")
    packed = (keys << bits) | np.arange(len(keys))
    packed.sort()  # all different, so that the fastest sort will do
    order: Int64Array = packed & ((1 << bits) - 1)
    return order


def first_of_each(keys: Int64Array, bound: int) -> Int64Array:
    """Ascending positions of the first appearance of every distinct key; arguments as for `stable_order`."""
    order = stable_order(keys, bound)
    ordered = keys[order]
    first = np.zeros(len(keys), bool)
    first[order[:1]] = True
    first[order[1:][ordered[1:] != ordered[:-1]]] = True
    return np.flatnonzero(first)
