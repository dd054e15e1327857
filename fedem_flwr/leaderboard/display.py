"""Live progress of cells: a bar for all, a line for each that runs; a plain line a cell where there is no terminal."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from fedem_flwr.leaderboard.cells import Prepared
from fedem_flwr.leaderboard.pace import Pace, seconds_left
from fedem_flwr.report.steps import clock_text, draws_bars


class CellProgress:
    """What a `Schedule` tells, shown.

    Args:
        cells: how many are to be carried out. rounds: of all of them.
        jobs: how many run at a time.
        console: where; nowhere if None.
    """

    def __init__(self, cells: int, rounds: int, jobs: int, console: Console | None) -> None:
        self._cells, self._rounds, self._jobs, self._console = cells, rounds, jobs, console
        self._done, self._rounds_done = 0, 0
        self._bars: Progress | None = None
        self._all = TaskID(0)
        self._lines: dict[Prepared, TaskID] = {}
        self._left: float | None = None

    def __enter__(self) -> Self:
        if self._console is not None and draws_bars(self._console) and self._cells:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[eta]}", markup=False),
                console=self._console,
            )
            self._all = self._bars.add_task("rounds of all cells", total=self._rounds, eta="")
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def look(self, waiting: Sequence[Prepared], running: dict[Prepared, float], pace: Pace) -> None:
        """See `schedule.Watcher`."""
        if self._console is None:
            return
        self._left = seconds_left(waiting, running, pace, self._jobs)
        if self._bars is None:
            return
        done = {cell: min(cell.rounds_done, cell.config.run.rounds) for cell in running}
        eta = "" if self._left is None else f"ETA {clock_text(self._left)}"
        self._bars.update(
            self._all,
            completed=self._rounds_done + sum(done.values()),
            description=f"{self._done} of {self._cells} cells done",
            eta=eta,
        )
        for cell in self._lines.keys() - running.keys():
            self._bars.remove_task(self._lines.pop(cell))
        for cell, rounds in done.items():
            if cell not in self._lines:
                self._lines[cell] = self._bars.add_task(f"  {cell.name}", total=cell.config.run.rounds, eta="")
            finishing = "controls, report" if rounds == cell.config.run.rounds else ""
            self._bars.update(self._lines[cell], completed=rounds, eta=finishing)

    def ended(self, cell: Prepared, seconds: float, failure: str) -> None:
        """See `schedule.Watcher`."""
        self._done += 1
        self._rounds_done += cell.config.run.rounds
        if self._console is None:
            return
        left = "" if self._left is None else f", ETA {clock_text(self._left)}"
        told = f"FAILED: {failure}" if failure else f"{clock_text(seconds)}{left}"
        self._console.print(f"[{self._done}/{self._cells}] {cell.name}: {told}", soft_wrap=True)
