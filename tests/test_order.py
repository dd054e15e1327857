"""The order component: gradients of a cohort's sequences, against plain loops, and its scores."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fedem_flwr.engine.history import History
from fedem_flwr.engine.order import OrderScores, OrderSums, OrderTask, order_sums
from fedem_flwr.models.encoder import Encoder
from fedem_flwr.randomness import keyed_integers

M, D, WINDOW = 19, 8, 5
ENCODER = Encoder(dim=D, layers=2, heads=2, window=WINDOW, dropout=0.0)
TASK = OrderTask(ENCODER, negatives=6, rows=True, seed=4)


def world(users: int = 70) -> tuple[History, list[list[int]], Tensor, Tensor]:
    """TrainingItems (some of one item, some of none), weights and rows; more users than a block holds."""
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, M - 4, rng.integers(0, 12)).tolist() for _ in range(users)]
    lists[:3] = [[], [3], [4, 4]]
    offsets = np.cumsum([0, *map(len, lists)])
    history = History(np.arange(users) + 30, M, offsets, np.concatenate([np.array(x, np.int32) for x in lists]))
    rows = torch.from_numpy(rng.normal(0, D**-0.5, (M, D)))
    return history, lists, ENCODER.initial(1).double(), rows


def drawn(task: OrderTask, user: int, round_: int) -> Tensor:
    return keyed_integers(M, task.seed, "order/negatives", round_, user, torch.arange(task.negatives))


def whole_windows(
    task: OrderTask, weights: Tensor, rows: Tensor, lists: list[list[int]], round_: int
) -> tuple[Tensor, int]:
    """The loss, user by user: a window at once (the encoder's own test says that it is causal)."""
    loss, positions = weights.new_zeros(()), 0
    for user, items in enumerate(lists):
        newest = torch.tensor(items[-(WINDOW + 1) :], dtype=torch.int64)
        if len(newest) < 2:
            continue
        real = torch.ones(1, len(newest) - 1, dtype=torch.bool)
        hidden = task.encoder.hidden(weights, rows[newest[:-1]][None], real)[0]
        for state, target in zip(hidden, newest[1:], strict=True):
            others = drawn(task, user + 30, round_) if task.negatives else torch.arange(M)
            wrong = rows[others[others != target]] @ state + (math.log(M / task.negatives) if task.negatives else 0)
            right = (rows[target] @ state)[None]
            loss = loss + torch.logsumexp(torch.cat([right, wrong]), 0) - right[0]
            positions += 1
    return loss, positions


@pytest.mark.parametrize("negatives", [6, 0])
def test_gradients_are_autograds_of_the_plain_loop(negatives: int) -> None:
    task = replace(TASK, negatives=negatives)
    history, lists, weights, rows = world(40)
    found = order_sums(task, weights, rows, history, np.arange(40), 7)
    own, table = weights.clone().requires_grad_(), rows.clone().requires_grad_()
    loss, positions = whole_windows(task, own, table, lists, 7)
    of_weights, of_rows = torch.autograd.grad(loss, (own, table))
    assert found.loss == pytest.approx(float(loss.detach()), rel=1e-9) and found.positions == positions
    torch.testing.assert_close(found.weights, of_weights, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(in_full(found)[0], of_rows, rtol=1e-8, atol=1e-9)
    assert found.weights.abs().max() > 0.1 and found.rows.abs().max() > 0.1


def test_without_negatives_it_is_the_full_cross_entropy() -> None:
    history, lists, weights, rows = world(12)
    found = order_sums(replace(TASK, negatives=0), weights, rows, history, np.arange(12), 1)
    total = 0.0
    for items in (x[-(WINDOW + 1) :] for x in lists if len(x) > 1):
        hidden = ENCODER.hidden(weights, rows[torch.tensor(items[:-1])][None], torch.ones(1, len(items) - 1) > 0)[0]
        total += float(torch.nn.functional.cross_entropy(hidden @ rows.T, torch.tensor(items[1:]), reduction="sum"))
    assert found.loss == pytest.approx(total, rel=1e-9) and len(found.touched) == M


def in_full(sums: OrderSums) -> tuple[Tensor, Tensor]:
    """Gradients of all rows (M, D), zeros where none was used, and which were (M,)."""
    used = torch.zeros(M, dtype=torch.bool)
    used[sums.touched] = True
    return torch.zeros(M, D, dtype=torch.float64).index_add_(0, sums.touched, sums.rows), used


def assert_adds_up(whole: OrderSums, parts: list[OrderSums]) -> None:
    assert bool((whole.touched.diff() > 0).all())
    for gradient in (lambda sums: sums.weights, lambda sums: in_full(sums)[0]):
        total = torch.stack([gradient(part) for part in parts]).sum(0)
        assert (gradient(whole) - total).abs().max() <= 1e-6 * total.abs().max()
    assert whole.loss == pytest.approx(sum(part.loss for part in parts), rel=1e-6)
    assert whole.positions == sum(part.positions for part in parts)
    assert torch.equal(in_full(whole)[1], torch.stack([in_full(part)[1] for part in parts]).any(0))


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_cohorts_sums_are_those_of_its_users(dropout: float) -> None:
    """Also with dropout: neither the block nor the cohort that a user is in changes what is dropped of it."""
    task = replace(TASK, encoder=replace(ENCODER, dropout=dropout))
    history, _, weights, rows = world()
    who = np.random.default_rng(2).permutation(70)
    whole = order_sums(task, weights, rows, history, who, 3)
    for parts in (who[:, None], np.array_split(who, 5)):
        assert_adds_up(whole, [order_sums(task, weights, rows, history, part, 3) for part in parts])


def test_what_is_touched_and_who_is_left_out() -> None:
    history, lists, weights, rows = world(40)
    found = order_sums(TASK, weights, rows, history, np.arange(40), 5)
    enough = [u for u, items in enumerate(lists) if len(items) >= 2]
    expected = {item for u in enough for item in lists[u][-(WINDOW + 1) :]}
    expected |= {int(i) for u in enough for i in drawn(TASK, u + 30, 5)}
    assert set(found.touched.tolist()) == expected
    one = np.array([next(u for u in enough if len(lists[u]) > 4)])
    alone = order_sums(TASK, weights, rows, history, one, 5)
    assert len(alone.touched) == len(alone.rows) < M
    few = order_sums(TASK, weights, rows, history, np.array([0, 1]), 5)
    assert (few.positions, few.loss, len(few.touched), len(few.rows)) == (0, 0.0, 0, 0) and few.weights.abs().max() == 0
    frozen = order_sums(replace(TASK, rows=False), weights, rows, history, np.arange(40), 5)
    assert not len(frozen.touched) and not len(frozen.rows)
    torch.testing.assert_close(frozen.weights, found.weights)
    other = order_sums(TASK, weights, rows, history, np.arange(40), 6)
    assert not torch.allclose(other.weights, found.weights), "fresh negatives every round"


def test_scores_are_of_the_newest_window() -> None:
    history, lists, weights, rows = world()
    found = OrderScores(ENCODER, weights, rows).scores(history, np.arange(70)[::-1].copy())[0].flip(0)
    for user, items in enumerate(lists):
        newest = torch.tensor(items[-WINDOW:], dtype=torch.int64)
        if not len(newest):
            assert found[user].abs().max() == 0
            continue
        hidden = ENCODER.hidden(weights, rows[newest][None], torch.ones(1, len(newest), dtype=torch.bool))[0, -1]
        torch.testing.assert_close(found[user], rows @ hidden, rtol=0, atol=1e-9)
    empty = History(np.arange(2), M, np.zeros(3, np.int64), np.empty(0, np.int64))
    assert OrderScores(ENCODER, weights, rows).scores(empty, np.arange(2))[0].tolist() == [[0.0] * M] * 2
