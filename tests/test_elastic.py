"""Elastic merging of groups' tables: its parts beside slow twins."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from elastic_world import random_history, rows_of, small
from hypothesis import given
from hypothesis import strategies as st

from fedem_flwr.aggregation.newton import Newton, newton_step
from fedem_flwr.contract import Gathered, State
from fedem_flwr.contract.finding import method_of
from fedem_flwr.engine.group_scores import Chosen, FoldInMerge
from fedem_flwr.engine.group_tables import Evidence, ItemWeights, Tables, crowded, curves, own_choice
from fedem_flwr.engine.held_out import hold_out
from fedem_flwr.engine.ials import FoldIn, FoldInScores, Objective, Recency
from fedem_flwr.models.adapter import Adapter

OBJECTIVE, RECENCY = Objective(0.3, 0.01), Recency(4.0, 1.0)


def tables_of(groups: int, items: int, dim: int, seed: int = 0) -> Tables:
    generator = torch.Generator().manual_seed(seed)

    def table(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    glob = table(items, dim)
    return Tables(glob, glob + 0.4 * table(groups, items, dim), table(groups, dim))


def evidence_of(tables: Tables, users: int = 11) -> Evidence:
    rng = np.random.default_rng(1)
    lists = [rng.permutation(len(tables.glob))[: rng.integers(0, 9)].tolist() for _ in range(users)]
    held = hold_out(random_history(lists, len(tables.glob)), 2, 0, by_time=True)
    embeddings = torch.from_numpy(rng.normal(size=(users, tables.glob.shape[1])))
    return Evidence(held, tables.choose(embeddings), lambda table, who: embeddings[torch.from_numpy(who)])


def test_curves_are_those_of_the_plain_loop() -> None:
    tables = tables_of(3, 14, 4)
    evidence, rhos = evidence_of(tables), [0.0, 0.3, 1.0]
    found = curves(evidence, tables, rhos)
    assert len(set(evidence.group.tolist())) == 3, "the world is worth looking at"
    for user, rest in enumerate(rows_of(evidence.held.rest)):
        group = int(evidence.group[user])
        for column, rho in enumerate(rhos):
            table = (1 - rho) * tables.groups[group] + rho * tables.glob
            scores = (table @ evidence.embed(table, np.array([user]))[0]).tolist()
            loss = 0.0
            for target in evidence.held.items[user].tolist():
                if target < 14:
                    rank = 1 + sum(scores[j] >= scores[target] for j in range(14) if j != target and j not in rest)
                    loss += float(np.log2(1 + rank))
            assert found[user, column] == pytest.approx(loss)


def test_the_adapters_gradient_is_a_difference_quotient() -> None:
    tables, adapter = tables_of(2, 13, 3, seed=4), Adapter(3, (5, 4))
    evidence = evidence_of(tables)
    theta = adapter.initial(1).double()
    gradient, _ = ItemWeights(adapter, theta).gradient(evidence, tables)

    def frozen(at: torch.Tensor) -> float:
        """The loss with the softmax's scale as it was at theta: that is held fixed like the embeddings."""
        seen, start = ItemWeights(adapter, at).forward(tables), ItemWeights(adapter, theta).forward(tables)
        loss = 0.0
        for group in range(2):
            for who in evidence.blocks(group):
                scores, _ = evidence.scores(tables.merged(group, seen.rho[group]), who)
                before, _ = evidence.scores(tables.merged(group, start.rho[group]), who)
                scale = 2.5 / before.masked_fill(before.isinf(), 0).std(1, keepdim=True)
                targets, real = evidence.targets(who, scores.device)
                loss -= float((torch.log_softmax(scores * scale, 1).gather(1, targets) * real).sum())
        return loss

    step, checked = 1e-6, 0
    for index in range(0, len(theta), 3):
        change = torch.zeros_like(theta)
        change[index] = step
        slope = (frozen(theta + change) - frozen(theta - change)) / (2 * step)
        assert float(gradient[index]) == pytest.approx(slope, abs=1e-5)
        checked += abs(slope) > 1e-3
    assert checked > 5


@given(st.lists(st.integers(0, 4), min_size=4, max_size=20), st.integers(1, 4))
def test_no_sum_is_of_too_few(groups: list[int], smallest: int) -> None:
    moved = crowded(torch.tensor(groups), 5, smallest)
    sizes = torch.bincount(moved, minlength=5)
    assert all(size == 0 or size >= smallest for size in sizes.tolist())
    assert all(int(to) == was for to, was in zip(moved, groups, strict=True) if groups.count(was) >= smallest)


def test_a_client_without_evidence_goes_with_the_others() -> None:
    mean = torch.tensor([3.0, 1.0, 2.0])
    own = own_choice(torch.tensor([[0.0, 0.0, 0.0], [0.0, 9.0, 0.0]]), mean, 1.0, [0.0, 0.5, 1.0])
    assert own.tolist() == [0.5, 1.0]
    assert own_choice(torch.zeros(1, 3), mean, 0.0, [0.0, 0.5, 1.0]).tolist() == [0.5]


# ρ = 1 is the method without merging.


def test_rho_1_is_the_method_without_merging() -> None:
    tables = tables_of(1, 20, 4)
    history = random_history([[1, 2, 3], [5], [7, 8, 9, 10]], 20)
    merge = FoldInMerge(tables, OBJECTIVE, RECENCY, 1.0)
    plain = FoldInScores(FoldIn(tables.glob, OBJECTIVE), RECENCY)
    who = np.arange(3)
    assert torch.equal(merge.scores(history, who)[0], plain.scores(history, who)[0])
    assert not torch.equal(replace(merge, rho=0.9).scores(history, who)[0], plain.scores(history, who)[0])
    many = tables_of(3, 20, 4)
    for rho in (torch.ones(5), torch.ones(3, 20, dtype=torch.float64)):
        chosen = Chosen(torch.tensor([0, 1, 1, 2, 0]), rho)
        assert all(torch.equal(table, many.glob) for table, _ in chosen.tables(many))


# What the server makes of the groups' sums.


def group_sums(items: int, groups: int, dim: int) -> dict[str, torch.Tensor]:
    """Of six users in two groups; the third has nobody, and nobody has the last item."""
    generator = torch.Generator().manual_seed(3)
    counts = torch.randint(0, 3, (groups, items), generator=generator).double()
    counts[2], counts[:, -1], counts[:2, 0] = 0, 0, 1
    rows = torch.randn(groups, items, dim, generator=generator, dtype=torch.float64) * counts[..., None]
    users = torch.randn(groups, 3, dim, generator=generator, dtype=torch.float64)
    grams, members = users.mT @ users, torch.tensor([3.0, 3.0, 0.0])
    grams[2] = 0
    whole = {"rows": rows.sum(0), "counts": counts.sum(0), "gram": grams.sum(0)}
    of_groups = {"group-rows": rows.flatten(0, 1), "group-counts": counts.flatten(), "group-grams": grams}
    return {**whole, **of_groups, "members": members}


def folded(name: str) -> tuple[Any, State, State, dict[str, torch.Tensor]]:
    """The method, its state before and after a round of the groups, and the round's sums."""
    items, dim = 7, 4
    method: Any = method_of(small(name, "all", model={"dim": dim}, group_tables={"ridge": 0.5}), items)
    state = method.start()
    table = state[method.merging.table]
    groups = table + torch.arange(1, 4)[:, None, None] * 0.1
    before = {**state, "groups": groups, "centres": torch.zeros(3, dim)}
    sums = group_sums(items, 3, dim)
    gathered = Gathered(1, 1, sums, {}, np.empty(0, np.int64), 6, 6, np.ones(6, np.int64))
    return method, before, method.schedule.named("groups").task.fold(before, gathered), sums


def test_rows_of_a_group_are_shrunk_towards_those_of_all() -> None:
    _, before, after, sums = folded("fedmf-elastic")
    rows, counts = sums["group-rows"].view(3, 7, 4), sums["group-counts"].view(3, 7)
    for item in range(7):
        total = float(counts[:, item].sum())
        mean = rows[:, item].sum(0) / total if total else before["items"][item].double()
        torch.testing.assert_close(after["items"][item].double(), mean, rtol=1e-5, atol=1e-6)
        for group in range(3):
            count = float(counts[group, item])
            shrunk = (rows[group, item] + 0.5 * mean) / (count + 0.5)
            expected = shrunk if count else before["groups"][group, item].double()
            torch.testing.assert_close(after["groups"][group, item].double(), expected, rtol=1e-5, atol=1e-6)


def test_a_groups_step_has_a_ridge_towards_the_new_global_table() -> None:
    method, before, after, sums = folded("fedials-elastic")
    ials, rows, counts = method.config.ials, sums["group-rows"].view(3, 7, 4), sums["group-counts"].view(3, 7)
    step = Newton(ials.weight, ials.ridge, ials.kappa, 1.0)
    table = newton_step(before["table"], sums["rows"], sums["counts"], sums["gram"], 6, step)
    torch.testing.assert_close(after["table"], table)
    for group, members in enumerate((3, 3, 1)):  # nobody counts as one
        own = rows[group], counts[group], sums["group-grams"][group]
        expected = newton_step(before["groups"][group], *own, members, step, (table, 0.5))
        torch.testing.assert_close(after["groups"][group], expected)
