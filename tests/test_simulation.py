"""Flower's Ray-backed simulation gives the same answers, errors and state as one process."""

from __future__ import annotations

import itertools
import logging
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from toy_app import by_partition, echo_app, orders, plain_message, three_rounds, toy_app

from fedem_flwr.config import resolve
from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.experiment.rounds import check_run
from fedem_flwr.runtime import bundles, inprocess, ordered, shared_arrays, simulation, surroundings
from fedem_flwr.runtime.inprocess import run_inprocess, task_identity
from fedem_flwr.runtime.simulation import run_simulation_runtime

NODES = 40  # more than carriers: bundles have three messages


def test_ray_requests_are_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(match: str, **request: Any) -> None:
        with pytest.raises(InputError, match=match):
            run_simulation_runtime(toy_app(), three_rounds, **({"nodes": 2, "run_config": {}} | request))

    refused("at least one node", nodes=0)
    refused("at least 1 core", cpus_per_node=0)
    refused("GPUs", gpus_per_node=1000.0)
    refused("no Ray cluster can be joined at 127.0.0.1:9", address="127.0.0.1:9")
    with monkeypatch.context() as patch:
        patch.setattr(simulation.importlib.util, "find_spec", lambda _: None)
        refused("needs Ray: pip install")
    monkeypatch.setattr(surroundings, "LONGEST_DIRECTORY", 5)
    refused("short path")


def test_a_cluster_is_tried_before_anything_is_written() -> None:
    for run, match in (
        ({"ray_address": "127.0.0.1:9"}, "run.ray_address goes with --runtime ray"),
        ({"ray_address": "127.0.0.1:9", "runtime": "ray"}, "no Ray cluster can be joined at 127.0.0.1:9"),
        ({"ray_address": "127.0.0.1", "runtime": "ray"}, "run.ray_address"),
    ):
        with pytest.raises(InputError, match=match):
            check_run(resolve({}, {"run": run}))


def test_ray_directory_avoids_long_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 20)
    deep.mkdir()
    monkeypatch.setattr(surroundings.tempfile, "tempdir", str(deep))
    with surroundings.short_directory() as directory:
        assert directory.is_dir() and len(str(directory)) <= surroundings.LONGEST_DIRECTORY
        assert list(deep.iterdir()) == []
    assert not directory.exists()


def test_environment_is_put_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("FLWR_HOME", raising=False)
    before = dict(os.environ)
    with simulation._environment(tmp_path, 3):
        assert os.environ["OMP_NUM_THREADS"] == "3" and os.environ["FLWR_HOME"] == str(tmp_path)
        os.environ["SET_BY_RAY"] = "1"
    assert dict(os.environ) == before


def pass_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of a second goes by with each look at the clock, however busy the machine is."""
    ticks = itertools.count()
    monkeypatch.setattr(ordered, "time", SimpleNamespace(monotonic=lambda: next(ticks) / 100))


def test_replies_come_in_the_order_of_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for Flower's grid hands replies out backwards, one a pull, and keeps the last for itself."""

    class Backwards(inprocess.InProcessGrid):
        def pull_messages(self, message_ids: Any) -> list[Message]:
            ready = sorted(set(message_ids) - {"4"}, key=int)[-1:]
            return super().pull_messages(ready)

    pass_time(monkeypatch)
    with task_identity():
        grid = simulation.SimulationGrid(
            Backwards(toy_app(), nodes=4, run_config={"scale": 1.0}), stopped := threading.Event()
        )
        replies = list(grid.send_and_receive(orders(grid), timeout=0.5))
        assert [reply.metadata.src_node_id for reply in replies] == [2, 3, 4]
        with pytest.raises(FedemError, match="no node 99"):
            grid.push_messages([plain_message(99)])
        stopped.set()
        with pytest.raises(FedemError, match="stopped"):
            list(grid.send_and_receive(orders(grid)))


def test_a_message_is_sent_again_while_a_process_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    deaths = {0: 2, 2: 1000}  # by partition; node 2 never comes back

    def mortal(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        if deaths.get(partition, 0) > 0:
            deaths[partition] -= 1
            return Message(Error(bundles.PROCESS_LOST, "died\n of  it"), reply_to=message)
        return Message(RecordDict(), reply_to=message)

    pass_time(monkeypatch)
    monkeypatch.setattr(simulation, "RESTART_PAUSE", 0.01)
    monkeypatch.setattr(simulation, "RESTART_SECONDS", 0.3)
    with task_identity():
        below = inprocess.InProcessGrid(echo_app(mortal), nodes=3, run_config={})
        grid = simulation.SimulationGrid(below, threading.Event())
        replies = list(grid.send_and_receive(plain_message(node) for node in grid.get_node_ids()))
    assert [reply.metadata.src_node_id for reply in replies] == [2, 3, 4]
    assert [reply.has_error() for reply in replies] == [False, False, True]
    assert replies[2].error.reason == "died of it"


def server_under_ray(grid: Grid) -> dict[str, Any]:
    """Three rounds, one in which the last node's process dies, one that works, and a deadline that is too near."""
    result = three_rounds(grid)
    *_, last = grid.get_node_ids()
    bundle = bundles.Bundles._bundle

    with pytest.MonkeyPatch.context() as patch:

        def bundle_of(self: bundles.Bundles, members: list[Message], *rest: Any) -> Message:
            alone = [member.metadata.dst_node_id for member in members] == [last]
            patch.setattr(simulation, "RESTART_SECONDS", 1.0 if alone else 60.0)  # it would die again and again
            return bundle(self, members, *rest)

        patch.setattr(bundles.Bundles, "_bundle", bundle_of)
        replies = list(grid.send_and_receive(orders(grid, die=[NODES - 1])))
    result["dead"] = [str(reply.error.reason) for reply in replies if reply.has_error()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_arrays, "_STORED_BYTES", 1)  # all arrays through the object store
        after = list(grid.send_and_receive(orders(grid)))
    result["after"] = by_partition(iter(after))
    for name in ("threads", "machine"):
        result[name] = {reply.content["seen"][name] for reply in after}
    result["hurried"] = len(list(grid.send_and_receive(orders(grid), timeout=0.0)))
    return result


@pytest.mark.ray
def test_ray_gives_the_same_results_as_one_process(raylets: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Nodes share carriers, and carriers two machines. What the server raises at last is handed on."""
    import ray

    environment = dict(os.environ)
    config = {"scale": 10.0}
    here = run_inprocess(toy_app(), three_rounds, nodes=NODES, run_config=config)
    there: dict[str, Any] = {}

    def fail_at_last(grid: Grid) -> None:
        there.update(server_under_ray(grid))
        raise InputError("no such column")

    with pytest.raises(InputError, match="no such column"):
        run_simulation_runtime(toy_app(), fail_at_last, nodes=NODES, run_config=config, address=raylets)
    screen = capfd.readouterr()
    for phase in ("first", "last"):
        for partition, tables in here[phase].items():
            for name, values in tables.items():
                np.testing.assert_array_equal(there[phase][partition][name], values)
    assert there["errors"] == here["errors"] and there["seen"] == here["seen"]
    assert len(there["dead"]) == 1 and "\n" not in there["dead"][0], (
        "a process that keeps dying costs its own reply only"
    )
    assert sorted(there["after"]) == [*range(NODES)] and there["threads"] == {1} and there["hurried"] == 0
    assert len(there["machine"] - {0}) == 2, "both machines worked"
    assert not ray.is_initialized() and dict(os.environ) == environment
    assert (screen.out, screen.err) == ("", "")
    assert not logging.getLogger("flwr").filters
