"""Samples of a round: what may be drawn and how often, whoever else is in the cohort; and the blocks of clients."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.samples import (
    RoundSamples,
    TrainingItems,
    blocks_of,
    draw_negatives,
    draw_samples,
    padded_rows,
    shuffled_rows,
)
from fedem_flwr.errors import InputError

Lists = Sequence[Sequence[int]]
ZERO = Draws(0)


def csr(rows: Lists) -> tuple[Tensor, Tensor]:
    offsets = torch.tensor([0, *itertools.accumulate(map(len, rows))])
    return offsets, torch.tensor([item for row in rows for item in row], dtype=torch.int64)


def histories_of(
    positives: Lists, items: int, extra: Lists | None = None, users: Sequence[int] | None = None
) -> TrainingItems:
    """`extra` items are forbidden beside the training items, as under the `paper` protocol."""
    more = extra if extra is not None else [[]] * len(positives)
    forbidden = [sorted({*p, *e}) for p, e in zip(positives, more, strict=True)]
    names = torch.tensor(list(users) if users is not None else range(len(positives)))
    return TrainingItems(names, items, *csr(positives), *csr(forbidden))


def everyone(histories: TrainingItems) -> Tensor:
    return torch.arange(len(histories.users))


def items_of(samples: RoundSamples, u: int) -> list[int]:
    """A client's sampled items, a positive followed by its negatives."""
    touched = samples.touched[u]
    return [int(touched[r]) for r in samples.row[u, : int(samples.size[u])]]


@st.composite
def worlds(draw: st.DrawFn) -> TrainingItems:
    m = draw(st.integers(2, 14))
    item = st.integers(0, m - 1)
    k = draw(st.integers(1, 5))
    positives = draw(st.lists(st.lists(item, min_size=1, max_size=12), min_size=k, max_size=k))  # duplicates too
    extra = draw(st.lists(st.lists(item, max_size=3), min_size=k, max_size=k))
    names = draw(st.lists(st.integers(0, 10**6), min_size=k, max_size=k, unique=True))
    return histories_of(positives, m, extra, names)


@settings(deadline=None, max_examples=40)
@given(worlds(), st.integers(0, 5), st.integers(1, 9))
def test_samples_hold_what_they_must(histories: TrainingItems, each: int, round_: int) -> None:
    samples = draw_samples(histories, everyone(histories), each, ZERO, round_)
    m = histories.items
    for u in range(len(histories.users)):
        p0, p1 = histories.positive_offsets[u : u + 2].tolist()
        f0, f1 = histories.forbidden_offsets[u : u + 2].tolist()
        positives = histories.positive_items[p0:p1].tolist()
        forbidden = set(histories.forbidden_items[f0:f1].tolist())
        drawn = items_of(samples, u)
        assert len(drawn) == len(positives) * (1 + each) == int(samples.size[u])
        assert drawn[:: 1 + each] == positives  # in order, duplicates kept
        for start in range(0, len(drawn), 1 + each):
            negatives = drawn[start + 1 : start + 1 + each]
            if len(forbidden) == m:
                assert set(negatives) <= {drawn[start]}  # nothing may be drawn: the positive stands in
                continue
            assert not forbidden & set(negatives) and all(0 <= i < m for i in negatives)
            assert len(set(negatives)) == min(each, m - len(forbidden))
        count = int(samples.touched_count[u])
        assert samples.touched[u, :count].tolist() == sorted(set(drawn))
        signs = dict(zip(samples.touched[u, :count].tolist(), samples.sign[u, :count].tolist(), strict=True))
        assert signs == {item: -1.0 if item in positives else 1.0 for item in drawn}


@settings(deadline=None, max_examples=40)
@given(worlds(), st.integers(0, 3), st.data())
def test_samples_do_not_depend_on_the_cohort(histories: TrainingItems, each: int, data: st.DataObject) -> None:
    """Nor on padding: a short user beside a long one draws what it draws alone."""
    k = len(histories.users)
    subset = data.draw(st.permutations(range(k)).map(lambda order: order[: max(1, k - 1)]))
    together = draw_samples(histories, torch.tensor(subset), each, Draws(7), 2)
    names = histories.users[torch.tensor(subset)]
    for place, u in enumerate(subset):
        alone = draw_samples(histories, torch.tensor([u]), each, Draws(7), 2)
        assert items_of(alone, 0) == items_of(together, place)
        for epoch in (0, 1):
            size = int(alone.size[0])
            order = shuffled_rows(alone, histories.users[[u]], Draws(7), 2, epoch)[0, :size]
            shared = shuffled_rows(together, names, Draws(7), 2, epoch)[place, :size]
            assert torch.equal(order, shared)


def test_rounds_users_and_seeds_draw_different_samples() -> None:
    histories = histories_of([list(range(10))] * 2, 400, users=[3, 8])
    draws = [
        tuple(items_of(draw_samples(histories, everyone(histories), 4, Draws(seed), round_), u))
        for seed, round_, u in itertools.product((0, 1), (1, 2), (0, 1))
    ]
    assert len(set(draws)) == len(draws)


@pytest.mark.parametrize(("each", "forbidden"), [(1, [2, 5]), (3, [2, 5]), (3, []), (4, [0, 1]), (5, [6])])
def test_every_set_of_negatives_is_equally_likely(each: int, forbidden: list[int]) -> None:
    m, positions = 7, 12_000
    padded = torch.tensor([[*forbidden, 2 * m]])
    allowed = [i for i in range(m) if i not in forbidden]
    drawn = draw_negatives(padded, torch.tensor([len(allowed)]), positions, each, Draws(1), 1, torch.tensor([4]))[0]
    counts = Counter(tuple(sorted(row)) for row in drawn.tolist())
    possible = list(itertools.combinations(allowed, each))
    assert set(counts) <= set(possible)
    if len(possible) > 1:
        assert stats.chisquare([counts[s] for s in possible]).pvalue > 1e-3


def test_draws_of_two_positives_are_independent() -> None:
    histories = histories_of([[0, 1]] * 6000, 6)
    samples = draw_samples(histories, everyone(histories), 1, ZERO, 1)
    items = samples.touched.gather(1, samples.row)  # positive, negative, positive, negative
    pairs = (items[:, 1] - 2) * 4 + items[:, 3] - 2
    assert stats.chisquare(np.bincount(pairs.numpy(), minlength=16)).pvalue > 1e-3


def test_a_tiny_catalogue_repeats_items_where_it_must() -> None:
    histories = histories_of([[0], [0, 1, 2], [0, 1, 2, 3]], 4)
    samples = draw_samples(histories, everyone(histories), 5, ZERO, 1)
    first, second, third = (items_of(samples, u) for u in range(3))
    assert first[0] == 0 and set(first[1:]) == {1, 2, 3}
    assert second[:1] + second[6:7] + second[12:13] == [0, 1, 2]
    assert {item for j, item in enumerate(second) if j % 6} == {3}
    assert third == [item for item in range(4) for _ in range(6)]  # nothing is allowed: positives only
    assert samples.sign[2, : samples.touched_count[2]].tolist() == [-1.0] * 4


def test_duplicate_positives_are_samples_of_one_row() -> None:
    samples = draw_samples(histories_of([[3, 3, 3, 1]], 40), torch.tensor([0]), 2, ZERO, 1)
    drawn = items_of(samples, 0)
    assert drawn[::3] == [3, 3, 3, 1] and int(samples.size) == 12
    assert samples.touched[0, : samples.touched_count[0]].tolist() == sorted(set(drawn))
    assert int((samples.sign == -1).sum()) == 2


@settings(deadline=None, max_examples=40)
@given(worlds(), st.integers(0, 3))
def test_an_epoch_visits_each_sample_once(histories: TrainingItems, each: int) -> None:
    samples = draw_samples(histories, everyone(histories), each, ZERO, 1)
    epochs = [shuffled_rows(samples, histories.users, ZERO, 1, epoch) for epoch in range(2)]
    for u in range(len(histories.users)):
        size = int(samples.size[u])
        for order in epochs:
            assert order.shape == samples.row.shape
            assert sorted(order[u, :size].tolist()) == sorted(samples.row[u, :size].tolist())
            assert int(order[u].max()) < int(samples.touched_count[u])  # padding refers to a real row too


def test_sample_orders_are_uniform_and_differ_between_epochs() -> None:
    k = 6000
    samples = draw_samples(histories_of([[5, 1, 3]] * k, 6), torch.arange(k), 0, ZERO, 1)
    first, second = (shuffled_rows(samples, torch.arange(k), ZERO, 1, epoch) for epoch in (0, 1))
    counts = Counter(map(tuple, first.tolist()))
    assert len(counts) == 6 and stats.chisquare(list(counts.values())).pvalue > 1e-3
    assert abs(float((first == second).all(1).double().mean()) - 1 / 6) < 0.02


def test_a_user_with_more_samples_than_the_shuffle_key_holds_is_refused() -> None:
    size = 2**20 + 1
    one = torch.ones(1, 1)
    samples = RoundSamples(one.long(), one[0].long(), one, torch.zeros(1, size).long(), *[torch.tensor([size])] * 2)
    with pytest.raises(InputError, match="lower local"):
        shuffled_rows(samples, torch.tensor([0]), ZERO, 1, 0)


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=5), st.data())
def test_padded_rows_slice_the_csr(rows: Lists, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=6))
    values, real = padded_rows(*csr(rows), torch.tensor(chosen), -1)
    assert values.shape == (len(chosen), max(len(rows[u]) for u in chosen))
    for place, u in enumerate(chosen):
        assert values[place, real[place]].tolist() == list(rows[u])
        assert bool((values[place, ~real[place]] == -1).all())


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 30), st.integers(0, 3)), max_size=30),
    st.integers(1, 8),
    st.integers(1, 600),
)
def test_blocks_are_a_partition_of_one_group_each_within_the_budget(
    clients: list[tuple[int, int, int]], width: int, budget: int
) -> None:
    counts, touched, group = torch.tensor(clients, dtype=torch.int64).reshape(-1, 3).unbind(1)
    blocks = blocks_of(counts, touched, group, width, budget)
    assert sorted(u for block in blocks for u in block.tolist()) == list(range(len(clients)))
    for block in blocks:
        assert len(block) > 0 and len(set(group[block].tolist())) == 1
        assert len(block) == 1 or int(touched[block].max()) * len(block) * width <= budget
        assert counts[block].tolist() == sorted(counts[block].tolist())


def test_blocks_are_not_smaller_than_they_need_be() -> None:
    ones = torch.ones(10, dtype=torch.int64)
    assert [len(b) for b in blocks_of(ones, ones * 5, ones, 2, 40)] == [4, 4, 2]
    assert [len(b) for b in blocks_of(ones, ones * 5, ones, 2, 9)] == [1] * 10
