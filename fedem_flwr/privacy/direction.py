"""The direction attack: in one upload a user's positives are pulled to its embedding, and negatives pushed away.

So the changes of the touched rows lie along one axis, ± the embedding. How many items the user has, which the server
knows, tells which end is which. It does not matter whose key drew the negatives.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedem_flwr.privacy.intersection import Mask


def pulls(changes: NDArray[np.float64], touched: Mask, positives: int) -> NDArray[np.float64]:
    """(m,) cosines of rows' changes with their common axis: positive where pulled, 0 for rows that were not touched.

    Args:
        changes: (m, d) of one upload; see `intersection.row_changes`.
        touched: (m,) which rows were trained.
        positives: how many items the user has: its end of the axis is the one with about so many rows.
    """
    moved = changes[touched]
    unit = moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    _, vectors = np.linalg.eigh(unit.T @ unit)  # (d, d), ascending
    cosines = unit @ vectors[:, -1]
    ends = int((cosines > 0).sum()), int((cosines < 0).sum())
    found = np.zeros(len(changes))
    found[touched] = cosines if abs(ends[0] - positives) <= abs(ends[1] - positives) else -cosines
    return found
