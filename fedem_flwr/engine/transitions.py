"""A directional map between items, by ridge regression on sums over positions: from the newest items to the next ones.

x of a position is the decayed sum of its item and those before it, y that of the items after it. Clients send the sums
of x xᵀ and x yᵀ once; W = (Σ x xᵀ + λ I)⁻¹ Σ x yᵀ, of which each row's largest entries are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from fedem_flwr.engine.history import History, IntArray
from fedem_flwr.engine.parallel import in_parallel

_POSITIONS = 1 << 16  # held at a time, in one worker


@dataclass(frozen=True)
class Windows:
    """How far x and y look, and how their items count.

    Attributes:
        before, after: items. decay_before, decay_after: an item counts so much of the one that is nearer.
    """

    before: int = 20
    after: int = 6
    decay_before: float = 0.8
    decay_after: float = 0.7


WINDOWS = Windows()


@dataclass
class PairSums:
    """Sums over a cohort's positions, of the pairs of items that occur.

    Attributes:
        pairs: (t,) i · m + j, ascending. gram: (t,) Σ x_i x_j. cross: (t,) Σ x_i y_j.
    """

    pairs: IntArray
    gram: np.ndarray
    cross: np.ndarray


def pair_sums(history: History, who: IntArray, windows: Windows = WINDOWS) -> PairSums:
    """Sums of users `who` (positions in the cohort) over the positions of their histories that have a next item."""
    counts = history.counts()[who]
    ends = np.cumsum(counts)
    cuts = np.searchsorted(ends, np.arange(_POSITIONS, int(ends[-1]) if len(ends) else 0, _POSITIONS))
    blocks = [block for block in np.split(who, np.unique(cuts)) if len(block)]
    m = history.items

    def add_up(block: IntArray) -> tuple[csr_matrix, csr_matrix]:
        x, y = _sides(history, block, windows)
        return x.T @ x, x.T @ y

    gram = cross = csr_matrix((m, m), dtype=np.float64)
    for of_x, of_y in in_parallel(add_up, blocks, torch.device("cpu"), "pairs of items"):
        gram, cross = gram + of_x, cross + of_y
    of_gram, of_cross = _codes(gram), _codes(cross)
    pairs = np.union1d(of_gram, of_cross)
    return PairSums(pairs, _at(of_gram, gram.data, pairs), _at(of_cross, cross.data, pairs))


def _sides(history: History, who: IntArray, windows: Windows) -> tuple[csr_matrix, csr_matrix]:
    """x and y of the positions of some users that have a next item, (positions, m) each."""
    counts = np.diff(history.offsets)[who]
    owner = np.repeat(np.arange(len(who)), counts)
    starts = np.asarray(history.offsets)[who]
    place = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    items = np.asarray(history.values[np.repeat(starts, counts) + place], np.int64)
    everything = np.arange(len(items))

    def decayed(lags: range, decay: float) -> csr_matrix:
        rows, columns, values = [], [], []
        for step, lag in enumerate(lags):
            inside = (place + lag >= 0) & (place + lag < counts[owner])
            rows.append(everything[inside])
            columns.append(items[everything[inside] + lag])
            values.append(np.full(len(rows[-1]), decay**step))
        where = (np.concatenate(rows), np.concatenate(columns))
        return csr_matrix((np.concatenate(values), where), shape=(len(items), history.items))

    follows = place + 1 < counts[owner]
    x = decayed(range(0, -windows.before, -1), windows.decay_before)
    y = decayed(range(1, windows.after + 1), windows.decay_after)
    return x[follows], y[follows]


def _codes(matrix: csr_matrix) -> IntArray:
    """(n,) the pairs of a matrix's entries, in their order."""
    rows = np.repeat(np.arange(matrix.shape[0], dtype=np.int64), np.diff(matrix.indptr))
    return np.asarray(rows * matrix.shape[1] + matrix.indices)


def _at(codes: IntArray, values: np.ndarray, pairs: IntArray) -> np.ndarray:
    """(t,) values by pair, 0 where a pair has none."""
    found = np.zeros(len(pairs))
    found[np.searchsorted(pairs, codes)] = values
    return found


def directional_map(gram: Tensor, cross: Tensor, ridge: float, entries: int) -> tuple[Tensor, Tensor]:
    """The map, cut to each row's largest entries.

    Args:
        gram: (m, m) Σ x xᵀ. cross: (m, m) Σ x yᵀ. Both float64; `gram` is changed.
        ridge: factor on the mean of gram's diagonal, which is then λ.
        entries: e, kept in a row.

    Returns:
        items (m, e) int32 and their values (m, e) float32.
    """
    strength = max(float(ridge * gram.diagonal().mean()), 1e-12)
    gram.diagonal().add_(strength)
    factor, failed = torch.linalg.cholesky_ex(gram)
    if int(failed):
        raise FloatingPointError("the sums of pairs of items are not those of any histories")
    weights = torch.cholesky_solve(cross, factor)
    kept = weights.abs().topk(min(entries, weights.shape[1]), dim=1).indices
    return kept.int(), weights.gather(1, kept).float()


@dataclass(frozen=True)
class MapScores:
    """Scores x W of what comes next; a component of `evaluation.scorers.HistoryScorer`.

    Attributes:
        items, values: (m, e), see `directional_map`.
    """

    items: Tensor
    values: Tensor
    windows: Windows = WINDOWS

    def scores(self, history: History, who: IntArray) -> tuple[Tensor, None]:
        """(k', m); zeros for users without history."""
        newest, _ = history.padded(who, self.windows.before)
        m, device = len(self.items), self.items.device
        newest = newest.to(device)
        age = torch.arange(newest.shape[1] - 1, -1, -1, device=device)
        weight = self.windows.decay_before**age * (newest < m)  # (k, b)
        rows = newest.clamp(max=m - 1)
        found = self.values.new_zeros(len(who), m)
        for column in range(newest.shape[1]):  # (k, e) at a time
            part = self.values[rows[:, column]] * weight[:, column, None]
            found.scatter_add_(1, self.items[rows[:, column]].long(), part)
        return found, None
