"""Cells as processes, several at a time: a crash of one loses that one, and what it has checkpointed is not lost.

A cell's process is `fedem resume` of its run directory, which goes on from the newest checkpoint, or begins.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from fedem_flwr.errors import FedemError
from fedem_flwr.leaderboard.cells import Prepared, read_record, write_record
from fedem_flwr.leaderboard.folder import Folder
from fedem_flwr.leaderboard.memory import cell_bytes, free_bytes, resident_bytes
from fedem_flwr.leaderboard.pace import Pace
from fedem_flwr.leaderboard.ray_cells import Parallel, RayCell, ray_of_this_machine
from fedem_flwr.network.processes import FEDEM, Child, stop_all
from fedem_flwr.nodes.machine import memory_here

_LOOK = 0.1  # seconds between two looks at the processes
_NO_SPACE = ("No space left", "Disk quota exceeded")


class Watcher(Protocol):
    """Who is told how far the cells are."""

    def look(self, waiting: Sequence[Prepared], running: dict[Prepared, float], pace: Pace) -> None:
        """Several times a second: what waits, and what runs for how many seconds."""

    def ended(self, cell: Prepared, seconds: float, failure: str) -> None:
        """A cell has ended; `failure` is empty where it has finished."""


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of(jobs: int) -> int:
    """Of a cell: the cores, shared among the jobs."""
    return max(1, cores() // jobs)


@dataclass
class _Running:
    cell: Prepared
    child: Child
    began: float
    needs: int

    def missing(self) -> int:
        """What it will still take of what is free now."""
        return max(0, self.needs - resident_bytes(self.child.pid))


@dataclass
class Schedule:
    """Carries cells out.

    Attributes:
        jobs: how many at a time, at most: fewer where memory is short.
        command: what reports say made the runs.
        lock: an open file that the processes keep.
        parallel: whether this process starts them, or tasks of Ray do.
    """

    folder: Folder
    jobs: int
    command: str
    lock: int
    pace: Pace = field(default_factory=Pace)
    parallel: Parallel = "processes"
    failed: dict[Prepared, str] = field(default_factory=dict)
    _running: list[_Running] = field(default_factory=list)
    _needs: dict[Prepared, int] = field(default_factory=dict)

    def carry_out(self, cells: Sequence[Prepared], watcher: Watcher) -> None:
        """Carry out cells in their order; those that fail are named in `failed`, and the others go on.

        Raises:
            FedemError: there is no space left, so that all others would fail, too; what is finished stays. Or Ray does
                not start.
        """
        with ray_of_this_machine(self.jobs, threads_of(self.jobs)) if self._on_ray and cells else nullcontext():
            self._carry_out(list(cells), watcher)

    @property
    def _on_ray(self) -> bool:
        return self.parallel == "ray"

    def _carry_out(self, waiting: list[Prepared], watcher: Watcher) -> None:
        try:
            while waiting or self._running:
                while waiting and len(self._running) < self.jobs and self._fits(waiting[0], watcher):
                    cell = waiting.pop(0)
                    if cell not in self.failed:
                        self._start(cell)
                for one in [one for one in self._running if not one.child.alive]:
                    self._running.remove(one)
                    self._ended(one, watcher)
                now = time.monotonic()
                watcher.look(waiting, {one.cell: now - one.began for one in self._running}, self.pace)
                time.sleep(_LOOK)
        finally:
            stop_all([one.child for one in self._running])

    def _fits(self, cell: Prepared, watcher: Watcher) -> bool:
        """Whether there is memory for one more cell; one that is larger than the machine fails here."""
        needs, has = self._needed(cell), memory_here()
        if needs > has:
            self.failed[cell] = (
                f"it needs about {needs / 1e9:.1f} GB of memory, and this machine has {has / 1e9:.1f} GB"
            )
            watcher.ended(cell, 0.0, self.failed[cell])
            return True
        return not self._running or needs <= free_bytes() - sum(one.missing() for one in self._running)

    def _needed(self, cell: Prepared) -> int:
        if cell not in self._needs:  # it is asked several times a second
            self._needs[cell] = cell_bytes(cell.config, cell.facts)
        return self._needs[cell]

    def _start(self, cell: Prepared) -> None:
        cell.lay_out(self.command)
        log = self.folder.fresh_log(cell.directory.path.name)
        trust = ["--trust"] if cell.own_config else []
        place = str(cell.directory.path.absolute())
        child = (RayCell if self._on_ray else Child)(
            str(cell.name),
            [*FEDEM, "resume", place, "--quiet", *trust],
            log,
            {"OMP_NUM_THREADS": str(threads_of(self.jobs))},
            open_files=(self.lock,),
        )
        child.start()
        self._running.append(_Running(cell, child, time.monotonic(), self._needed(cell)))

    def _ended(self, one: _Running, watcher: Watcher) -> None:
        cell, code, seconds = one.cell, one.child.ended(), time.monotonic() - one.began
        if code == 0 and cell.finished:
            before = read_record(cell.directory)
            total = seconds + float(before.get("seconds", 0.0))
            write_record(cell.directory, {**before, "seconds": total, "beside": self.jobs})
            self.pace.took(cell, total)
            watcher.ended(cell, seconds, "")
            return
        record = read_record(cell.directory)
        if record:  # what it took so far counts, when it goes on
            write_record(cell.directory, {**record, "seconds": seconds + float(record.get("seconds", 0.0))})
        why = one.child.reason()
        if code is not None and code < 0:
            why = f"it was ended by {signal.Signals(-code).name}" + (f": {why}" if "said nothing" not in why else "")
        if any(words in why for words in _NO_SPACE):
            raise FedemError(f"{cell.name}: {why}; what is finished stays: free space, then say the same again")
        self.failed[cell] = f"{why} (log: {one.child.log})"
        watcher.ended(cell, seconds, self.failed[cell])
