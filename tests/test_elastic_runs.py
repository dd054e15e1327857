"""Runs with elastic merging: ρ goes where the tastes are, nodes do not matter, and a killed run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crashes import resumed_after
from elastic_world import BEFORE_FIT, METHODS, MODES, TABLE, small
from worlds import carry_out, carry_out_watched, config_of, figures, largest_difference

from fedem_flwr.errors import InputError
from fedem_flwr.nodes.policy import NodePolicy
from fedem_flwr.serving.model import CpuModel, best_of_histories

# `none` is the method without merging.


@pytest.mark.parametrize("method", METHODS)
def test_none_is_the_method_itself(method: str, tmp_path: Path) -> None:
    config = small(method, "none", run={"rounds": 4})
    base = method.removesuffix("-elastic")
    plain = config_of(base, run={"rounds": 4}, model={"dim": 8}, evaluation={"every": 1})
    merged, alone = carry_out(tmp_path / "merged", config), carry_out(tmp_path / "plain", plain)
    name = "table" if base == "fedials" else "items"
    assert np.array_equal(merged.server[name], alone.server[name])
    assert [line["test"] for line in merged.lines] == [line["test"] for line in alone.lines]


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
    config = small(method, "all", data=data, group_tables=elastic, run={"rounds": 12 + 2 * 10 + 1 + 12}, **extra)
    shown: Any = carry_out(path / f"run-{tastes}", config).outcome.diagnostics["group-tables"]
    return dict(shown)


@pytest.mark.parametrize("method", METHODS)
def test_rho_moves_to_the_groups_where_tastes_differ(method: str, tmp_path: Path) -> None:
    two, one = (fitted(tmp_path, method, tastes) for tastes in (2, 1))
    gain = two["curve"][-1]["loss"] - min(point["loss"] for point in two["curve"])
    assert two["rho"] <= 0.6 and gain > 0.04, "ρ = 1 loses"
    assert one["rho"] >= 0.8


# Runs.


# With ρ for all, as in the presets, the conformance table asks the same of both methods.


@pytest.mark.parametrize(("method", "merge"), [("fedials-elastic", "item"), ("fedmf-elastic", "client")])
def test_killed_and_resumed_is_as_if_it_had_not_been(method: str, merge: str, tmp_path: Path) -> None:
    config = small(method, merge, run={"checkpoint_every": 2, "users_per_node": 20})
    whole = carry_out(tmp_path / "whole", config)
    for last in (TABLE + 2, BEFORE_FIT + 1):
        resumed = resumed_after(tmp_path / str(last), config, last)
        assert largest_difference(whole.server, resumed.server) == 0
        assert largest_difference(whole.nodes, resumed.nodes) == 0
        assert [figures(line) for line in resumed.lines] == [figures(line) for line in whole.lines]
        assert resumed.outcome.diagnostics == whole.outcome.diagnostics


@pytest.mark.parametrize(("method", "merge"), [("fedials-elastic", "client"), ("fedmf-elastic", "item")])
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
        for each in (0, 7)
    ]
    for other in runs[1:]:
        theta = [run.server["theta"] for run in (runs[0], other)]
        servers = [{k: v for k, v in run.server.items() if k != "theta"} for run in (runs[0], other)]
        assert largest_difference(*servers) < 1e-5
        assert np.abs(theta[0] - theta[1]).max(initial=0) < 1e-3, "Adam's first steps have the size of no gradient"
        assert runs[0].lines[-1]["test"]["full"] == pytest.approx(other.lines[-1]["test"]["full"], abs=1e-6)


@pytest.mark.parametrize(("method", "smallest"), [(METHODS[0], 3), (METHODS[1], 2)])
def test_no_sum_of_a_group_is_a_single_users(method: str, smallest: int, tmp_path: Path) -> None:
    """Nor of fewer users than the nodes' policy says."""
    config = small(method, "client", run={"users_per_node": 5})
    _, grid = carry_out_watched(tmp_path, config, policy=NodePolicy.networked(smallest))
    seen = [crossing.arrays["members"] for crossing in grid.up if "members" in crossing.arrays]
    assert seen and all(size == 0 or size >= smallest for members in seen for size in members.tolist())


def test_too_few_rounds_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"leaves 1 for its own table.*give --rounds 10 or more"):
        carry_out(tmp_path, small("fedials-elastic", "all", run={"rounds": 9}))


@pytest.mark.parametrize("merge", MODES)
def test_a_served_run_recommends_to_anybody(merge: str, tmp_path: Path) -> None:
    """A user of the run gets as a newcomer, by its training history, what the client itself scores."""
    run = carry_out(tmp_path, small("fedials-elastic", merge)).run
    model, split = CpuModel.of(run.directory), run.split
    histories = [
        split.train_items[split.train_offsets[u] : split.train_offsets[u + 1]].astype(np.int64) for u in (0, 7)
    ]
    scored = model.scored(model.components())
    assert scored is not None
    found = best_of_histories(scored, histories, split.items, 5, unseen=False)
    for user, best in zip((0, 7), found, strict=True):
        own = model.trained_user(user)[0].topk(5)
        assert best.scores == pytest.approx(own.values.numpy(), rel=1e-4)
