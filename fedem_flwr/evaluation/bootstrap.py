"""Whether one method beats another on the same users: a paired bootstrap, and the control to beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

_CELLS = 2**22  # counts held at a time


@dataclass(frozen=True)
class Interval:
    """A percentile bootstrap interval of a mean difference.

    Attributes:
        mean: of a - b over the users.
        low, high: the interval's ends; it excludes 0 where the difference is larger than chance among users explains.
        replicates: how often the users were drawn anew.
    """

    mean: float
    low: float
    high: float
    replicates: int


def paired_interval(a: ArrayLike, b: ArrayLike, *, seed: int, replicates: int = 2000, level: float = 0.95) -> Interval:
    """Interval of the mean of a - b, users drawn with replacement (Efron 1979).

    Swapping ``a`` and ``b`` negates the interval exactly. A replicate only needs how often each distinct difference is
    drawn, which is multinomial: for HR@10 and NDCG@10, with few distinct values, time and memory do not grow with
    the number of users.

    Args:
        a: (n,) a metric of each user under one method.
        b: (n,) the same metric of the same users under another.
        seed: of the draws; the same arguments give the same interval to the last bit.
        replicates: number of draws of n users.
        level: the interval's nominal coverage.

    Raises:
        ValueError: shapes that do not pair up, no users, figures that are not finite, a level outside (0, 1), or no
            replicates.
    """
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    if np.shape(a) != np.shape(b) or difference.ndim != 1 or not difference.size:
        raise ValueError(f"a and b must be one figure a user, not of shapes {np.shape(a)} and {np.shape(b)}")
    if not np.isfinite(difference).all():
        raise ValueError("a and b must be finite")
    if not 0 < level < 1 or replicates < 1:
        raise ValueError(f"level {level} must be inside (0, 1), and replicates {replicates} at least 1")
    sign = next(iter(np.sign(difference[difference != 0])), 1.0)  # a swap then changes nothing but this sign
    values, counts = np.unique(sign * difference, return_counts=True)
    users, rng = difference.size, np.random.default_rng(seed)
    means = np.empty(replicates)
    batch = max(1, _CELLS // len(values))
    for start in range(0, replicates, batch):
        stop = min(start + batch, replicates)
        drawn = rng.multinomial(users, counts / users, size=stop - start)  # (r, distinct values)
        means[start:stop] = (drawn * values).sum(1) / users  # a BLAS product's last bits depend on its shape
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    ends = sorted((float(sign * low), float(sign * high)))
    return Interval(float(sign * ((values * counts).sum() / users)), ends[0], ends[1], replicates)


def best_control(controls: Mapping[str, Mapping[str, Any] | None], metric: str) -> str | None:
    """Name of the control with the highest figure; None where there is no control with such a figure.

    Args:
        controls: results by name; one that is missing or was skipped does not take part.
        metric: where a result has the figure, such as ``"full/ndcg@10"`` or ``"validation/sampled99/hr@10"``.
    """
    figures = {name: figure for name, result in controls.items() if (figure := _figure(result, metric)) is not None}
    return max(figures, key=figures.__getitem__, default=None)


def _figure(result: Any, metric: str) -> float | None:
    for key in metric.split("/"):
        result = result.get(key) if isinstance(result, Mapping) else None
    return float(result) if isinstance(result, int | float) else None
