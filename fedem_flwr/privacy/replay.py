"""The replay attack: who knows the run's seed draws a user's negatives once more, and takes them away.

A draw is a rank among the items that a user may be given as negatives, so it depends on the history only by how many of
its items come first. Going through the items in order, that is known at every step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedem_flwr.privacy.intersection import Mask


def replayed_rows(touched: Sequence[Mask], ranks: Sequence[NDArray[np.int64]]) -> Mask:
    """(m,) the items whose rows the draws of one user do not explain: its history.

    An item is one of the history if that explains better in how many rounds its row was touched. Where both explain it
    alike (a positive right before an item that was drawn in every round), the two are taken for each other.

    Args:
        touched: (m,) rows of the user that were touched, a round each.
        ranks: the ranks that its draws gave, in any order, a round each.
    """
    seen = np.stack(touched)  # (R, m)
    drawn = np.zeros_like(seen)
    for row, given in zip(drawn, ranks, strict=True):
        row[given] = True
    chosen, positives = np.zeros(seen.shape[1], dtype=bool), 0
    for item in range(seen.shape[1]):
        now = seen[:, item]
        if (~now).sum() < (now != drawn[:, item - positives]).sum():
            chosen[item] = True
            positives += 1
    return chosen
