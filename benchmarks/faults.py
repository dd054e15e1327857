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
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.fault_cells import CELLS, NODE, NODES, ROUND, ROUNDS, THE_NODE, USERS, Cell, config_of, last_round
from benchmarks.fault_world import FaultWorld, hub, in_hub, namespaces_allowed, run_in_hub
from fedem_flwr.errors import FedemError
from fedem_flwr.network.processes import wait_until
from fedem_flwr.network.server import read_outcome
from fedem_flwr.nodes.state_store import DiskStateStore
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.checkpoint import Checkpoints

log = logging.getLogger("faults")


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
        wait_until(lambda: last_round(run) >= ROUND or not child.alive, 120, 0.02)
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
            return Tried(last_round(run), -1, float("nan"), float("nan"), seconds, problem)
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
            if name in ("table", "items")
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
