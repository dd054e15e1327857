"""What repeated measurements say: medians with intervals, exact rank tests, exponents. No distribution is assumed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

CERTAIN = 0.95  # of an interval


class Estimate(NamedTuple):
    """A median, and an interval of the true one."""

    median: float
    low: float
    high: float


def median_of(values: Sequence[float], certain: float = CERTAIN) -> Estimate:
    """The median with an interval between two of the sorted values.

    The true median lies outside the k-th value from either end with probability 2 P(Binomial(n, 1/2) < k); k is the
    largest that keeps this below 1 - `certain`. With fewer than six values the interval is from the smallest to the
    largest, which is certain at 1 - 2^(1 - n) only.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no values: there is no median")
    ordered, n = sorted(values), len(values)
    k, below = 1, 2 * 0.5**n
    while k < (n + 1) // 2 and (below := below + 2 * math.comb(n, k) * 0.5**n) <= 1 - certain:
        k += 1
    return Estimate(float(np.median(ordered)), ordered[k - 1], ordered[n - k])


def chance_of_larger(new: Sequence[float], old: Sequence[float]) -> float:
    """The exact chance that so many pairs have the larger value in `new`, were both drawn alike (Mann and Whitney).

    One-sided. A tie counts as not larger, so with ties the chance is at most what it is said to be.
    """
    larger = sum(a > b for a in new for b in old)
    ways = _orders(len(new), len(old))
    return sum(ways[larger:]) / sum(ways)


def least_chance(new: int, old: int) -> float:
    """The smallest chance that so many values can give: every new one is larger than every old one."""
    return 1 / math.comb(new + old, new)


@cache
def _orders(n: int, m: int) -> tuple[int, ...]:
    """Of all orders of n + m values, how many have u = 0 .. n m pairs whose larger value is of the n."""
    if n == 0 or m == 0:
        return (1,)
    # The largest value is of the n, and larger than all m; or it is of the m.
    first, second = (0,) * m + _orders(n - 1, m), _orders(n, m - 1)
    return tuple((first[u] if u < len(first) else 0) + (second[u] if u < len(second) else 0) for u in range(n * m + 1))


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The e of the least-squares fit of seconds = c · size^e on logarithms.

    Raises:
        ValueError: fewer than two different sizes, or something that is not positive.
    """
    if len(sizes) != len(seconds) or len(set(sizes)) < 2 or min(*sizes, *seconds) <= 0:
        raise ValueError(f"an exponent needs two sizes and positive seconds, not {list(sizes)} and {list(seconds)}")
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
