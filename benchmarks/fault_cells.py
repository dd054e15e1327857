"""The cells of the fault matrix: what goes wrong, how it is made to, and what it may cost."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from benchmarks.fault_world import FaultWorld, stop_and_go
from fedem_flwr.config import Config, resolve
from fedem_flwr.errors import FedemError
from fedem_flwr.network.processes import wait_until
from fedem_flwr.report.run_directory import RunDirectory

NODES, ROUNDS, ROUND, NODE = 3, 5, 2, 1
METHODS = ("fedem", "fedials")
USERS = 60
THE_NODE = "node of users 20–39"
_TINY = {
    "data": {"dataset": "synthetic", "synthetic": {"users": USERS, "items": 120, "mean_interactions": 15}},
    "model": {"dim": 8},
    "evaluation": {"controls": False, "local_only": False},
}


def config_of(method: str, quorum: float, timeout: float) -> Config:
    """The run of a cell."""
    run: dict[str, Any] = {
        "rounds": ROUNDS,
        "quorum": quorum,
        "round_timeout": timeout,
        "checkpoint_every": 2,
        "threads": 1,
    }
    run["engine"] = "torch"  # nodes start often, and loading compiled code takes longer than these tables do
    local = {"local": {"epochs": 2}} if method == "fedem" else {}
    return resolve({}, {**_TINY, **local, "method": {"name": method}, "run": run})


@dataclass(frozen=True)
class Cell:
    """One fault.

    Attributes:
        name: for people. start: makes it happen, given the world and the run.
        end: undoes it, where it does not pass by itself.
        timeout: seconds after which a round goes on without a reply.
        lost: the most contributions that it may cost without a quorum.
        resumes: whether the server stops with an error, and goes on with what `fedem resume` does.
        stops: whether the server is killed, and goes on with what `fedem resume` does.
        partial: whether the run may end before the node is back.
        everybody: whether other nodes than the one may lose contributions.
        quorums: that it is tried with; where nothing is lost, one says all.
        world: what is special about the federation: "database" (the SuperLink keeps one), "small" (a small disk),
            "plain" (no TLS, no keys).
        methods: that it is tried with.
    """

    name: str
    start: Callable[[FaultWorld, RunDirectory], Any]
    end: Callable[[FaultWorld], None] = lambda world: None
    timeout: float = 40.0
    lost: int = 1
    stops: bool = False
    resumes: bool = False
    world: str = ""
    partial: bool = False
    everybody: bool = False
    quorums: tuple[float, ...] = (0.0, 1.0)
    methods: tuple[str, ...] = METHODS


def ordered(do: str) -> Callable[[FaultWorld, RunDirectory], None]:
    """A fault inside the node."""
    return lambda world, run: world.order(NODE, ROUND, do)


def when_training(act: Callable[[FaultWorld], None]) -> Callable[[FaultWorld, RunDirectory], None]:
    """A fault from outside, while the node is in the middle of round 2."""

    def start(world: FaultWorld, run: RunDirectory) -> None:
        world.order(NODE, ROUND, "signal")

        def watch() -> None:
            if wait_until(lambda: not world.order_file(NODE).exists(), 100, 0.02):
                act(world)

        world.busy = threading.Thread(target=watch, daemon=True)
        world.busy.start()

    return start


def _cut(seconds: float) -> Callable[[FaultWorld], None]:
    def act(world: FaultWorld) -> None:
        world.cut(NODE, up=False)
        time.sleep(seconds)
        world.cut(NODE, up=True)

    return act


def _delay(world: FaultWorld, run: RunDirectory) -> None:
    assert world.relay is not None
    world.relay.delay = 0.2


def _drop(world: FaultWorld, run: RunDirectory) -> None:
    assert world.relay is not None
    world.relay.cuts = 3
    world.relay.reset_all()


def _calm(world: FaultWorld) -> None:
    assert world.relay is not None
    world.relay.delay, world.relay.cuts = 0.0, 0
    world.relay.reset_all()


def _kill_superlink(world: FaultWorld) -> None:
    assert world.superlink is not None
    world.superlink.signal(signal.SIGKILL)


def _lose_disk(world: FaultWorld) -> None:
    child = world.children[NODE]
    child.signal(signal.SIGKILL)
    shutil.rmtree(world.folder / "state" / f"node-{NODE}" / "runs", ignore_errors=True)


def _fill(world: FaultWorld, run: RunDirectory) -> None:
    """The node's state folder becomes a file system that is full when round 2 is stored, and is emptied later."""
    state = world.folder / "state" / f"node-{NODE}"
    filler = state / "filler"

    def fill() -> None:
        with suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(4096))

    def act(_: FaultWorld) -> None:
        fill()
        wait_until(lambda: last_round(run) >= ROUND, 6, 0.05)  # with a quorum it is repeated until there is room
        filler.unlink(missing_ok=True)

    when_training(act)(world, run)


def last_round(run: RunDirectory) -> int:
    """How far a run is; 0 before its first round is done."""
    with suppress(FedemError):
        lines = run.read_metrics()
        return int(lines[-1]["round"]) if lines else 0
    return 0


CELLS = (
    Cell("nothing", lambda world, run: None, lost=0),
    Cell("SIGKILL before training", ordered("die-before")),
    Cell("SIGKILL during training", ordered("die-during")),
    Cell("SIGKILL after training, before the reply", ordered("die-after")),
    Cell("SIGKILL and the disk lost", when_training(_lose_disk), lost=2, methods=("fedem",)),
    Cell(
        "SIGSTOP 30 s",
        when_training(lambda world: stop_and_go(world.pid_of(NODE), 30.0)),
        timeout=5.0,
        lost=9,
        partial=True,
    ),
    Cell("connections dropped (every third)", _drop, _calm, lost=2, everybody=True),
    Cell("200 ms delay each way", _delay, _calm, lost=0, quorums=(0.0,)),
    Cell("network cut 6 s", when_training(_cut(6.0)), lost=1),
    Cell("NaN upload", ordered("nan")),
    Cell("wrong shape", ordered("shape")),
    Cell("truncated upload", ordered("truncated")),
    Cell("100 times too large", ordered("huge")),
    Cell("NaN metric", ordered("metric")),
    Cell("a metric of 1e9 users", ordered("boast")),
    Cell("upload announced, sent 2 s later", ordered("dawdle"), lost=0, quorums=(0.0,)),
    Cell("upload announced, then 8 s of nothing", ordered("stall"), timeout=4.0, lost=4),
    Cell("SIGKILL during training, no TLS, no keys", ordered("die-during"), world="plain"),
    Cell("disk full on a node", _fill, world="small", methods=("fedem",)),
    Cell("SuperLink killed, its database kept", when_training(_kill_superlink), world="database", everybody=True),
    Cell("node 4 s late, a round's time 3 s", ordered("slow"), timeout=3.0, lost=3),
    Cell("SuperLink killed, nothing kept, run resumed", when_training(_kill_superlink), resumes=True, lost=0),
    Cell("server killed, resumed", lambda world, run: None, stops=True, lost=0),
)
