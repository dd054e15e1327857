"""The directional map: its sums against a loop over positions, the regression against its normal equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from strategies.order_map import OrderMap

from fedem_flwr.engine import transitions
from fedem_flwr.engine.history import History
from fedem_flwr.engine.transitions import MapScores, Windows, directional_map, pair_sums
from fedem_flwr.errors import InputError
from strategies import order_map

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


def test_the_server_adds_cohorts_and_refuses_what_cannot_be(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    def upload(who: list[int]) -> dict[str, np.ndarray]:
        sums = pair_sums(history, np.array(who), WINDOWS)
        return {
            "pairs": sums.pairs,
            "pair-gram": sums.gram.astype(np.float32),
            "pair-cross": sums.cross.astype(np.float32),
        }

    server = OrderMap(ITEMS, 3, 0.4)
    for who in ([0, 1, 2], [3, 4, 5]):
        assert server.problem(upload(who)) == ""
        server.receive(upload(who))
    assert server.combine() == ""
    _, values = directional_map(*(torch.from_numpy(side) for side in loop(HISTORIES)), 0.4, 3)
    torch.testing.assert_close(server.values, values, atol=1e-5, rtol=1e-5)
    again = OrderMap(ITEMS, 3, 0.4)
    again.restore(server.arrays())
    assert torch.equal(again.items, server.items) and torch.equal(again.values, server.values)

    good = upload([0, 2])
    assert "ascending" in server.problem({**good, "pairs": good["pairs"][::-1]})
    assert "ascending" in server.problem({**good, "pairs": good["pairs"] + ITEMS * ITEMS})
    assert "pair-cross" in server.problem({**good, "pair-cross": good["pair-cross"][1:]})
    assert "negative" in server.problem({**good, "pair-gram": -good["pair-gram"]})

    impossible = {name: values.copy() for name, values in good.items()}
    impossible["pair-gram"][impossible["pairs"] % (ITEMS + 1) == 0] = 0.0  # no position can hold pairs without items
    other = OrderMap(ITEMS, 3, 1e-9)
    other.receive(impossible)
    assert "not those of any histories" in other.combine() and not len(other.items)
    assert OrderMap(ITEMS, 3, 0.4).combine() == "no node sent sums of pairs"

    monkeypatch.setattr(order_map, "MOST_ITEMS", 5)
    with pytest.raises(InputError, match=r"order\.map=0"):
        OrderMap(ITEMS, 3, 0.4)
