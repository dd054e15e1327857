"""The evaluation negatives: new, distinct, uniform, and a function of seed and user."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from split_rows import labelled, small_split

from fedem_flwr.protocol.splits import draw_negatives


def histories(users: int, items: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """CSR of random histories, sorted and unique; their lengths go from none to nearly all items."""
    rng = np.random.default_rng(seed)
    taken = rng.random((users, items)) < rng.choice([0.0, 0.02, 0.3, 0.9, 0.999], (users, 1))
    offsets = np.concatenate([[0], taken.sum(1).cumsum()]).astype(np.int64)
    return offsets, np.nonzero(taken)[1].astype(np.int64)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 30),
    st.sampled_from([2, 98, 99, 100, 150, 1000, 2500]),
    st.integers(0, 5),
    st.integers(1, 40),
)
def test_negatives_are_new_distinct_and_the_same_in_any_chunks(users: int, items: int, seed: int, chunk: int) -> None:
    offsets, taken = histories(users, items, seed)
    negatives = draw_negatives(offsets, taken, items, seed=seed)
    for user in range(users):
        mine = set(taken[offsets[user] : offsets[user + 1]].tolist())
        drawn = negatives[user][negatives[user] >= 0].tolist()
        assert len(drawn) == len(set(drawn)) == min(99, items - len(mine))
        assert not mine & set(drawn) and all(item < items for item in drawn)
        assert (negatives[user][len(drawn) :] == -1).all(), "padding stands at the end"
    assert np.array_equal(draw_negatives(offsets, taken, items, seed=seed, chunk=chunk), negatives)


@pytest.mark.parametrize("items", [300, 1500])  # one for each way to draw
def test_negatives_are_uniform(items: int) -> None:
    users, mine = 4000, np.arange(0, items, 10)
    offsets = np.arange(users + 1) * len(mine)
    negatives = draw_negatives(offsets, np.tile(mine, users), items, seed=0)
    others = np.setdiff1d(np.arange(items), mine)
    share = 99 / len(others)
    for column_slice, expected in (
        (slice(None), share),
        (slice(0, 1), 1 / len(others)),
    ):  # the set; the first drawn
        counts = np.bincount(negatives[:, column_slice].ravel(), minlength=items)[others]
        deviation = (counts - users * expected) / np.sqrt(users * expected * (1 - expected))
        assert np.abs(deviation).max() < 5
        assert 0.8 < deviation.std() < 1.2


def test_negatives_of_a_user_depend_on_seed_and_user_alone() -> None:
    offsets, taken = histories(20, 1500)
    negatives = draw_negatives(offsets, taken, 1500, seed=0)
    fewer = draw_negatives(offsets[:8], taken[: offsets[7]], 1500, seed=0)
    assert np.array_equal(negatives[:7], fewer)
    assert not np.array_equal(negatives, draw_negatives(offsets, taken, 1500, seed=1))


def test_too_many_repeated_draws_fall_back_to_a_shuffle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedem_flwr.protocol.negatives._CANDIDATES", 100)  # more than one repeat is now too many
    negatives = draw_negatives(np.zeros(51, np.int64), np.empty(0, np.int64), 1000, seed=0)
    assert negatives.min() >= 0
    assert all(len(set(row)) == 99 for row in negatives.tolist())


def test_a_split_draws_outside_every_part() -> None:
    small = small_split()
    for label, history in labelled(small).items():
        row = small.negatives[list(small.user_ids).index(label)]
        assert not {str(small.item_ids[code]) for code in row if code >= 0} & set(history)
