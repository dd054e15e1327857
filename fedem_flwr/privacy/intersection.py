"""The intersection attack: a user's positives are trained in every round, its negatives are drawn anew.

Rows that change in every upload of one user are therefore its history, after a few rounds. The server needs nothing
but the tables that it has sent and received.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Table = NDArray[np.float32] | NDArray[np.float64]
TOLERANCE = 1e-5  # of a row's size: rounding in float32 moves a row by less, an optimiser's step by more


@dataclass(frozen=True)
class Score:
    """How well candidates match a history.

    Attributes:
        precision: share of the candidates that are in the history; 0 where there are none.
        recall: share of the history that is among the candidates; 1 for an empty history.
    """

    precision: float
    recall: float

    @property
    def isolated(self) -> bool:
        """Whether the candidates are the history, and nothing else."""
        return self.precision == self.recall == 1.0


def row_changes(before: Table, after: Table, received: Table | None = None) -> NDArray[np.float64]:
    """(m, d) what training did to the rows of a user's table, as far as the server can tell.

    Args:
        before: (m, d) the table that the round started from: the user's last upload, or the common initial table.
        after: (m, d) the table that the user uploaded.
        received: (m, d) the table that was sent to the user, where it merges that with its own. A row that is merged
            and not trained lies between the two, wherever the secret ρ puts it: what lies along that line is left out.
    """
    change = after.astype(np.float64) - before
    if received is None:
        return change
    line = received.astype(np.float64) - before
    along = (change * line).sum(1) / np.maximum((line**2).sum(1), np.finfo(np.float64).tiny)
    return np.asarray(change - along[:, None] * line)


def touched_rows(before: Table, after: Table, received: Table | None = None) -> Mask:
    """(m,) which rows were trained between two tables; arguments as of `row_changes`."""
    tables = [table for table in (before, after, received) if table is not None]
    size = np.max([np.abs(table).max(1) for table in tables], axis=0)  # (m,)
    moved: Mask = np.abs(row_changes(before, after, received)).max(1) > TOLERANCE * size
    return moved


def intersect(rounds: Sequence[Mask]) -> Mask:
    """(m,) the rows that were touched in every round.

    Args:
        rounds: (m,) touched rows of one and the same upload, a round each; at least one.
    """
    candidates: Mask = np.logical_and.reduce(rounds)
    return candidates


def best_rows(scores: NDArray[np.float64], count: int) -> Mask:
    """(m,) the rows with the highest scores above 0: as many as the user has items, and those that tie with the last.

    Summed over rounds, scores forgive what an intersection does not: a row that a well-fitted user has once not moved.

    Args:
        scores: (m,) how often a row was touched, or what another attack makes of it.
        count: at least 1; the server knows how many items a user has.
    """
    limit = np.sort(scores)[-min(count, len(scores))]
    best: Mask = (scores >= limit) & (scores > 0)
    return best


def score(candidates: Mask, history: NDArray[np.int64]) -> Score:
    """Compare candidates (m,) with the items of a history."""
    found, known = int(candidates[np.unique(history)].sum()), len(np.unique(history))
    return Score(found / max(1, int(candidates.sum())), found / known if known else 1.0)


def rounds_to_isolate(rounds: Sequence[Mask], history: NDArray[np.int64]) -> int | None:
    """How many rounds it takes until the candidates are the history; None: more than there are."""
    for count in range(1, len(rounds) + 1):
        if score(intersect(rounds[:count]), history).isolated:
            return count
    return None
