"""Cells: the same run, however it is spread, wherever it runs, and after whatever befell it, ends alike."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federated import FederatedGrid, carry_out_over
from worlds import done, figures, largest_difference, prepare

from conformance.installed import install, named
from conformance.methods import Subject
from conformance.on_ray import carry_out_on_ray
from conformance.runs import Runs, Whole
from fedem_flwr.config import Config
from fedem_flwr.evaluation.cohort import add_sums
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.protocol.shards import write_shards
from fedem_flwr.runtime.prepared import PreparedRun

NODES = 3  # of 7 users
NEAR, METRICS_NEAR = 1e-5, 0.003


class Killed(BaseException):
    """Stands for SIGKILL: nothing handles it."""


def spread(subject: Subject, runs: Runs) -> None:
    """One node with all, nodes of 7, a node a user: numbers are added up in another order, and that is all.

    The other cells here are exact.
    """
    whole = runs.whole(subject, 0)
    for each in (7, 1):
        other = runs.whole(subject, each)
        gap = largest_difference(whole.noted.server[1], other.noted.server[1])
        assert gap <= NEAR, f"{each} a node: server's state off by {gap:.2g} after round 1"
        gap = largest_difference(whole.noted.users(1), other.noted.users(1))
        assert gap <= NEAR, f"{each} a node: users' state off by {gap:.2g} after round 1"
        for line, same in zip(whole.done.lines, other.done.lines, strict=True):
            gap = metrics_gap(line, same)
            assert gap <= METRICS_NEAR, f"{each} a node: a metric off by {gap:.2g} in round {line['round']}"


def metrics_gap(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Largest difference of two lines' figures, and of their losses."""
    assert one["round"] == other["round"] and one["evaluated_users"] == other["evaluated_users"]
    pairs = [(one["train_loss"] or 0.0, other["train_loss"] or 0.0)]
    for part in ("validation", "test"):
        flat, same = (flattened(line[part]) for line in (one, other))
        assert flat.keys() == same.keys() and flat
        pairs += [(flat[name], same[name]) for name in flat]
    return max(abs(a - b) for a, b in pairs)


def flattened(tree: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers by path."""
    found: dict[str, float] = {}
    for name, value in tree.items():
        found |= flattened(value, f"{prefix}{name}/") if isinstance(value, dict) else {prefix + name: value}
    return found


def on_ray(subject: Subject, runs: Runs) -> None:
    """Actors on two machines, which keep nothing in memory between messages."""
    if "ray" not in runs.shared:  # one start for all methods
        runs.shared["ray"] = carry_out_on_ray(runs, runs.shared["raylets"])
    there, here = runs.shared["ray"][subject], runs.whole(subject, 7).done
    assert there.outcome.failures == []
    assert largest_difference(here.server, there.server) == 0
    assert largest_difference(here.nodes, there.nodes) == 0
    assert [figures(line) for line in here.lines] == [figures(line) for line in there.lines]


def shards_of(runs: Runs, whole: Whole) -> Path:
    """The tiny world over three nodes; made once."""
    if "shards" not in runs.shared:
        runs.shared["shards"] = runs.path()
        write_shards(whole.done.run.split, NODES, runs.shared["shards"])
    place: Path = runs.shared["shards"]
    return place


def over_there(subject: Subject, config: Config) -> Config:
    """With the name that nodes accept."""
    if named(subject) == subject:
        return config
    names = {"name": named(subject).name, "strategy": named(subject).name}
    return config.model_copy(update={"method": config.method.model_copy(update=names)})


def networked(subject: Subject, runs: Runs) -> None:
    """Nodes with shards and disks of their own, that a server introduces its run to."""
    whole = runs.whole(subject, 7)
    folder = runs.path()
    folder.mkdir()
    grid = FederatedGrid(shards_of(runs, whole), folder, NODES)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(install(runs.path()))
        ended = carry_out_over(grid, over_there(subject, whole.done.run.config))
    assert ended.losses() == []
    assert largest_difference(whole.done.server, ended.server) == 0
    kept = [ended.nodes[f"node-{node}"] for node in range(NODES)]
    nodes = {name: np.concatenate([state[name] for state in kept]) for name in kept[0] if name != "format"}
    assert largest_difference(whole.done.nodes, nodes) == 0
    assert [figures(line) for line in whole.done.lines] == [figures(line) for line in ended.lines]


def resumed(subject: Subject, runs: Runs) -> None:
    """Killed after a round that is not checkpointed, and resumed by a process that draws other random numbers."""
    whole = runs.whole(subject, 7).done
    last = len(whole.lines) - 1
    run = prepare(runs.path(), whole.run.config)

    def die(line: dict[str, Any]) -> None:
        if line["round"] == last:
            raise Killed

    with pytest.raises(Killed):
        carry_out_rounds(run, die)
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    again = PreparedRun.open(run.directory)
    ended = done(again, carry_out_rounds(again, lambda _: None, resume=True))
    assert largest_difference(whole.server, ended.server) == 0, "the server's state"
    assert largest_difference(whole.nodes, ended.nodes) == 0, "the users' state"
    assert [figures(line) for line in whole.lines] == [figures(line) for line in ended.lines]


def warm(subject: Subject, runs: Runs) -> None:
    """Clients in a new process, with what is stored: the metrics of the last evaluation."""
    whole = runs.whole(subject, 7)
    sums: dict[str, float] = {}
    host = whole.host()
    for node in range(whole.done.run.nodes):
        client = whole.client(node, host)
        arrays, config = whole.message(client, "evaluate", whole.rounds[-1])
        add_sums(sums, client.evaluate(arrays, config)[2])
    for name, value in sums.items():
        assert value == whole.done.outcome.final_sums[name], name
    assert sums["users"] == whole.done.run.split.users
