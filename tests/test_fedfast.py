"""FedFast by hand: who takes part, what a row becomes, and how vectors follow."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from worlds import config_of

from fedem_flwr.aggregation.clusters import clusters_of, evenly
from fedem_flwr.contract import Gathered
from fedem_flwr.engine.contribution import Collector, Contribution
from fedem_flwr.engine.parts import Part
from fedem_flwr.errors import InputError
from fedem_flwr.methods.fedfast import FedFast
from fedem_flwr.runtime.inputs import build_strategy

ITEMS, FADING = 60, 0.5


def method(**sections: Any) -> FedFast:
    options = {"name": "fedfast", "options": {"clusters": 2, "fading": FADING}}
    return FedFast(config_of("fedfast", method=options, model={"dim": 2}, **sections), ITEMS)


def two_clusters() -> torch.Tensor:
    """(6, 2) four users near (1, 0), two near (0, 5)."""
    return torch.tensor([[1.0, 0.0], [1.1, 0.0], [1.0, 0.1], [0.9, 0.0], [0.0, 5.0], [0.1, 5.0]])


def test_a_row_is_the_mean_by_how_far_its_delegates_moved_it() -> None:
    """Two delegates, one item: moved by 1 and by 3, so (a + 3 b) / 4; a row that nobody moved stays."""
    before = torch.tensor([[[0.0, 0.0]], [[0.0, 0.0]]])
    after = torch.tensor([[[1.0, 0.0]], [[0.0, -3.0]]])
    collector = Collector({"items": Part("item", 2, up="sum", mean="distance")}, ITEMS, torch.device("cpu"), 1)
    assert collector.needs_before
    rows = torch.tensor([[7], [7]])
    collector.add(Contribution(torch.arange(2), torch.ones(2), rows, rows > 0, {"items": after}, {"items": before}))
    sums = collector.sums["items"]
    assert sums.weight[7] == 4 and sums.weight.sum() == 4
    fast = method()
    state = {**fast.start(), "user": torch.empty(0, 2), "receivers": torch.empty(0, dtype=torch.int64)}
    output = {"output": torch.ones(3), "output-weight": torch.ones(1)}
    sent = {"user": torch.zeros(1, 2)}
    made = {"items": sums.total, "items-weight": sums.weight, **output}
    new = fast.phases()[0].task.fold(state, Gathered(1, 1, made, sent, np.array([0]), 1, 3, np.ones(3)))
    assert new["items"][7].tolist() == [(1 + 3 * 0) / 4, (0 + 3 * -3) / 4]
    assert torch.equal(new["items"][8], state["items"][8]) and new["output"].tolist() == [1, 1, 1]


def test_subordinates_follow_their_own_clusters_delegates() -> None:
    """Users 1 and 4 train: those of their clusters move by γ times the mean change, in whatever order uploads come."""
    fast, old = method(), two_clusters()
    state = {**fast.start(), "user": old, "receivers": torch.arange(6)}
    nothing = {name: torch.zeros_like(state[name]).double() for name in ("items", "output")}
    sums = {**nothing, "items-weight": torch.zeros(ITEMS), "output-weight": torch.zeros(1)}
    whose = np.array([4, 0, 1])
    sent = torch.stack([old[4] + torch.tensor([0.0, 2.0]), old[0] + torch.tensor([1.0, 0.0]), old[1]])
    new = fast.phases()[0].task.fold(state, Gathered(2, 2, sums, {"user": sent}, whose, 3, 6, np.ones(6)))
    gamma = math.exp(-FADING * 2)
    expected = old.clone()
    expected[[2, 3], 0] += gamma * 0.5  # the mean of 1 and 0
    expected[5, 1] += gamma * 2
    expected[[4, 0, 1]] = sent
    torch.testing.assert_close(new["user"], expected)
    assert new["receivers"].tolist() == list(range(6))
    assert torch.equal(new["items"], state["items"])


def test_delegates_are_taken_evenly_and_by_turns() -> None:
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 2])
    for round_ in range(1, 20):
        chosen = evenly(labels, 6, 0, round_)
        assert len(set(chosen.tolist())) == 6
        assert sorted(np.bincount(labels[chosen], minlength=3)) == [1, 2, 3], "two of each, and as many as there are"
    assert len({tuple(sorted(evenly(labels, 6, 0, r).tolist())) for r in range(1, 20)}) > 5
    assert evenly(labels, 6, 0, 1).tolist() == evenly(labels, 6, 0, 1).tolist()


def test_equal_vectors_are_one_cluster_and_others_are_found() -> None:
    assert clusters_of(np.ones((5, 3)), 4, 0, 1).tolist() == [0] * 5
    found = clusters_of(two_clusters().numpy(), 2, 0, 3)
    assert len(set(found[:4])) == len(set(found[4:])) == 1 and found[0] != found[5]


def test_vectors_do_not_depend_on_the_order_in_which_uploads_come() -> None:
    """To the last bit, or clusters would differ between runtimes sooner or later."""
    fast, old = method(), torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    old[39] = 0  # who follows, and shows the last bit
    state = {**fast.start(), "user": old, "receivers": torch.arange(40)}
    nothing = {name: torch.zeros_like(state[name]).double() for name in ("items", "output")}
    sums = {**nothing, "items-weight": torch.zeros(ITEMS), "output-weight": torch.zeros(1)}
    sent, whose = old + 1 / torch.arange(1, 41)[:, None], np.arange(39)

    def made(order: np.ndarray) -> torch.Tensor:
        each = {"user": sent[whose[order]]}
        gathered = Gathered(1, 1, sums, each, whose[order], 39, 40, np.ones(40))
        return fast.phases()[0].task.fold(state, gathered)["user"]

    orders = [np.random.default_rng(seed).permutation(39) for seed in range(5)]
    assert all(torch.equal(made(np.arange(39)), made(order)) for order in orders)


def test_the_server_chooses_by_what_it_has_seen() -> None:
    strategy: Any = build_strategy(method(run={"participants": 0.34}).config, ITEMS)
    strategy.samples = np.array([3, 3, 3, 3, 3, 3])
    strategy.kept |= {"user": two_clusters(), "receivers": torch.arange(6)}
    rounds = [strategy.participants(round_) for round_ in range(1, 40)]
    assert all(len(chosen) == 2 and (np.diff(chosen) > 0).all() for chosen in rounds)
    assert all(len(set(chosen) & {4, 5}) == 1 for chosen in rounds), "each cluster has a delegate in each round"
    strategy.samples = np.array([3, 3, 3, 3, 0, 0])
    assert not set(strategy.participants(50)) & {4, 5}, "who has no data trains nothing"


def test_that_vectors_go_up_is_said_and_half_of_them_is_refused() -> None:
    assert any("the vector of every user that trains" in line for line in method().caveats())
    with pytest.raises(InputError, match=r"set run\.participants, not aggregate\.fraction"):
        method(aggregate={"fraction": 0.5})
