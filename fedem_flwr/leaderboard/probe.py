"""`--dry-run`: what a grid would take, from the records of cells that have finished and quick probes of the others."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedem_flwr.experiment.controls import trains_alone
from fedem_flwr.leaderboard.cells import Prepared
from fedem_flwr.leaderboard.memory import cell_bytes
from fedem_flwr.leaderboard.pace import Kind, Pace, kind_of
from fedem_flwr.leaderboard.splits import lay_out
from fedem_flwr.network.processes import FEDEM, Child, running
from fedem_flwr.nodes.host import SPLIT_FOLDER
from fedem_flwr.report.run_directory import METRICS, RunDirectory
from fedem_flwr.runtime.prepared import PreparedRun

PROBE_ROUNDS = 3
PROBE_SECONDS = 60.0  # after which a probe is ended, and what it has shown is taken
_LOOK = 0.1


@dataclass(frozen=True)
class Estimate:
    """What a cell would take.

    Attributes:
        seconds: None where its probe failed, or showed nothing in its time.
        memory: bytes.
        how: "finished", "as measured" (of a cell of its kind), "probed", or what the probe said.
    """

    cell: Prepared
    seconds: float | None
    memory: int
    how: str


def estimates(
    cells: Sequence[Prepared], pace: Pace, threads: int, on_probe: Callable[[str], None] | None = None
) -> list[Estimate]:
    """Estimate all cells of a grid; one probe for each data set and method of which nothing is known.

    Args:
        threads: that a cell will have.
        on_probe: told what is probed.
    """
    probes: dict[Kind, float | str] = {}
    found = []
    for cell in cells:
        memory, kind = cell_bytes(cell.config, cell.facts), kind_of(cell)
        if cell.finished:
            found.append(Estimate(cell, 0.0, memory, "finished"))
            continue
        left = cell.config.run.rounds - cell.rounds_done if cell.begun else cell.config.run.rounds
        if kind in pace.known:
            found.append(Estimate(cell, statistics.mean(pace.known[kind]) * left, memory, "as measured"))
            continue
        if kind not in probes:
            if on_probe is not None:
                on_probe(f"{cell.name.method} on {cell.name.dataset}")
            probes[kind] = probe(cell, threads)
        known = probes[kind]
        seconds = known * left if isinstance(known, float) else None
        found.append(Estimate(cell, seconds, memory, "probed" if isinstance(known, float) else str(known)))
    return found


def probe(cell: Prepared, threads: int) -> float | str:
    """Seconds that a round of a cell takes, from a few rounds in a folder that is thrown away; or why it is not known.

    Training alone, for the control, is taken to cost as much as the rounds themselves; controls that are fitted, and
    centralised ones that are trained (`evaluation.trained`), are not in it.
    """
    config = cell.config.changed("run", rounds=PROBE_ROUNDS)
    config = config.changed("evaluation", controls=False, local_only=False, trained=[])
    with tempfile.TemporaryDirectory(prefix="fedem-probe-") as folder:
        directory = RunDirectory(Path(folder) / "run").create()
        split = lay_out(cell.split, directory.path / SPLIT_FOLDER)
        PreparedRun.create(directory, config, split, "fedem compare --dry-run", saved=True)
        child = Child(
            "probe",
            [*FEDEM, "resume", str(directory.path), "--quiet", "--trust"],
            Path(folder) / "probe.log",
            {"OMP_NUM_THREADS": str(threads)},
        )
        deadline = time.monotonic() + PROBE_SECONDS
        child.start()
        with running([child]):
            while child.alive and time.monotonic() < deadline:
                time.sleep(_LOOK)
            code = child.ended()
        seconds = _seconds(directory)
        if code not in (0, None):
            return child.reason()
    if not seconds:
        return f"no round within {PROBE_SECONDS:.0f} s"
    alone = 2 if cell.config.evaluation.local_only and trains_alone(cell.config) else 1
    return alone * statistics.median(seconds[1:] or seconds)


def _seconds(directory: RunDirectory) -> list[float]:
    """Of the rounds that a probe has finished."""
    if not (directory.path / METRICS).exists():
        return []
    return [float(line["seconds"]) for line in directory.read_metrics()]


def total_seconds(found: Sequence[Estimate], jobs: int) -> float:
    """How long the cells whose time is known would take, so many at a time: each next one where it is free first."""
    ends = [0.0] * jobs
    for each in found:
        if each.seconds:
            at = ends.index(min(ends))
            ends[at] += each.seconds
    return max(ends)
