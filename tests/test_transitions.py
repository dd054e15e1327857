"""The directional map: its sums against a loop over positions, the regression against its normal equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedem_flwr.contract import Gathered
from fedem_flwr.contract.adding import Adder
from fedem_flwr.contract.fields import Named, fault_of
from fedem_flwr.contract.phases import NothingMade
from fedem_flwr.engine import transitions
from fedem_flwr.engine.history import History
from fedem_flwr.engine.transitions import MapScores, Windows, directional_map, pair_sums
from fedem_flwr.methods.tasks.order_map import OrderMap

ITEMS = 9
HISTORIES = [[0, 1, 2, 3], [4], [5, 0, 5, 8, 1, 7], [], [2, 1], [3, 3, 6]]
WINDOWS = Windows(before=3, after=2, decay_before=0.5, decay_after=0.25)


@pytest.fixture
def history() -> History:
    offsets = np.append(0, np.cumsum([len(items) for items in HISTORIES]))
    values = np.array([item for items in HISTORIES for item in items], np.int32)
    return History(np.arange(len(HISTORIES)), ITEMS, offsets, values)


def loop(histories: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Σ x xᵀ and Σ x yᵀ, a position at a time."""
    gram, cross = np.zeros((ITEMS, ITEMS)), np.zeros((ITEMS, ITEMS))
    for items in histories:
        for t in range(len(items) - 1):
            x, y = np.zeros(ITEMS), np.zeros(ITEMS)
            for j in range(WINDOWS.before):
                if t - j >= 0:
                    x[items[t - j]] += WINDOWS.decay_before**j
            for j in range(1, WINDOWS.after + 1):
                if t + j < len(items):
                    y[items[t + j]] += WINDOWS.decay_after ** (j - 1)
            gram += np.outer(x, x)
            cross += np.outer(x, y)
    return gram, cross


def dense(sums: transitions.PairSums) -> tuple[np.ndarray, np.ndarray]:
    found = np.zeros((2, ITEMS * ITEMS))
    found[0, sums.pairs], found[1, sums.pairs] = sums.gram, sums.cross
    return found[0].reshape(ITEMS, ITEMS), found[1].reshape(ITEMS, ITEMS)


@pytest.mark.parametrize("positions", [1, 4, 1 << 16])
def test_sums_are_those_of_a_loop_over_positions(
    history: History, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transitions, "_POSITIONS", positions)
    who = np.array([5, 0, 1, 2, 3])
    sums = pair_sums(history, who, WINDOWS)
    for mine, theirs in zip(dense(sums), loop([HISTORIES[u] for u in who]), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-12)
    assert (np.diff(sums.pairs) > 0).all()


def test_parts_of_a_cohort_add_up_and_nobody_has_no_pairs(history: History) -> None:
    whole = dense(pair_sums(history, np.arange(6), WINDOWS))
    parts = [dense(pair_sums(history, np.array(who), WINDOWS)) for who in ([0, 1, 2], [3], [4, 5])]
    for side in (0, 1):
        np.testing.assert_allclose(sum(part[side] for part in parts), whole[side], atol=1e-12)
    assert len(pair_sums(history, np.empty(0, np.int64), WINDOWS).pairs) == 0
    assert len(pair_sums(history, np.array([1, 3]), WINDOWS).pairs) == 0, "nothing follows a single item"


def test_the_map_solves_its_normal_equations() -> None:
    gram, cross = (torch.from_numpy(side) for side in loop(HISTORIES))
    ridge = 0.4 * float(gram.diagonal().mean())
    items, values = directional_map(gram.clone(), cross, 0.4, ITEMS)
    weights = torch.zeros(ITEMS, ITEMS, dtype=torch.float64).scatter_(1, items.long(), values.double())
    torch.testing.assert_close((gram + ridge * torch.eye(ITEMS)) @ weights, cross, atol=1e-5, rtol=1e-5)
    fewer, _ = directional_map(gram.clone(), cross, 0.4, 2)
    for row, kept in zip(weights, fewer.long(), strict=True):
        assert row[kept].abs().min() >= row.abs().sort().values[-2] - 1e-6, "the largest entries are kept"


def test_scores_are_the_decayed_newest_items_through_the_map(history: History) -> None:
    gram, cross = (torch.from_numpy(side) for side in loop(HISTORIES))
    items, values = directional_map(gram, cross, 0.4, 4)
    weights = torch.zeros(ITEMS, ITEMS).scatter_(1, items.long(), values)
    who = np.array([2, 3, 0, 1])
    found, _ = MapScores(items, values, WINDOWS).scores(history, who)
    for user, row in zip(who, found, strict=True):
        expected = torch.zeros(ITEMS)
        for age, item in enumerate(reversed(HISTORIES[user][-WINDOWS.before :])):
            expected += WINDOWS.decay_before**age * weights[item]
        torch.testing.assert_close(row, expected)


def test_the_server_adds_cohorts_and_refuses_what_cannot_be(history: History) -> None:
    def upload(who: list[int]) -> Named:
        sums = pair_sums(history, np.array(who), WINDOWS)
        return {
            "pairs": sums.pairs,
            "pair-gram": sums.gram.astype(np.float32),
            "pair-cross": sums.cross.astype(np.float32),
        }

    def refused(task: OrderMap, arrays: Named) -> str:
        return fault_of(arrays, task.fields(), 2, 1e6) or task.problem(arrays, 2, 9)

    task = OrderMap(ITEMS, 3, 0.4)
    cohorts = [upload(who) for who in ([0, 1, 2], [3, 4, 5])]
    assert [refused(task, arrays) for arrays in cohorts] == ["", ""]
    assert [values.shape for values in task.start().values()] == [(0, 3), (0, 3)], "no map"
    made = task.fold(task.start(), gathered(task, cohorts))
    items, values = directional_map(*(torch.from_numpy(side) for side in loop(HISTORIES)), 0.4, 3)
    torch.testing.assert_close(made["map-values"], values, atol=1e-5, rtol=1e-5)
    assert torch.equal(made["map-items"], items)

    good = upload([0, 2])
    assert "ascending" in refused(task, {**good, "pairs": good["pairs"][::-1]})
    assert "ascending" in refused(task, {**good, "pairs": good["pairs"] + ITEMS * ITEMS})
    assert "pair-cross" in refused(task, {**good, "pair-cross": good["pair-cross"][1:]})
    assert "below 0" in refused(task, {**good, "pair-gram": -good["pair-gram"]})

    impossible = {name: values.copy() for name, values in good.items()}
    impossible["pair-gram"][impossible["pairs"] % (ITEMS + 1) == 0] = 0.0  # no position can hold pairs without items
    other = OrderMap(ITEMS, 3, 1e-9)
    with pytest.raises(NothingMade, match="not those of any histories"):
        other.fold(other.start(), gathered(other, [impossible]))
    with pytest.raises(NothingMade, match="no node sent sums of pairs"):
        other.fold(other.start(), gathered(other, []))


def gathered(task: OrderMap, uploads: list[Named]) -> Gathered:
    """A round's sums of uploads, of two users each."""
    adder = Adder(task.fields())
    for arrays in uploads:
        adder.add(arrays)
    return Gathered(1, 1, adder.sums, {}, np.empty(0, np.int64), 2 * len(uploads), 6, np.ones(6, np.int64))
