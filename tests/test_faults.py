"""A few cells of the fault matrix (`python -m benchmarks.faults` has all of them, ten times each), on loopback."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fault_cells import NODE, ROUND, ROUNDS, THE_NODE, USERS, config_of
from benchmarks.fault_world import FaultWorld
from fedem_flwr.network.processes import wait_until
from fedem_flwr.network.server import read_outcome
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.checkpoint import Checkpoints

pytestmark = [pytest.mark.network, pytest.mark.slow]
METHOD = "fedem"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultWorld]:
    made = FaultWorld(tmp_path_factory.mktemp("faults") / "world", config_of(METHOD, 0.0, 40.0), 3)
    try:
        made.build()
        yield made
    finally:
        made.close()
    assert wait_until(lambda: made.left() == [], 10), "processes were left behind"


@pytest.fixture(scope="module")
def calm(world: FaultWorld, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The tables of an undisturbed run."""
    run = world.prepare(tmp_path_factory.mktemp("calm") / "run", config_of(METHOD, 0.0, 40.0))
    assert world.serve(run).failures == []
    return tables_of(run)


def tables_of(run: RunDirectory) -> dict[str, np.ndarray]:
    point = Checkpoints(run.checkpoint_dir).load()
    assert point is not None and point.round == ROUNDS
    return dict(point.arrays)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_nodes_that_are_killed_and_come_back_cost_nothing(
    world: FaultWorld, calm: dict[str, np.ndarray], tmp_path: Path
) -> None:
    run = world.prepare(tmp_path / "run", config_of(METHOD, 0.0, 40.0))
    started = [child.starts for child in world.children]
    for node, do in enumerate(("die-before", "die-during", "die-after")):
        world.order(node, ROUND + node, do)
    world.serve(run)
    assert [child.starts for child in world.children] == [starts + 1 for starts in started], "each was killed"
    assert read_outcome(run).failures == []
    assert same(tables_of(run), calm)


def test_an_upload_that_takes_its_time_is_waited_for(
    world: FaultWorld, calm: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """The node is asked once, however many looks its answer takes to come."""
    run = world.prepare(tmp_path / "run", config_of(METHOD, 0.0, 40.0))
    before = world.children[NODE].log.read_text()
    world.order(NODE, ROUND, "dawdle")
    world.serve(run)
    assert not world.order_file(NODE).exists(), "it dawdled"
    assert read_outcome(run).failures == [] and same(tables_of(run), calm)
    said = world.children[NODE].log.read_text().removeprefix(before)
    assert said.count(f"round {ROUND}, train") == 1


def test_a_node_that_stalls_in_the_middle_of_an_upload_costs_nobody_else(world: FaultWorld, tmp_path: Path) -> None:
    """It says what is coming and sends nothing; the answers of the others behind it are taken all the same."""
    run = world.prepare(tmp_path / "run", config_of(METHOD, 0.0, 6.0))
    world.order(NODE, ROUND, "stall")
    world.serve(run)
    losses = {(failure["round"], failure["node"]) for failure in read_outcome(run).failures}
    assert (ROUND, THE_NODE) in losses and {node for _, node in losses} == {THE_NODE}


FIRST = {"nan": "is not finite", "shape": "has shape", "truncated": "pieces do not fit"}
SECOND = {"huge": "has shape", "metric": "a metric that is not finite", "boast": "a metric that cannot be"}


def spoil(world: FaultWorld, what: Iterable[str]) -> None:
    """A node after the other, each in a round of its own."""
    for node, do in enumerate(what):
        world.order(node, ROUND + node, do)


@pytest.mark.parametrize("reasons", [FIRST, SECOND], ids=" ".join)
def test_a_corrupt_upload_costs_itself(
    reasons: dict[str, str], world: FaultWorld, calm: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Without a quorum it is left out, and said."""
    run = world.prepare(tmp_path / "run", config_of(METHOD, 0.0, 40.0))
    spoil(world, reasons)
    world.serve(run)
    failures = sorted(read_outcome(run).failures, key=lambda failure: failure["round"])
    assert [failure["round"] for failure in failures] == [ROUND, ROUND + 1, ROUND + 2]
    for failure, reason in zip(failures, reasons.values(), strict=True):
        assert reason in failure["reason"]
    assert not same(tables_of(run), calm), "contributions are missing"
    lines = run.read_metrics()
    assert [line["round"] for line in lines] == list(range(1, ROUNDS + 1))
    assert lines[-1]["evaluated_users"] == USERS


def test_with_a_quorum_of_all_a_corrupt_upload_costs_a_repetition(
    world: FaultWorld, calm: dict[str, np.ndarray], tmp_path: Path
) -> None:
    run = world.prepare(tmp_path / "run", config_of(METHOD, 1.0, 40.0))
    spoil(world, FIRST)
    world.serve(run)
    assert not any(world.order_file(node).exists() for node in range(3)), "each was spoilt once"
    assert same(tables_of(run), calm)


def test_a_server_that_is_killed_goes_on_to_the_same_result(
    world: FaultWorld, calm: dict[str, np.ndarray], tmp_path: Path
) -> None:
    run = world.prepare(tmp_path / "run", config_of(METHOD, 0.0, 40.0))
    child = world.server_process(run)

    def far() -> bool:
        return not child.alive or ((run.path / "metrics.jsonl").exists() and len(run.read_metrics()) >= ROUND)

    assert wait_until(far, 90)
    child.signal(signal.SIGKILL)
    assert child.process is not None and child.process.wait() == -signal.SIGKILL
    world.serve(run)
    assert same(tables_of(run), calm)
