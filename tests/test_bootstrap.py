"""The paired bootstrap: a hand-worked case, the normal approximation, coverage, and swapping; the control to beat."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from fedem_flwr.evaluation import bootstrap
from fedem_flwr.evaluation.bootstrap import best_control, paired_interval


def test_two_users_by_hand() -> None:
    """Differences 0 and 1: a draw of two users has mean 0, 1/2 or 1 with probabilities 1/4, 1/2, 1/4."""
    interval = paired_interval([1, 1], [0, 1], seed=0, replicates=4000, level=0.4)
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.5, 0.5)  # 30 % and 70 % both lie in the middle half
    interval = paired_interval([1, 1], [0, 1], seed=0, replicates=4000, level=0.6)
    assert (interval.low, interval.high) == (0.0, 1.0)  # 20 % and 80 % lie in the outer quarters
    assert interval.replicates == 4000


def test_replicates_have_the_exact_distribution_of_resampled_users(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = np.array([0.0, 0.0, 1.0, -0.5])
    monkeypatch.setattr(np, "quantile", lambda means, _: captured.append(np.array(means)) or (0.0, 0.0))
    captured: list[np.ndarray] = []
    paired_interval(differences, np.zeros(4), seed=3, replicates=200_000)
    exact = np.array([np.mean(draw) for draw in itertools.product(differences, repeat=4)])
    for value in np.unique(exact):
        expected = np.isclose(exact, value).mean()
        assert np.isclose(captured[0], value).mean() == pytest.approx(expected, abs=5 * math.sqrt(expected / 200_000))


def test_a_large_sample_agrees_with_the_normal_approximation() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(0.3, 1, 20_000), rng.normal(0.25, 2, 20_000)
    interval = paired_interval(a, b, seed=1)
    error = (a - b).std(ddof=1) / math.sqrt(len(a))
    assert interval.mean == pytest.approx((a - b).mean(), abs=1e-12)
    assert interval.low == pytest.approx(interval.mean - 1.96 * error, abs=0.15 * error)
    assert interval.high == pytest.approx(interval.mean + 1.96 * error, abs=0.15 * error)


@pytest.mark.parametrize(("level", "least", "most"), [(0.95, 0.91, 0.98), (0.6, 0.53, 0.67)])
def test_the_interval_covers_as_often_as_it_says(level: float, least: float, most: float) -> None:
    """Hits of two methods on 200 users, drawn from a known law with a difference of 0.1, 500 times."""
    rng = np.random.default_rng(11)
    covered = 0
    for trial in range(500):
        both = rng.random((200, 1)) < 0.3  # users on whom both succeed: the pairs are dependent
        a, b = (both | (rng.random((200, 2)) < (2 / 7, 1 / 7))).T.astype(np.float32)
        interval = paired_interval(a, b, seed=trial, replicates=400, level=level)
        covered += interval.low <= 0.7 / 7 <= interval.high
    assert least < covered / 500 < most


@pytest.mark.parametrize("seed", range(20))
def test_swapping_negates_the_interval(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.choice([0.0, 0.0, 0.5, 0.63, 1.0], (2, 50))
    forth, back = paired_interval(a, b, seed=seed), paired_interval(b, a, seed=seed)
    assert (back.mean, back.low, back.high) == (-forth.mean, -forth.high, -forth.low)
    assert forth.low <= forth.mean <= forth.high and forth.low < forth.high


def test_equal_methods_have_no_difference() -> None:
    interval = paired_interval(np.ones(9), np.ones(9), seed=0)
    assert (interval.mean, interval.low, interval.high) == (0, 0, 0)


def test_the_same_seed_gives_the_same_bits_in_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = np.random.default_rng(0).random((2, 300))
    whole = paired_interval(a, b, seed=7)
    monkeypatch.setattr(bootstrap, "_CELLS", 1000)
    assert paired_interval(a, b, seed=7) == whole
    assert paired_interval(a, b, seed=8) != whole


@pytest.mark.parametrize(
    ("a", "b", "options"),
    [
        ([1, 2], [1], {}),
        ([], [], {}),
        ([[1]], [[1]], {}),
        ([math.nan], [0], {}),
        ([1], [0], {"level": 1.0}),
        ([1], [0], {"replicates": 0}),
    ],
)
def test_what_does_not_pair_up_is_refused(a: Any, b: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        paired_interval(a, b, seed=0, **options)


def test_the_best_control_by_any_figure() -> None:
    controls: dict[str, Any] = {
        "popularity": {"full": {"ndcg@10": 0.2}, "sampled99": {"ndcg@10": 0.5}},
        "ease": {"full": {"ndcg@10": 0.3}, "sampled99": {"ndcg@10": 0.4}},
        "ease_recent": {"skipped": "no times"},
        "local_only": None,
    }
    assert best_control(controls, "full/ndcg@10") == "ease"
    assert best_control(controls, "sampled99/ndcg@10") == "popularity"
    assert best_control(controls, "full/mrr") is None
