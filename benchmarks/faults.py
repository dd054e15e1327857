"""The fault matrix: what a node's death, a cut network or a corrupt upload costs a run, each many times over.

    python -m benchmarks.faults                 # every cell ten times; needs the right to make network namespaces
    python -m benchmarks.faults --cells nan,cut --times 3

A cell is one fault in round 2 of a run over three nodes with TLS and node keys. Without a quorum the fault may cost
that node's contribution of the round; with a quorum of everybody the round is repeated, and the result is the same.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import platform
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.fault_world import FaultWorld, hub, in_hub, namespaces_allowed, run_in_hub, stop_and_go
from fedem_flwr.config import Config, resolve
from fedem_flwr.errors import FedemError
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.checkpoint import Checkpoints
from fedem_flwr.runtime.network.processes import wait_until
from fedem_flwr.runtime.network.server import read_outcome
from fedem_flwr.runtime.state_store import DiskStateStore

NODES, ROUNDS, ROUND, NODE = 3, 5, 2, 1
METHODS = ("fedem", "fedials")
USERS = 60
THE_NODE = "node of users 20–39"
_TINY = {
    "data": {"dataset": "synthetic", "synthetic": {"users": USERS, "items": 120, "mean_interactions": 15}},
    "model": {"dim": 8},
    "evaluation": {"controls": False, "local_only": False},
}
log = logging.getLogger("faults")


def config_of(method: str, quorum: float, timeout: float) -> Config:
    """The run of a cell."""
    run = {"rounds": ROUNDS, "quorum": quorum, "round_timeout": timeout, "checkpoint_every": 2, "threads": 1}
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
        wait_until(lambda: _round(run) >= ROUND, 6, 0.05)  # with a quorum it is repeated until there is room
        filler.unlink(missing_ok=True)

    when_training(act)(world, run)


def _round(run: RunDirectory) -> int:
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


@dataclass
class Tried:
    """What came of one try."""

    rounds: int
    lost: int
    gap: float  # of the final validation NDCG@10 to the undisturbed run's
    tables: float  # largest difference of the served table or tables
    seconds: float
    problem: str


class Matrix:
    """Runs the cells."""

    def __init__(self, folder: Path, times: int, quorums: tuple[float, ...]) -> None:
        self.folder, self.times, self.quorums = folder, times, quorums
        self.calm: dict[str, tuple[float, dict[str, Any]]] = {}
        self.number = 0

    def rows(self, world: FaultWorld, cells: list[Cell]) -> Iterator[dict[str, Any]]:
        """The cells of one federation."""
        for quorum in self.quorums:
            for cell in (cell for cell in cells if quorum in cell.quorums):
                yield self.cell(world, cell, quorum)

    def attempt(self, world: FaultWorld, cell: Cell, method: str, quorum: float) -> Tried:
        """One run with one fault."""
        self.number += 1
        timeout = cell.timeout
        run = world.prepare(self.folder / f"run-{self.number}", config_of(method, quorum, timeout))
        began = time.monotonic()
        problem = ""
        try:
            cell.start(world, run)
            if cell.stops:
                self._kill_server(world, run)
            try:
                world.serve(run)
                problem = "did not stop" if cell.resumes else ""
            except FedemError:
                if not cell.resumes:
                    raise
                world.serve(run)
        except FedemError as error:
            problem = f"stopped: {error}"
        finally:
            cell.end(world)
            if world.busy is not None:
                world.busy.join(timeout=150)
            world.busy = None
            world.order_file(NODE).unlink(missing_ok=True)
        seconds = time.monotonic() - began
        return self._judge(world, run, cell, method, quorum, seconds, problem)

    def _kill_server(self, world: FaultWorld, run: RunDirectory) -> None:
        child = world.server_process(run)
        wait_until(lambda: _round(run) >= ROUND or not child.alive, 120, 0.02)
        child.signal(signal.SIGKILL)
        child.process and child.process.wait()

    def _judge(
        self,
        world: FaultWorld,
        run: RunDirectory,
        cell: Cell,
        method: str,
        quorum: float,
        seconds: float,
        problem: str,
    ) -> Tried:
        if problem:
            return Tried(_round(run), -1, float("nan"), float("nan"), seconds, problem)
        lines, outcome = run.read_metrics(), read_outcome(run)
        point = Checkpoints(run.checkpoint_dir).load()
        assert point is not None
        final = float(lines[-1]["validation"]["sampled99"]["ndcg@10"])
        if method not in self.calm:
            self.calm[method] = final, dict(point.arrays)
        base, arrays = self.calm[method]
        gap = abs(final - base)
        tables = max(
            float(abs(arrays[name].astype(float) - point.arrays[name].astype(float)).max(initial=0.0))
            if arrays[name].shape == point.arrays[name].shape
            else float("inf")
            for name in arrays
            if name in ("table", "tables")
        )
        if [line["round"] for line in lines] != list(range(1, ROUNDS + 1)):
            problem = "metrics lines are not those of all rounds"
        if lines[-1]["evaluated_users"] != USERS and not cell.partial:
            problem = f"the last round was evaluated on {lines[-1]['evaluated_users']} users"
        problem = problem or self._damage(world)
        # Every failure of ours is one node's contribution of one round; being away is told once a round, too.
        lost = len({(f["round"], f["node"].partition(" (")[0]) for f in outcome.failures if f["round"] > 0})
        others = {f["node"] for f in outcome.failures if f["node"] != THE_NODE and f["round"] > 0}
        if others and not cell.everybody and not problem:
            problem = f"it cost {', '.join(sorted(others))} something, too"
        if lost > cell.lost and not quorum and not problem:
            problem = f"it cost {lost} contributions, not {cell.lost} at most"
        for failure in outcome.failures:
            log.info("  %s", failure)
        return Tried(len(lines), lost, gap, tables, seconds, problem)

    def _damage(self, world: FaultWorld) -> str:
        """Whether every node's newest state can be read."""
        for node in range(NODES):
            for folder in (world.folder / "state" / f"node-{node}" / "runs").glob("*/nodes"):
                try:
                    DiskStateStore(folder).load("node-000000", 10**6)
                except FedemError as error:
                    return f"state of node {node}: {error}"
        return ""

    def cell(self, world: FaultWorld, cell: Cell, quorum: float) -> dict[str, Any]:
        """All tries of a cell, methods in turn."""
        tries: dict[str, list[Tried]] = {method: [] for method in cell.methods}
        for index in range(self.times):
            method = cell.methods[index % len(cell.methods)]
            tried = self.attempt(world, cell, method, quorum)
            tries[method].append(tried)
            log.info("%s, quorum %g, %s: %s", cell.name, quorum, method, tried)
        everything = [tried for each in tries.values() for tried in each]
        return {
            "cell": cell.name,
            "quorum": quorum,
            "tries": len(everything),
            "finished": sum(not tried.problem for tried in everything),
            "problems": sorted({tried.problem for tried in everything if tried.problem}),
            "lost": [tried.lost for tried in everything],
            "gap": max(tried.gap for tried in everything),
            "tables": max(tried.tables for tried in everything),
            "seconds": median(tried.seconds for tried in everything),
            "allowed": cell.lost,
        }


def table(rows: list[dict[str, Any]]) -> str:
    """For docs/reliability.md."""
    lines = [
        f"| fault, in round {ROUND} of {ROUNDS} on one of {NODES} nodes | quorum | finished | contributions lost | "
        "largest gap of final NDCG@10 | of tables | seconds a run |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lost = sorted(set(row["lost"]))
        words = str(lost[0]) if len(lost) == 1 else f"{lost[0]} to {lost[-1]}, median {median(row['lost']):g}"
        lines.append(
            f"| {row['cell']} | {'all' if row['quorum'] else 'none'} | {row['finished']} of {row['tries']} | {words} | "
            f"{row['gap']:.1e} | {row['tables']:.1e} | {row['seconds']:.1f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Carry out the matrix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--cells", default="", help="parts of names, separated by commas")
    parser.add_argument("--quorums", default="0,1")
    parser.add_argument("--out", type=Path, default=Path("fault-matrix.json"))
    parser.add_argument("--no-namespaces", action="store_true")
    given = parser.parse_args()
    if not in_hub() and not given.no_namespaces and namespaces_allowed():
        with hub(NODES):
            return run_in_hub(["-m", "benchmarks.faults", *sys.argv[1:]])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for name in ("flwr", "httpx", "fedem.server"):
        logging.getLogger(name).setLevel(logging.ERROR)
    wanted = [part for part in given.cells.split(",") if part]
    cells = [cell for cell in CELLS if not wanted or any(part.lower() in cell.name.lower() for part in wanted)]
    cells = [CELLS[0], *(cell for cell in cells if cell is not CELLS[0])]  # what the others are compared with
    if not in_hub():
        cells = [cell for cell in cells if "cut" not in cell.name]
    rows = []
    with tempfile.TemporaryDirectory(prefix="fedem-faults-") as name:
        matrix = Matrix(Path(name), given.times, tuple(map(float, given.quorums.split(","))))
        left = []
        for kind in ("", "database", "small", "plain"):
            world = FaultWorld(Path(name) / f"world-{kind}", config_of("fedem", 0.0, 30.0), NODES)
            world.insecure = kind == "plain"
            world.database, world.small_state = kind == "database", NODE if kind == "small" else None
            chosen = [cell for cell in cells if cell.world == kind]
            if not chosen:
                continue
            try:
                world.build()
                for row in matrix.rows(world, chosen):
                    rows.append(row)
                    given.out.write_text(json.dumps(rows, indent=1))
            finally:
                world.close()
            left += world.left()
    print(f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores; processes left: {len(left)}")
    print(table(rows))
    given.out.write_text(json.dumps(rows, indent=1))
    return int(bool(left) or any(row["problems"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
