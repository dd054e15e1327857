"""Medians with intervals, exact rank tests, exponents, and taking turns by a clock that is told how late it is."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from benches import Told
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, mannwhitneyu

from fedem_flwr.bench.statistics import chance_of_larger, exponent, least_chance, median_of
from fedem_flwr.bench.timing import Clock, Side, in_turns

values = st.lists(st.integers(0, 9).map(float), min_size=1, max_size=5)


@given(n=st.integers(6, 60), certain=st.sampled_from([0.5, 0.9, 0.95, 0.96]))
def test_the_interval_is_the_narrowest_that_is_certain_enough(n: int, certain: float) -> None:
    """The true median is outside the k-th values from the ends with probability 2 P(Binomial < k)."""
    found = median_of([float(each) for each in reversed(range(1, n + 1))], certain)
    k = int(found.low)
    assert found.high == n + 1 - k and found.median == (n + 1) / 2
    assert 2 * binom.cdf(k - 1, n, 0.5) <= 1 - certain + 1e-12
    narrower_is_less_certain = 2 * binom.cdf(k, n, 0.5) > 1 - certain - 1e-12
    assert narrower_is_less_certain or k == (n + 1) // 2


def test_few_values_have_their_whole_range() -> None:
    assert median_of([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert median_of([3.0]) == (3.0, 3.0, 3.0)
    with pytest.raises(ValueError, match="no values"):
        median_of([])


@settings(max_examples=60)
@given(new=values, old=values)
def test_the_chance_is_that_of_all_orders(new: list[float], old: list[float]) -> None:
    """Counted one by one; with ties it is at most the chance that is told."""

    def pairs(chosen: tuple[int, ...]) -> int:
        rest = [pooled[at] for at in range(len(pooled)) if at not in chosen]
        return sum(pooled[a] > b for a in chosen for b in rest)

    pooled = [*new, *old]
    orders = list(combinations(range(len(pooled)), len(new)))
    counted = sum(pairs(order) >= pairs(tuple(range(len(new)))) for order in orders) / len(orders)
    told = chance_of_larger(new, old)
    assert told >= counted - 1e-12
    if len(set(pooled)) == len(pooled):
        assert told == pytest.approx(counted)


@given(seed=st.integers(0, 10**6), n=st.integers(1, 9), m=st.integers(1, 9))
def test_the_chance_is_scipys(seed: int, n: int, m: int) -> None:
    draw = np.random.default_rng(seed)
    new, old = draw.normal(0.5, size=n).tolist(), draw.normal(size=m).tolist()
    assert chance_of_larger(new, old) == pytest.approx(
        mannwhitneyu(new, old, alternative="greater", method="exact").pvalue
    )


def test_the_least_chance_is_when_all_are_larger() -> None:
    assert chance_of_larger([4.0, 5.0, 6.0], [1.0, 2.0, 3.0]) == least_chance(3, 3) == 1 / 20


@given(e=st.floats(-3, 3), c=st.floats(0.01, 100))
def test_an_exponent_is_found(e: float, c: float) -> None:
    assert exponent([1, 3, 10], [c * size**e for size in (1, 3, 10)]) == pytest.approx(e, abs=1e-9)


@pytest.mark.parametrize(("sizes", "seconds"), [([1, 1], [1, 1]), ([1, 2], [1, 0]), ([1, 2], [1])])
def test_an_exponent_of_nothing_is_refused(sizes: list[float], seconds: list[float]) -> None:
    with pytest.raises(ValueError, match="two sizes"):
        exponent(sizes, seconds)


def test_sides_take_turns_and_all_samples_are_kept() -> None:
    told, order, turns = Told(), [], list[int]()

    def side(name: str, seconds: float, **more: object) -> Side:
        return Side(name, lambda *given: (order.append(name), told.spend(seconds)), **more)  # type: ignore[arg-type]

    quick = side("quick", 0.01)
    part = side("part", 1.0, times=5.0)
    fresh = side("fresh", 0.5, prepare=lambda: told.spend(100.0))
    found = in_turns([quick, part, fresh], 3, told.clock, turns.append, least=0.0499)
    assert [series.label for series in found] == ["quick", "part", "fresh"]
    assert found[0].wall == pytest.approx([0.01] * 3), "ten calls, .05 s of the processor, and the mean of them"
    assert found[1].wall == pytest.approx([5.0] * 3), "a fifth of the work was done"
    assert found[2].wall == pytest.approx([0.5] * 3), "what prepares it does not count"
    assert found[0].cpu == pytest.approx([0.005] * 3)
    warm = ["quick", "part", "fresh"]
    assert order == warm + 3 * (["quick"] * 10 + ["part", "fresh"])
    assert turns == [1, 2, 3]


def test_work_that_waits_is_not_repeated_for_ever() -> None:
    """Its processor does nothing."""
    told, calls = Told(), list[int]()
    clock = Clock(told.clock.wall, lambda: 0.0)
    in_turns([Side("waits", lambda: (calls.append(1), told.spend(1.0)))], 2, clock, least=0.5)
    assert len(calls) == 1 + 2 * 5


def test_a_clock_that_stands_still_gives_positive_seconds() -> None:
    told = Told()
    (found,) = in_turns([Side("nothing", lambda: None)], 2, told.clock, least=1e-7)
    assert min(found.wall) > 0
