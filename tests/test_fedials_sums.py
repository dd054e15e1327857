"""The mathematics of fedials: fold-in, a cohort's sums and the server's step, each against an explicit loop."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedem_flwr.aggregation.newton import Newton, newton_step, objective
from fedem_flwr.engine import history as history_module
from fedem_flwr.engine.history import History
from fedem_flwr.engine.ials import (
    EVERYTHING,
    FoldIn,
    FoldInScores,
    Objective,
    Recency,
    TableSums,
    _spread,
    table_sums,
)

Floats = NDArray[np.float64]
N, M, D = 23, 17, 4
GOAL = Objective(weight=0.2, ridge=0.05)


def world(seed: int = 0, n: int = N) -> tuple[Floats, list[list[int]]]:
    """A table (m, d) and histories of very different lengths, one of them empty."""
    rng = np.random.default_rng(seed)
    lists = [rng.choice(M - 1, size=rng.integers(1, M - 2), replace=False).tolist() for _ in range(n)]
    lists[3] = []
    return rng.normal(0, 0.5, (M, D)), lists  # nobody has the last item


def as_history(lists: list[list[int]]) -> History:
    offsets = np.cumsum([0, *map(len, lists)])
    return History(np.arange(len(lists)) + 50, M, offsets, np.concatenate([np.array(x, np.int32) for x in lists]))


def solved(table: Floats, items: list[int], goal: Objective, half_life: float = math.inf, factor: float = 1) -> Floats:
    """The formula of one user, term by term."""
    system, right, total = goal.weight * sum(np.outer(q, q) for q in table), np.zeros(D), 0.0
    for place, item in enumerate(items):
        w = 1.0 if math.isinf(half_life) else 0.5 ** ((len(items) - 1 - place) / half_life)
        system, right, total = system + w * np.outer(table[item], table[item]), right + w * table[item], total + w
    ridge = factor * goal.ridge * (total + goal.weight * len(table))
    return np.linalg.solve(system + ridge * np.eye(D), right)


# ---- fold-in


@pytest.mark.parametrize("recency", [EVERYTHING, Recency(3.0), Recency(0.7, 2.0), Recency(ridge=0.5)], ids=str)
@pytest.mark.parametrize("budget", [1, 150, 1 << 20])
def test_fold_in_is_the_formula(recency: Recency, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "BLOCK_FLOATS", budget)
    table, lists = world()
    who = np.random.default_rng(1).permutation(N)[: N - 4]
    found = FoldIn(torch.from_numpy(table), GOAL).of(as_history(lists), who, recency)
    expected = [solved(table, lists[u], GOAL, recency.half_life, recency.ridge) for u in who]
    # half-lives may cut off items of weight below 1e-6
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 if recency.longest is None else 1e-5)
    with_zero = FoldInScores(FoldIn(torch.from_numpy(table), GOAL), recency).scores(as_history(lists), who)[0]
    np.testing.assert_allclose(with_zero, found.numpy() @ table.T, rtol=0, atol=1e-12)


def test_fold_in_of_nobody_and_of_an_empty_history() -> None:
    table, lists = world()
    fold_in = FoldIn(torch.from_numpy(table).float(), GOAL)
    assert fold_in.of(as_history(lists), np.arange(0)).shape == (0, D)
    assert fold_in.of(as_history(lists), np.array([3]), Recency(2.0)).abs().max() == 0


def test_an_item_half_a_life_old_counts_half() -> None:
    assert Recency.of(0.0, 2.0) == Recency(math.inf, 2.0) and Recency.of(0.0, 1.0).longest is None
    assert Recency.of(2.0, 1.0).longest == 40  # 2 ** -20 is about 1e-6
    assert Recency(1e-3).longest == 1, "never nobody"
    table, lists = world()
    newest_only = FoldIn(torch.from_numpy(table), GOAL).of(as_history(lists), np.array([0]), Recency(1e-3))
    np.testing.assert_allclose(newest_only[0], solved(table, lists[0][-1:], GOAL), atol=1e-12)


@pytest.mark.parametrize("damage", [math.nan, math.inf])
def test_a_table_that_is_not_sane_is_refused(damage: float) -> None:
    table, lists = world()
    table[lists[0][0], 1] = damage
    with pytest.raises(FloatingPointError, match="not sane"):
        FoldIn(torch.from_numpy(table), GOAL).of(as_history(lists), np.arange(N))


# ---- sums


def sums_of(table: Floats, lists: list[list[int]], who: NDArray[np.int64]) -> TableSums:
    return table_sums(torch.from_numpy(table), as_history(lists), who, GOAL)


@pytest.mark.parametrize("budget", [1, 150, 1 << 20])
def test_sums_of_a_cohort_are_the_loops(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "BLOCK_FLOATS", budget)
    table, lists = world()
    who = np.random.default_rng(2).permutation(N)[:15]
    gradient, counts, gram, error = np.zeros((M, D)), np.zeros(M), np.zeros((D, D)), 0.0
    for u in who:
        p = solved(table, lists[u], GOAL)
        gram += np.outer(p, p)
        for item in lists[u]:
            gradient[item] += (p @ table[item] - 1) * p
            counts[item] += 1
            error += (p @ table[item] - 1) ** 2
    found = sums_of(table, lists, who)
    np.testing.assert_allclose(found.gradient, gradient, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(found.gram, gram, rtol=1e-10, atol=1e-13)
    assert found.counts.tolist() == counts.tolist() and found.samples == counts.sum()
    assert found.error == pytest.approx(error, rel=1e-10)
    assert found.gradient[M - 1].abs().max() == 0, "what nobody has is not touched"
    assert {x.dtype for x in (found.gradient, found.counts, found.gram)} == {torch.float64}


def test_a_cohorts_sums_are_those_of_its_users() -> None:
    table, lists = world()
    whole = sums_of(table, lists, np.arange(N))
    parts = [sums_of(table, lists, np.array([u])) for u in range(N)]
    for name in ("gradient", "counts", "gram"):
        total = sum(getattr(part, name) for part in parts)
        gap = (getattr(whole, name) - total).abs().max() / total.abs().max()
        assert gap <= 1e-9, name
    assert whole.error == pytest.approx(sum(part.error for part in parts), rel=1e-9)
    assert whole.samples == sum(part.samples for part in parts)
    nobody = sums_of(table, lists, np.arange(0))
    assert nobody.samples == 0 and nobody.gradient.abs().max() == nobody.gram.abs().max() == 0


def test_the_sparse_product_is_index_add() -> None:
    rng = np.random.default_rng(3)
    items = torch.from_numpy(rng.integers(0, M + 1, (6, 9)))
    real, users = items < M, torch.from_numpy(rng.normal(size=(6, D)))
    value = torch.from_numpy(rng.normal(size=(6, 9)))
    expected = torch.zeros(M + 1, D, dtype=torch.float64)
    expected.index_add_(0, items.flatten(), (value.unsqueeze(-1) * users.unsqueeze(1)).flatten(0, 1))
    torch.testing.assert_close(_spread(value, items, real, users, M), expected[:M], rtol=0, atol=1e-12)


# ---- the server's step


def slope(table: Floats, sums: TableSums, users: int) -> Floats:
    """G of the formula, row by row."""
    a, ridge = GOAL.weight, GOAL.ridge
    rows = [
        sums.gradient[i].numpy() + a * sums.gram.numpy() @ q + ridge * (float(sums.counts[i]) + a * users) * q
        for i, q in enumerate(table)
    ]
    return np.array(rows)


@pytest.mark.parametrize("pull", [None, 0.3])
@pytest.mark.parametrize("kappa", [0.0, 3.0])
def test_the_step_is_the_loops(kappa: float, pull: float | None) -> None:
    """Also with a further ridge towards another table."""
    table, lists = world()
    other = world(5)[0]
    sums, expected = sums_of(table, lists, np.arange(N)), table.copy()
    G = slope(table, sums, N)  # noqa: N806
    for i in range(M):
        frequency = float(sums.counts[i]) + GOAL.weight * N
        H = (GOAL.weight + kappa * float(sums.counts[i]) / N) * sums.gram.numpy()  # noqa: N806
        H = H + (GOAL.ridge + (pull or 0)) * frequency * np.eye(D)  # noqa: N806
        expected[i] -= 0.7 * np.linalg.solve(H, G[i] + (pull or 0) * frequency * (table[i] - other[i]))
    step = Newton(GOAL.weight, GOAL.ridge, kappa, 0.7)
    towards = None if pull is None else (torch.from_numpy(other), pull)
    found = newton_step(torch.from_numpy(table), sums.gradient, sums.counts, sums.gram, N, step, towards)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)


def value_of(table: Floats, users: Floats, lists: list[list[int]]) -> float:
    """The objective as it is written, pair by pair."""
    a, ridge, n, m = GOAL.weight, GOAL.ridge, len(users), len(table)
    of_item = np.bincount([i for items in lists for i in items], minlength=m)
    total = sum((users[u] @ table[i] - 1) ** 2 for u, items in enumerate(lists) for i in items)
    total += a * sum((p @ q) ** 2 for p in users for q in table)
    total += ridge * sum((len(items) + a * m) * (p @ p) for p, items in zip(users, lists, strict=True))
    return float(total + ridge * sum((c + a * n) * (q @ q) for c, q in zip(of_item, table, strict=True)))


def of_module(table: Floats, users: Floats, lists: list[list[int]]) -> float:
    pairs = torch.tensor([(u, i) for u, items in enumerate(lists) for i in items]).T
    return objective(torch.from_numpy(table), torch.from_numpy(users), (pairs[0], pairs[1]), GOAL.weight, GOAL.ridge)


def differences(value: Callable[[Floats], float], at: Floats) -> Floats:
    """Central differences; exact for a quadratic, up to rounding."""
    out = np.empty_like(at)
    for place in np.ndindex(at.shape):
        high, low = at.copy(), at.copy()
        high[place] += 1e-3
        low[place] -= 1e-3
        out[place] = (value(high) - value(low)) / 2e-3
    return out


def test_the_slope_is_half_the_gradient_of_the_objective() -> None:
    table, lists = world()
    users = np.array([solved(table, items, GOAL) for items in lists])
    assert of_module(table, users, lists) == pytest.approx(value_of(table, users, lists), rel=1e-12)
    half = differences(lambda q: of_module(q, users, lists), table) / 2
    np.testing.assert_allclose(slope(table, sums_of(table, lists, np.arange(N)), N), half, rtol=1e-7, atol=1e-7)
    of_users = differences(lambda p: of_module(table, p, lists), users)
    assert np.abs(of_users).max() < 1e-7, "the fold-in minimises the same objective"


# ---- the fixed point


def sweep(table: Floats, lists: list[list[int]]) -> Floats:
    """One sweep of centralised iALS: exact solves of all users, then of all items."""
    a, ridge, n = GOAL.weight, GOAL.ridge, len(lists)
    users = np.array([solved(table, items, GOAL) for items in lists])
    everywhere, new = a * users.T @ users, np.empty_like(table)
    for i in range(len(table)):
        mine = users[[i in items for items in lists]]
        system = everywhere + mine.T @ mine + ridge * (len(mine) + a * n) * np.eye(D)
        new[i] = np.linalg.solve(system, mine.sum(0))
    return new


def round_of_fedials(table: Floats, lists: list[list[int]], rate: float = 1.0) -> Floats:
    sums, step = sums_of(table, lists, np.arange(len(lists))), Newton(GOAL.weight, GOAL.ridge, 3.0, rate)
    new = newton_step(torch.from_numpy(table), sums.gradient, sums.counts, sums.gram, len(lists), step)
    return np.asarray(new)


def converged(step: Callable[[Floats], Floats], table: Floats) -> Floats:
    for _ in range(4000):
        new = step(table)
        if np.abs(new - table).max() < 1e-10 * np.abs(table).max():
            return new
        table = new
    raise AssertionError("does not converge")


def change(new: Floats, old: Floats) -> float:
    return float(np.abs(new - old).max() / np.abs(old).max())


def test_the_fixed_point_is_that_of_centralised_ials() -> None:
    start, lists = world()
    theirs = converged(lambda q: sweep(q, lists), start)
    ours = converged(lambda q: round_of_fedials(q, lists), start)
    assert change(sweep(start, lists), start) > 0.1 and change(round_of_fedials(start, lists), start) > 0.1
    assert np.abs(theirs).max() > 0.1, "not the trivial solution"
    assert change(round_of_fedials(theirs, lists), theirs) < 1e-5
    assert change(round_of_fedials(theirs, lists, 0.1), theirs) < 1e-5
    assert change(sweep(ours, lists), ours) < 1e-5


def test_the_objective_falls() -> None:
    table, lists = world()
    values = []
    for _ in range(6):
        values.append(of_module(table, np.array([solved(table, items, GOAL) for items in lists]), lists))
        table = round_of_fedials(table, lists)
    assert all(later < earlier for earlier, later in itertools.pairwise(values)), values
    assert values[-1] < 0.9 * values[0]
