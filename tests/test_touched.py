"""Clients that keep the rows they trained: equal to whole tables of the same meaning, on both sides and on any path."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from touched_world import CPU, DIM, ITEMS, USERS, Sparse, Twin, items_of, method_for

from fedem_flwr.aggregation import aggregation_weights, combine_tables, similarity
from fedem_flwr.aggregation.touched import combine_touched
from fedem_flwr.aggregation.weights import row_weights
from fedem_flwr.contract.fields import fault_of
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.downloads import Download
from fedem_flwr.engine.touched import TouchedCohort
from fedem_flwr.errors import InputError
from fedem_flwr.models.rows import Rows, ragged, union

ROUNDS = [  # who trains, and who of them uploads
    ([0, 1, 2, 3, 5, 8], [0, 1, 2, 5, 8]),
    ([0, 2, 3, 4, 8], [0, 3, 4, 8]),
    ([0, 1, 3, 4, 6, 7], [0, 1, 3, 4, 6, 7]),
    ([0, 1, 2, 4, 5, 6], [0, 1]),
]
VARIANTS: dict[str, dict[str, Any]] = {
    "elastic": {},
    "compiled": {"run": {"engine": "fused"}},
    "one by one": {"run": {"engine": "reference"}},
    "scalar": {"merge": {"mode": "scalar"}},
    "static": {"merge": {"mode": "static"}},
    "replaced": {"merge": {"mode": "replace"}},
    "in every batch": {"merge": {"schedule": "released"}},
    "scalar in every batch": {"merge": {"schedule": "released", "mode": "scalar"}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_rounds_are_those_of_whole_tables(variant: str) -> None:
    sections = {"run": {"engine": "torch"}, **VARIANTS[variant]}
    twin = Twin(method_for("whole", **sections), items_of(USERS))
    here = Sparse(method_for("touched", **sections), items_of(USERS))
    exact = variant in ("compiled", "one by one")  # torch's products of other shapes may differ in the last bit
    near = {"rtol": 0.0, "atol": 0.0} if exact else {"rtol": 1e-4, "atol": 1e-5}
    for number, (who, up) in enumerate(ROUNDS, 1):
        losses = [side.round(torch.tensor(who), torch.tensor(up), number) for side in (twin, here)]
        torch.testing.assert_close(*losses, **near)
        rows, sent = here.cohort.rows, Rows.of(here.server, "items")
        mask = torch.zeros(USERS, ITEMS, dtype=torch.bool)
        mask[rows.owner, rows.index.long()] = True
        assert torch.equal(mask, twin.kept)
        torch.testing.assert_close(rows.values, twin.state["items"][rows.owner, rows.index.long()], **near)
        for name in here.cohort.state.keys() & {"user", "adapter"}:
            torch.testing.assert_close(here.cohort.state[name], twin.state[name], **near)
        torch.testing.assert_close(here.server["items"], twin.base, rtol=1e-4, atol=1e-4)
        owner = torch.from_numpy(here.receivers)[sent.owner]
        assert len(sent.index) == int(twin.waits.sum())
        torch.testing.assert_close(sent.values, twin.sent[owner, sent.index.long()], rtol=1e-4, atol=1e-4)
        twin.follow(here)
        own, received = twin.tables()
        whole = Cohort(twin.data, {**twin.state, "items": own}, twin.method)
        down = {"items": Download(received, torch.arange(USERS).where(twin.waits.any(1), -1))}
        expected, rho = whole.seen(whole.everyone, down)
        found, rho_of_rows = here.cohort.seen(whole.everyone, {"items": here.download()})
        torch.testing.assert_close(found["items"], expected["items"], rtol=1e-5, atol=1e-5)
        logits, _ = here.cohort.scores(whole.everyone, {"items": here.download()})
        torch.testing.assert_close(logits, twin.method.score(found), rtol=1e-4, atol=1e-5)
        assert rho is not None and rho_of_rows is not None and rho_of_rows.numel() <= rho.numel()


@st.composite
def sent_rows(draw: st.DrawFn) -> tuple[Rows, Tensor, Tensor]:
    """Rows of a few clients, some of none or all; a base; their interactions."""
    clients, items = draw(st.integers(1, 7)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    mask = torch.rand(clients, items, generator=generator) < draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))
    base, scale = torch.randn(items, 3, generator=generator), draw(st.sampled_from([0.0, 0.1, 1.0, 30.0]))
    values = base[mask.nonzero()[:, 1]] + scale * torch.randn(int(mask.sum()), 3, generator=generator)
    counts = torch.randint(1, 50, (clients,), generator=generator).double()
    return Rows(mask.sum(1), mask.nonzero()[:, 1].int(), values), base, counts


@settings(max_examples=60, deadline=None)
@given(sent_rows(), st.sampled_from([0.0, 0.9, 5.0]), st.sampled_from([1, 7, 1 << 20]))
def test_combined_rows_are_those_of_whole_tables(world: tuple[Rows, Tensor, Tensor], alpha: float, pairs: int) -> None:
    """Also a few receivers at a time."""
    rows, base, counts = world
    shares = counts / counts.sum()
    found = combine_touched(base, rows, lambda alike: row_weights("eq13", shares, alike, alpha), pairs=pairs)
    tables = base.repeat(len(counts), 1, 1)
    tables[rows.owner, rows.index.long()] = rows.values
    weights = aggregation_weights("eq13", shares, similarity(tables), alpha)
    whole = combine_tables(weights, tables)
    torch.testing.assert_close(found.rows.values, whole[rows.owner, rows.index.long()], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.own, weights.diagonal(), rtol=1e-6, atol=1e-6)
    nobody = row_weights("eq13", shares, torch.zeros(1, len(counts)), alpha)
    torch.testing.assert_close(found.base, combine_tables(nobody, tables)[0], rtol=1e-4, atol=1e-4)


def test_how_many_are_laid_out_together_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for floats in (1, 1 << 24):
        monkeypatch.setattr("fedem_flwr.engine.touched._BENCH_FLOATS", floats)
        here = Sparse(method_for("touched", run={"engine": "fused"}), items_of(USERS))
        for number, (who, up) in enumerate(ROUNDS[:2], 1):
            here.round(torch.tensor(who), torch.tensor(up), number)
        found.append(here.cohort.state)
    assert found[0].keys() == {"user", "adapter", *ragged("items")}
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_rows_of_some_are_replaced() -> None:
    rows = Rows(torch.tensor([2, 0, 1]), torch.tensor([1, 4, 3]).int(), torch.arange(3.0).unsqueeze(1))
    new = Rows(torch.tensor([1, 2]), torch.tensor([9, 0, 7]).int(), torch.tensor([[7.0], [8.0], [9.0]]))
    found = rows.replaced(torch.tensor([2, 1]), new)
    assert found.counts.tolist() == [2, 2, 1] and found.index.tolist() == [1, 4, 0, 7, 9]
    assert found.values.squeeze(1).tolist() == [0, 1, 8, 9, 7]
    back = found.at(torch.tensor([2, 0]))
    assert back.index.tolist() == [9, 1, 4] and back.owner.tolist() == [0, 1, 1]
    index, real = union(found, rows, 10)
    assert index[real].tolist() == [1, 4, 0, 7, 3, 9]


@pytest.mark.parametrize(
    ("name", "sections", "why"),
    [
        ("fedmf", {}, "keep no table of their own"),
        ("local-only", {}, "nothing is received"),
        ("fedem-released", {}, "aggregate.similarity = 'pca'"),
        ("fedem", {"aggregate": {"neighbours": 3}}, "neighbours = 0"),
        ("fedem", {"method": {"options": {"first_merge": True}}}, "merges every row"),
        ("fedem", {"ldp": {"noise": "gaussian", "clip": 1.0, "multiplier": 1.0}}, "guards whole tables"),
        ("gpfedrec", {"merge": {"mode": "elastic"}}, "tables of whole ones"),
        ("pfedrec", {"merge": {"mode": "elastic"}}, "whole tables are added up"),
        ("fedem", {"diagnostics": {"bottleneck": True}}, "bottleneck"),
    ],
)
def test_what_needs_whole_tables_says_so(name: str, sections: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=f"merge.table = 'touched'.*{why}"):
        method_for("touched", name=name, **sections)


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        (([1, 2], [3, 0, 2], 3), ""),
        (([2, 1], [0, 3, 2], 3), ""),
        (([3, 0], [3, 0, 2], 3), "ascending"),
        (([1, 1], [3, 0, 2], 3), "not those that 'items-count' says"),
        (([4, -1], [0, 1, 2], 3), "below 0"),
        (([0, 3], [0, 1, ITEMS], 3), "ascending item codes below"),
        (([0, 3], [0, 1, 2], 2), "not those that"),
    ],
)
def test_rows_that_cannot_be_are_named(arrays: tuple[list[int], list[int], int], why: str) -> None:
    counts, index, rows = arrays
    method = method_for("touched")
    fields = {name: field for name, field in method.phases()[0].task.fields().items() if name != "users"}
    named = {"items-count": np.array(counts), "items-index": np.array(index, np.int32)}
    named["items-rows"] = np.zeros((rows, DIM), np.float32)
    fault = fault_of(named, fields, 2, 10.0)
    assert why in fault and bool(fault) == bool(why)


def test_one_user_cannot_hide_a_large_table_among_others() -> None:
    method = method_for("touched", aggregate={"max_norm": 5.0})
    rows = np.zeros((3, DIM), np.float32)
    rows[1:, 0] = 4.0
    named = {"items-count": np.array([1, 2]), "items-index": np.array([0, 1, 2], np.int32), "items-rows": rows}
    assert "norm 5.66, more than 5" in method.phases()[0].task.problem(named, 2, 10)


def test_two_uploads_have_the_history_in_common() -> None:
    """What docs/security.md says of them."""
    method, data = method_for("touched", local={"epochs": 1, "negatives": 2}), items_of(USERS)
    cohort = method.cohort(data, method.initial_state(USERS, CPU))
    assert isinstance(cohort, TouchedCohort)
    named = torch.ones(USERS, ITEMS, dtype=torch.bool)
    for round_ in range(1, 5):
        cohort.train(cohort.everyone, {}, round_)
        mask = torch.zeros_like(named)
        mask[cohort.rows.owner, cohort.rows.index.long()] = True
        named &= mask
    history = torch.zeros_like(named)
    history[torch.arange(USERS).repeat_interleave(data.counts()), data.positive_items] = True
    assert bool((named | ~history).all()), "positives are always there"
    assert int(named.sum()) <= 1.1 * int(history.sum())
    assert any("names the rows that its user trained" in line for line in method.caveats())
