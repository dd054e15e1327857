"""Differences between several methods on the same users: one paired bootstrap for all of them, Holm, effect sizes.

The users are what is drawn: seeds are averaged for each user first, so that a user of five seeds is one user, and not
five (its figures are not independent).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

REPLICATES = 10_000  # small enough a p for Holm over a hundred comparisons
_CELLS = 2**24  # counts of users held at a time


@dataclass(frozen=True)
class Difference:
    """A mean difference over users, and how sure it is.

    Attributes:
        mean: of a - b over the users.
        low, high: ends of its percentile interval.
        p: two-sided, of no difference, from the same replicates; never below 2 / (replicates + 1).
        effect: Cohen's d for pairs: the mean difference over the users' standard deviation of it; 0 where all are 0.
        better, worse: shares of users whose figure is higher, and lower.
        users: how many.
    """

    mean: float
    low: float
    high: float
    p: float
    effect: float
    better: float
    worse: float
    users: int


def paired_differences(
    differences: ArrayLike, *, seed: int = 0, replicates: int = REPLICATES, level: float = 0.95
) -> list[Difference]:
    """The same draws of users for all comparisons (Efron 1979), so that these are consistent with each other.

    Args:
        differences: (c, n) of each comparison and user: the metric under one method minus that under the other.
        seed: of the draws.

    Raises:
        ValueError: no users, figures that are not finite, or a level outside (0, 1).
    """
    pairs = np.atleast_2d(np.asarray(differences, np.float64))  # (c, n)
    comparisons, users = pairs.shape
    if not users or not np.isfinite(pairs).all():
        raise ValueError("differences must be finite, of at least one user")
    if not 0 < level < 1 or replicates < 1:
        raise ValueError(f"level {level} must be inside (0, 1), and replicates {replicates} at least 1")
    rng = np.random.default_rng(seed)
    means = np.empty((replicates, comparisons))
    batch = max(1, _CELLS // users)
    for start in range(0, replicates, batch):
        rows = min(batch, replicates - start)
        drawn = rng.integers(0, users, (rows, users))
        places = (np.arange(rows)[:, None] * users + drawn).ravel()
        counts = np.bincount(places, minlength=rows * users).reshape(rows, users)  # (r, n) how often each is drawn
        means[start : start + rows] = counts.astype(np.float64) @ pairs.T / users
    ends = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [_difference(pairs[at], means[:, at], *ends[:, at]) for at in range(comparisons)]


def _difference(each: NDArray[np.float64], means: NDArray[np.float64], low: float, high: float) -> Difference:
    mean = float(each.mean())
    beyond = min(int((means <= 0).sum()), int((means >= 0).sum()))
    spread = float(each.std(ddof=1)) if each.size > 1 else 0.0
    return Difference(
        mean,
        float(low),
        float(high),
        min(1.0, 2 * (beyond + 1) / (len(means) + 1)),
        mean / spread if spread > 0 else 0.0,
        float((each > 0).mean()),
        float((each < 0).mean()),
        each.size,
    )


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for being several (Holm 1979): the family's chance of one false alarm stays below the level.

    Returns:
        in the order given; each at most 1.
    """
    order = sorted(range(len(p)), key=lambda at: p[at])
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, at in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[at]))
        adjusted[at] = highest
    return adjusted
