"""Elastic merging of groups' tables: what is held out stays out, and ρ goes where the tastes are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from worlds import (
    Done,
    WatchedGrid,
    carry_out,
    carry_out_watched,
    config_of,
    done,
    figures,
    largest_difference,
    prepare,
)

from fedem_flwr.config import Config
from fedem_flwr.engine.elastic import Evidence, ItemWeights, Tables, crowded, curves, own_choice
from fedem_flwr.engine.elastic_scores import Chosen, FoldInMerge
from fedem_flwr.engine.held_out import HeldOut, hold_out, take, without
from fedem_flwr.engine.history import History
from fedem_flwr.engine.ials import FoldIn, FoldInScores, Objective, Recency
from fedem_flwr.engine.samples import TrainingItems
from fedem_flwr.errors import InputError
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.models.adapter import Adapter
from fedem_flwr.nodes.policy import NodePolicy
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.inprocess import task_identity
from fedem_flwr.runtime.prepared import PreparedRun
from fedem_flwr.serving.model import CpuModel, best_of_histories

METHODS = ["fedials-elastic", "fedmf-elastic"]
MODES = ["all", "client", "item"]
SMALL: dict[str, Any] = {"groups": 3, "clustering": 3, "rounds": 2, "steps": 2}
TABLE, BEFORE_FIT = 3, 3 + 3 + 2  # rounds of the global table, and of all that comes before ρ is fitted
OBJECTIVE, RECENCY = Objective(0.3, 0.01), Recency(4.0, 1.0)


def small(method: str, merge: str, **sections: Any) -> Config:
    """A run through all phases in a second."""
    rounds = BEFORE_FIT + 1 + (2 if merge == "item" else 0) + 2
    own: dict[str, dict[str, Any]] = {
        "run": {"rounds": rounds},
        "elastic": {**SMALL, "merge": merge},
        "model": {"dim": 8},
        "evaluation": {"every": 1},
    }
    return config_of(method, **{name: {**own.get(name, {}), **sections.get(name, {})} for name in {*own, *sections}})


def random_history(lists: list[list[int]], items: int, newest: list[int] | None = None) -> History:
    values = np.array([item for row in lists for item in row], np.int64)
    offsets = np.append(0, np.cumsum([len(row) for row in lists]))
    late = None if newest is None else np.array(newest)
    return History(np.arange(len(lists)) + 5, items, offsets, values, late)


def rows_of(history: History) -> list[list[int]]:
    return [part.tolist() for part in np.split(np.asarray(history.values), history.offsets[1:-1])]


LISTS = st.lists(st.lists(st.integers(0, 29), max_size=9, unique=True), min_size=1, max_size=6)


# What is held out.


@given(LISTS, st.integers(1, 4), st.booleans())
def test_a_history_is_cut_in_two(lists: list[list[int]], count: int, by_time: bool) -> None:
    held = hold_out(random_history(lists, 30), count, 3, by_time=by_time)
    for row, rest, out in zip(lists, rows_of(held.rest), held.items.tolist(), strict=True):
        real = [item for item in out if item < 30]
        assert len(real) == min(count, len(row) // 2) and sorted(rest + real) == sorted(row)
        assert rest == [item for item in row if item in rest], "the order stays"
        assert not by_time or real == row[::-1][: len(real)], "the newest, newest first"


@given(LISTS, st.integers(1, 3))
def test_without_times_a_new_item_holds_out_at_most_itself(lists: list[list[int]], count: int) -> None:
    before = hold_out(random_history(lists, 31), count, 3, by_time=False)
    grown = take(random_history(lists, 31, [30] * len(lists)), np.arange(len(lists)))
    after = hold_out(grown, count, 3, by_time=False)
    for old, new, row in zip(before.items.tolist(), after.items.tolist(), lists, strict=True):
        if min(count, len(row) // 2) == min(count, (len(row) + 1) // 2):
            assert set(new) - {30} <= set(old)


def test_users_are_taken_in_order() -> None:
    history = random_history([[1, 2], [], [3, 4, 5]], 9, [6, 7, 8])
    some = take(history, np.array([2, 0]))
    assert rows_of(some) == [[3, 4, 5, 8], [1, 2, 6]] and some.users.tolist() == [7, 5] and some.newest is None


def test_a_held_out_item_may_be_drawn_as_a_negative() -> None:
    flat = [torch.tensor(x) for x in ([0, 3, 5], [4, 1, 2, 0, 3], [0, 3, 5], [1, 2, 4, 0, 3])]
    held = HeldOut(random_history([[4, 1], [0]], 6), np.array([[2], [3]]))
    cut = without(TrainingItems(torch.arange(2), 6, *flat), held)
    assert cut.positive_items.tolist() == [4, 1, 0] and cut.positive_offsets.tolist() == [0, 2, 3]
    assert cut.forbidden_items.tolist() == [1, 4, 0] and cut.forbidden_offsets.tolist() == [0, 2, 3]


@pytest.mark.parametrize("method", METHODS)
def test_held_out_items_enter_no_sum_before_rho_is_fitted(method: str, tmp_path: Path) -> None:
    """Two worlds that differ in nothing but the held-out items: what goes up differs when these are looked at."""
    config = small(method, "all", elastic={"hold_out": 1})
    one = prepare(tmp_path / "one", config)
    split, items = one.split, np.array(one.split.train_items)
    rng = np.random.default_rng(0)
    for user, last in enumerate(split.train_offsets[1:] - 1):
        known = {*items[split.train_offsets[user] : last + 1], split.validation[user], split.test[user]}
        items[last] = rng.choice([item for item in range(split.items) if item not in known])
    other = PreparedRun.create(RunDirectory(tmp_path / "other").create(), config, replace(split, train_items=items))
    uploads = []
    for run in (one, other):
        with task_identity():
            grid = WatchedGrid(run)
            run.server(lambda _: None)(grid)
        uploads.append({crossing.round: crossing.arrays for crossing in grid.up if crossing.kind == "train"})
    differences = [largest_difference(uploads[0][str(r)], uploads[1][str(r)]) for r in range(1, BEFORE_FIT + 1)]
    assert differences == [0.0] * BEFORE_FIT
    assert largest_difference(uploads[0][str(BEFORE_FIT + 1)], uploads[1][str(BEFORE_FIT + 1)]) > 0


# The parts, beside slow twins.


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


# ρ = 1 and `none` are the method without merging.


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


@pytest.mark.parametrize("method", METHODS)
def test_none_is_the_method_itself(method: str, tmp_path: Path) -> None:
    config = small(method, "none", run={"rounds": 4})
    base = method.removesuffix("-elastic")
    plain = config_of(base, run={"rounds": 4}, model={"dim": 8}, evaluation={"every": 1})
    merged, alone = carry_out(tmp_path / "merged", config), carry_out(tmp_path / "plain", plain)
    assert np.array_equal(merged.server["table"], alone.server["table"])
    assert [line["test"] for line in merged.lines] == [line["test"] for line in alone.lines]


class Crash(BaseException):
    """Stands for SIGKILL: nothing handles it."""


def resumed_after(path: Path, config: Config, last: int) -> Done:
    """A run that dies when the line of round `last` is written, and is resumed by another process."""
    run = prepare(path, config)

    def die(line: dict[str, Any]) -> None:
        if line["round"] == last:
            raise Crash

    with pytest.raises(Crash):
        carry_out_rounds(run, die)
    again = PreparedRun.open(run.directory)
    return done(again, carry_out_rounds(again, lambda _: None, resume=True))


# Where ρ goes.


def world(path: Path, tastes: int) -> Path:
    """Users of two tastes, with blocks of items that are more than a table of width 4 can tell; or all of one taste."""
    rng, lines = np.random.default_rng(0), ["user,item,time"]
    liked = 1 / np.arange(1, 73) ** 0.5
    for user in range(240):
        block = np.arange(12) + 12 * rng.integers(3) + 36 * (user % 2)
        chosen = rng.permutation(block)[:9] if tastes == 2 else rng.choice(72, 9, replace=False, p=liked / liked.sum())
        lines += [f"u{user},i{item},{time}" for time, item in enumerate(chosen)]
    path.write_text("\n".join(lines) + "\n")
    return path


def fitted(path: Path, method: str, tastes: int) -> dict[str, Any]:
    data = {"dataset": str(world(path / f"{tastes}.csv", tastes)), "min_interactions": 5}
    elastic = {"groups": 2, "rounds": 10, "clustering": 12, "ridge": 0.005, "start": 0.5}
    extra: dict[str, Any] = {"model": {"dim": 3}, "ials": {"ridge": 0.01}}
    if method == "fedmf-elastic":
        elastic["ridge"], extra = 1.0, {"model": {"dim": 3}, "local": {"epochs": 5}}
    config = small(method, "all", data=data, elastic=elastic, run={"rounds": 12 + 2 * 10 + 1 + 12}, **extra)
    shown: Any = carry_out(path / f"run-{tastes}", config).outcome.diagnostics["elastic"]
    return dict(shown)


@pytest.mark.parametrize("method", METHODS)
def test_rho_moves_to_the_groups_where_tastes_differ(method: str, tmp_path: Path) -> None:
    two, one = (fitted(tmp_path, method, tastes) for tastes in (2, 1))
    gain = two["curve"][-1]["loss"] - min(point["loss"] for point in two["curve"])
    assert two["rho"] <= 0.6 and gain > 0.04, "ρ = 1 loses"
    assert one["rho"] >= 0.8


# Runs.


@pytest.mark.parametrize("merge", MODES)
@pytest.mark.parametrize("method", METHODS)
def test_killed_and_resumed_is_as_if_it_had_not_been(method: str, merge: str, tmp_path: Path) -> None:
    config = small(method, merge, run={"checkpoint_every": 2, "users_per_node": 20})
    whole = carry_out(tmp_path / "whole", config)
    for last in (TABLE + 2, BEFORE_FIT, BEFORE_FIT + 1, BEFORE_FIT + 2):
        resumed = resumed_after(tmp_path / str(last), config, last)
        assert largest_difference(whole.server, resumed.server) == 0
        assert largest_difference(whole.nodes, resumed.nodes) == 0
        assert [figures(line) for line in resumed.lines] == [figures(line) for line in whole.lines]
        assert resumed.outcome.diagnostics == whole.outcome.diagnostics


@pytest.mark.parametrize("merge", MODES)
@pytest.mark.parametrize("method", METHODS)
def test_the_spread_of_users_over_nodes_changes_nothing(method: str, merge: str, tmp_path: Path) -> None:
    runs = [
        carry_out(
            tmp_path / str(each),
            small(
                method,
                merge,
                run={"users_per_node": each},
                data={"synthetic": {"users": 21}},
                evaluation={"every": 100},
            ),
        )
        for each in (0, 7, 1)
    ]
    for other in runs[1:]:
        theta = [run.server["theta-value"] for run in (runs[0], other)]
        servers = [{k: v for k, v in run.server.items() if k != "theta-value"} for run in (runs[0], other)]
        assert largest_difference(*servers) < 1e-5
        assert np.abs(theta[0] - theta[1]).max(initial=0) < 1e-3, "Adam's first steps have the size of no gradient"
        assert runs[0].lines[-1]["test"]["full"] == pytest.approx(other.lines[-1]["test"]["full"], abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_no_sum_of_a_group_is_a_single_users(method: str, tmp_path: Path) -> None:
    config = small(method, "client", run={"users_per_node": 5})
    _, grid = carry_out_watched(tmp_path, config, policy=NodePolicy.networked())
    seen = [crossing.arrays["members"] for crossing in grid.up if "members" in crossing.arrays]
    assert seen and all(1 not in members.tolist() for members in seen)


def test_too_few_rounds_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"leaves 1 for the method's own table.*Raise it to 10"):
        carry_out(tmp_path, small("fedials-elastic", "all", run={"rounds": 9}))


@pytest.mark.parametrize("merge", MODES)
def test_a_served_run_recommends_to_anybody(merge: str, tmp_path: Path) -> None:
    """A user of the run gets as a newcomer, by its training history, what the client itself scores."""
    run = carry_out(tmp_path, small("fedials-elastic", merge)).run
    model, split = CpuModel.of(run.directory), run.split
    histories = [
        split.train_items[split.train_offsets[u] : split.train_offsets[u + 1]].astype(np.int64) for u in (0, 7)
    ]
    found = best_of_histories(model.components(), histories, split.items, 5, unseen=False)
    for user, best in zip((0, 7), found, strict=True):
        own = model.trained_user(user)[0].topk(5)
        assert best.scores == pytest.approx(own.values.numpy(), rel=1e-4)
