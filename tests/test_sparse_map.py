"""The map of a large catalogue: sums without a table of items × items, and small systems against the dense one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedem_flwr.contract import Field, Gathered, adding, indexed
from fedem_flwr.contract.adding import Adder
from fedem_flwr.engine.history import History
from fedem_flwr.engine.sparse_map import SparseSums, sparse_map
from fedem_flwr.engine.transitions import directional_map, pair_sums
from fedem_flwr.methods.tasks.order_map import OrderMap

RIDGE = 0.4


def world(seed: int, items: int, users: int = 30, longest: int = 12, *, everything: bool = False) -> History:
    """Walks: what follows an item is near it; at the end, if wanted, a user who has everything, twice."""
    rng = np.random.default_rng(seed)
    lists = [(rng.integers(items) + rng.integers(0, 4, n).cumsum()) % items for n in rng.integers(1, longest, users)]
    lists[-1] = np.tile(rng.permutation(items), 2) if everything else lists[-1]
    offsets = np.cumsum([0, *map(len, lists)])
    return History(np.arange(users), items, offsets, np.concatenate(lists).astype(np.int32))


def sums_of(history: History) -> SparseSums:
    sums = pair_sums(history, history.users)
    return SparseSums(history.items, sums.pairs, sums.gram, sums.cross)


def dense(sums: SparseSums) -> tuple[Tensor, Tensor]:
    """Σ x xᵀ and Σ x yᵀ as tables."""
    found = torch.zeros(2, sums.items**2, dtype=torch.float64)
    found[0, sums.pairs], found[1, sums.pairs] = torch.from_numpy(sums.gram), torch.from_numpy(sums.cross)
    return found[0].view(sums.items, -1), found[1].view(sums.items, -1)


def in_full(items: int, rows: Tensor, values: Tensor) -> Tensor:
    return torch.zeros(items, items).scatter_add_(1, rows.long(), values)


def plain(sums: SparseSums) -> Tensor:
    """(m, m) a row at a time: the system of an item and of all that it was ever met with."""
    gram, cross = dense(sums)
    strength, found = RIDGE * float(gram.diagonal().mean()), torch.zeros(sums.items, sums.items, dtype=torch.float64)
    for item in range(sums.items):
        near = torch.unique(torch.cat([gram[item].nonzero().squeeze(1), torch.tensor([item])]))
        system = gram[near][:, near] + strength * torch.eye(len(near), dtype=torch.float64)
        found[item] = torch.linalg.solve(system, (near == item).double()) @ cross[near]
    return found.float()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40))
def test_a_row_is_the_solution_on_an_items_neighbours(seed: int, items: int) -> None:
    sums = sums_of(world(seed, items))
    found = in_full(items, *sparse_map(sums, RIDGE, items, neighbours=items, followers=items))
    torch.testing.assert_close(found, plain(sums), rtol=1e-4, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 15))
def test_where_all_items_are_neighbours_it_is_the_dense_solution(seed: int, items: int) -> None:
    """Somebody has had them all, within a window."""
    sums = sums_of(world(seed, items, everything=True))
    expected = in_full(items, *directional_map(*dense(sums), RIDGE, items))
    found = in_full(items, *sparse_map(sums, RIDGE, items, neighbours=items, followers=items))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("entries", [1, 5, 30])
def test_a_rows_largest_entries_are_kept_in_order(entries: int) -> None:
    """Where a row has fewer, the rest adds nothing; so does an item that nobody has."""
    sums = sums_of(world(3, 25, users=12, longest=6))
    whole = in_full(25, *sparse_map(sums, RIDGE, 25, neighbours=25, followers=25))
    items, values = sparse_map(sums, RIDGE, entries, neighbours=25, followers=25)
    assert items.shape == values.shape == (25, entries) and items.dtype == torch.int32
    assert bool((values.abs().diff(dim=1) <= 0).all())
    best = whole.abs().sort(dim=1, descending=True).values[:, :entries]
    torch.testing.assert_close(values.abs(), torch.nn.functional.pad(best, (0, entries - best.shape[1])))
    unknown = np.setdiff1d(np.arange(25), sums.pairs // 25)
    assert len(unknown) and not values[unknown].any()


def test_few_neighbours_come_near() -> None:
    """Where what follows is near, a system of a tenth of the items has most of the map; the item alone has not."""
    sums = sums_of(world(1, 200, users=300))
    expected = in_full(200, *directional_map(*dense(sums), RIDGE, 200))
    gaps = []
    for neighbours in (1, 20):
        found = in_full(200, *sparse_map(sums, RIDGE, 200, neighbours=neighbours))
        gaps.append(float((found - expected).norm() / expected.norm()))
    assert gaps[1] < 0.1 < 0.5 < gaps[0], gaps


def test_sums_of_no_histories_are_said_to_be_none() -> None:
    """A pair that is met far more often than its items."""
    sums = SparseSums(3, np.array([0, 1, 3, 4]), np.array([1.0, 9.0, 9.0, 1.0]), np.ones(4))
    with pytest.raises(FloatingPointError, match="not those of any histories"):
        sparse_map(sums, 1e-6, 3)


uploads = st.lists(st.dictionaries(st.integers(0, 29), st.integers(-9, 9), max_size=8), max_size=6)


@settings(max_examples=50, deadline=None)
@given(uploads, st.sampled_from([1, 10**6]))
def test_sparse_sums_are_the_dense_ones(nodes: list[dict[int, int]], waiting: int) -> None:
    """Whenever they are added up, and as one upload, too."""
    fields = {**indexed("at", 30, dtype="int64", value=Field((None,))), "count": Field((1,), "int64")}
    with pytest.MonkeyPatch.context() as patch:
        full = Adder(fields)
        patch.setattr(adding, "DENSE", 29)
        patch.setattr(adding, "_WAITING", waiting)
        sparse = Adder(fields)
        for node in nodes:
            at = np.array(sorted(node), np.int64)
            sent = {"at": at, "value": np.array([node[i] for i in at], np.float32), "count": np.array([len(at)])}
            full.add(sent)
            sparse.add(sent)
    assert sparse.sums["value"].is_sparse and not full.sums["value"].is_sparse
    assert torch.equal(sparse.sums["value"].to_dense(), full.sums["value"])
    one, other = sparse.packed(), full.packed()
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)


def test_the_server_makes_the_map_of_sparse_sums() -> None:
    """Where all items are neighbours: the same map, without a table of pairs."""
    history = world(5, 15, everything=True)
    made = {}
    for kept in (False, True):
        task = OrderMap(15, 6, RIDGE, sparse=kept)
        adder = Adder(task.fields())
        for who in (history.users[:10], history.users[10:]):
            sums = pair_sums(history, who)
            adder.add({"pairs": sums.pairs, "pair-gram": sums.gram, "pair-cross": sums.cross})
        gathered = Gathered(1, 1, adder.sums, {}, np.empty(0, np.int64), 30, 30, history.counts())
        assert adder.sums["pair-gram"].is_sparse == kept
        made[kept] = task.fold(task.start(), gathered)
    one, other = (in_full(15, state["map-items"], state["map-values"]) for state in made.values())
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
