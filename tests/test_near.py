"""Eq. 13 by a smooth part, a diagonal and near pairs, against all pairs; and the bound on what is dropped."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from factorised import learner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedem_flwr.aggregation import aggregation_weights, combine_tables, similarity
from fedem_flwr.aggregation.near import combine_near
from fedem_flwr.contract import Gathered
from fedem_flwr.errors import InputError


def world(clients: int, seed: int, spread: float = 3.0, items: int = 11, width: int = 3) -> tuple[Tensor, Tensor]:
    """Tables at very different distances from their mean, and shares of the data."""
    g = torch.Generator().manual_seed(seed)
    size = torch.exp(spread * torch.rand(clients, 1, 1, generator=g) - 1)
    shares = torch.rand(clients, generator=g) + 0.5
    return size * torch.randn(clients, items, width, generator=g) + 2, shares / shares.sum()


def exactly(tables: Tensor, shares: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    weights = aggregation_weights("eq13", shares, similarity(tables), alpha)
    return weights, combine_tables(weights, tables)


@settings(max_examples=40, deadline=None)
@given(
    clients=st.integers(1, 40),
    neighbours=st.integers(0, 12),
    sketch=st.integers(1, 33),
    nodes=st.integers(2, 9),
    seed=st.integers(0, 999),
    alpha=st.floats(0, 4),
    spread=st.floats(0, 4),
)
def test_no_table_is_further_off_than_the_bound(
    clients: int, neighbours: int, sketch: int, nodes: int, seed: int, alpha: float, spread: float
) -> None:
    tables, shares = world(clients, seed, spread)
    found = combine_near(tables, shares, alpha, neighbours=neighbours, sketch=sketch, nodes=nodes, block_items=4)
    weights, expected = exactly(tables, shares, alpha)
    away = (found.tables - expected).flatten(1).norm(dim=1).double()
    assert bool((away <= found.bound * found.spread + 1e-4).all())
    assert bool(((found.own - weights.diagonal()).abs() <= found.bound + 1e-6).all())


@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_with_all_pairs_kept_it_is_exact(spread: float) -> None:
    tables, shares = world(30, 1, spread)
    found = combine_near(tables, shares, 0.9, neighbours=29, sketch=5, nodes=3)
    weights, expected = exactly(tables, shares, 0.9)
    assert float(found.bound.abs().max()) == 0.0
    torch.testing.assert_close(found.tables, expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(found.own, weights.diagonal(), rtol=0, atol=1e-6)


def test_a_client_whose_weights_reach_0_is_combined_with_all() -> None:
    """A twin takes what others would get, so that these have no weight."""
    tables, _ = world(12, 3)
    tables[1] = tables[0] + 1e-3
    shares = torch.tensor([1.0, 1.0, 1e-6, *[1.0] * 9])
    shares /= shares.sum()
    found = combine_near(tables, shares, 4.0, neighbours=1, sketch=2, nodes=3)
    weights, expected = exactly(tables, shares, 4.0)
    assert bool((weights == 0).any()) and {0, 1} <= set(found.exact.tolist()) and len(found.exact) < 12
    torch.testing.assert_close(found.tables[found.exact], expected[found.exact], rtol=0, atol=2e-5)
    assert float(found.bound[found.exact].max()) == 0.0


def test_far_tables_have_a_small_bound() -> None:
    """A sketch that sees all there is bounds what is dropped by what the base lacks: it is no empty promise."""
    tables, shares = world(40, 5, 1.0, items=40)
    found = combine_near(tables, shares, 0.9, neighbours=4, sketch=40)
    assert float(found.bound.max()) < 0.02 < float(exactly(tables, shares, 0.9)[0].diagonal().min())


def test_fedem_combines_by_neighbours_and_says_how_near(caplog: pytest.LogCaptureFixture) -> None:
    tables, _ = world(20, 7, items=6)
    near = learner("fedem", 6, "elastic", model={"dim": 3}, aggregate={"neighbours": 19})
    sent = Gathered(3, 3, {}, {"items": tables}, np.arange(20), 20, 20, np.full(20, 5))
    with caplog.at_level(logging.INFO, "fedem.aggregation"):
        state = near.phases()[0].task.fold({}, sent)
    assert "tables of 20 clients by 19 neighbours: weights within 0 (median)" in caplog.text
    exact = learner("fedem", 6, "elastic", model={"dim": 3}).phases()[0].task.fold({}, sent)
    torch.testing.assert_close(state["items"], exact["items"], rtol=0, atol=2e-5)
    shown = near.diagnostics(state)["weights"]
    assert isinstance(shown, dict) and set(shown) == {"own", "bound"}
    assert any("aggregate.neighbours = 19" in line for line in near.caveats())


@pytest.mark.parametrize("settings", [{"weights": "released"}, {"similarity": "cosine"}, {"saturate": 0.9}])
def test_neighbours_are_for_eq13_on_whole_tables(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"aggregate\.neighbours = 2 is for aggregate\.weights = 'eq13'"):
        learner("fedem", 6, "elastic", aggregate={"neighbours": 2, **settings})
