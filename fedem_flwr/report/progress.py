"""Progress of a run: a live bar on a terminal and in a notebook with widgets, a plain line every tenth elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from fedem_flwr.report.run_directory import number_at
from fedem_flwr.terminal import console as new_console

_SHOWN = (
    ("loss", ("train_loss",)),
    ("hr@10", ("validation", "hr@10")),
    ("ndcg@10", ("validation", "ndcg@10")),
    ("rho", ("rho", "mean")),
)


def clock_text(seconds: float) -> str:
    """Return a duration as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def rate_text(seconds_per_round: float) -> str:
    """Return the speed in the unit that gives a number above one: ``3.1 rounds/s`` or ``2.40 s/round``."""
    if 0 < seconds_per_round < 1:
        return f"{1 / seconds_per_round:.1f} rounds/s"
    return f"{seconds_per_round:.2f} s/round"


def metrics_text(line: Mapping[str, object], evaluated: Mapping[str, object] | None = None) -> str:
    """Return loss, validation HR@10 and NDCG@10 and mean rho of a metrics line, without what is missing.

    Args:
        line: of the round.
        evaluated: the line of the last round that was evaluated; gives what `line` lacks beside the loss.
    """
    aside = ""
    if evaluated is not None and number_at(line, "validation", "ndcg@10") is None:
        aside = f"  (round {evaluated.get('round')})"
        line = {**evaluated, "train_loss": line.get("train_loss")}
    found = ((name, number_at(line, *keys)) for name, keys in _SHOWN)
    return "  ".join(f"{name} {value:.4f}" for name, value in found if value is not None) + aside


def progress_console(wanted: bool | None) -> Console | None:
    """Where progress is shown: standard error or the notebook's cell, so that standard output stays clean.

    Args:
        wanted: None is "on a terminal or in a notebook only".

    Returns:
        None where nothing is shown.
    """
    made = new_console(stderr=True)
    shown = made.is_terminal or made.is_jupyter if wanted is None else wanted
    return made if shown else None


def draws_bars(console: Console) -> bool:
    """A notebook draws a live bar with widgets; without them there is a warning for every look at it."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


class _RoundDisplay(Progress):
    """A bar with a line of metrics below it, so that both fit a terminal of 80 columns."""

    below: RenderableType = Text("")

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield self.below


class RoundProgress:
    """Show how far a run is: ``with RoundProgress(rounds) as progress: progress.update(round, line)``.

    Args:
        rounds: the last round's number; rounds count from 1.
        first_round: the round this process starts with; above 1 when a run is resumed.
        description: what stands before the bar.
        quiet: show nothing.
        console: where to write; default is standard error, so that standard output stays clean for results.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        rounds: int,
        *,
        first_round: int = 1,
        description: str = "training",
        quiet: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rounds = rounds
        self._before = first_round - 1
        self._description = description
        self._quiet = quiet
        self._console = console or new_console(stderr=True)
        self._clock = clock
        self._start = clock()
        self._tenth = -1
        self._display: _RoundDisplay | None = None
        self._evaluated: Mapping[str, object] | None = None  # the last line with metrics
        self._first: tuple[int, float] | None = None  # the first round that was shown, and when

    def __enter__(self) -> Self:
        self._start = self._clock()
        if not self._quiet and draws_bars(self._console):
            self._display = _RoundDisplay(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}", markup=False),
                TimeElapsedColumn(),
                console=self._console,
                expand=True,
            )
            self._display.add_task(self._description, total=self._rounds, completed=self._before, speed="")
            self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._display is not None:
            self._display.refresh()  # in a notebook stopping does not draw the end
            self._display.stop()
            self._display = None

    def update(self, round_number: int, line: Mapping[str, object]) -> None:
        """Show that ``round_number`` is finished.

        Args:
            round_number: from 1.
            line: the round's line of ``metrics.jsonl``; if it was not evaluated, the last known metrics are shown.
        """
        if number_at(line, "validation", "ndcg@10") is not None:
            self._evaluated = line
        if self._quiet:
            return
        elapsed = self._clock() - self._start
        if self._first is None or round_number <= self._first[0]:
            self._first = round_number, elapsed
            pace = elapsed / max(round_number - self._before, 1)
        else:  # the first round's time has starting up in it
            pace = (elapsed - self._first[1]) / (round_number - self._first[0])
        left = pace * max(self._rounds - round_number, 0)
        metrics = metrics_text(line, self._evaluated)
        if self._display is not None:
            self._display.below = Text(f"  {metrics}", style="cyan")
            self._display.update(
                self._display.task_ids[0],
                completed=round_number,
                speed=f"{rate_text(pace)}  ETA {clock_text(left)}",
            )
            return
        tenth = 10 * round_number // max(self._rounds, 1)
        if tenth == self._tenth:
            return
        self._tenth = tenth
        text = (
            f"{self._description}: round {round_number}/{self._rounds}  {rate_text(pace)}  "
            f"elapsed {clock_text(elapsed)}  ETA {clock_text(left)}  {metrics}"
        )
        self._console.print(text.rstrip(), soft_wrap=True)


@contextmanager
def task_progress(
    description: str,
    total: int | None,
    *,
    in_bytes: bool = True,
    quiet: bool = False,
    console: Console | None = None,
) -> Iterator[Callable[[int], None]]:
    """Show the progress of one task; yields ``advance(amount)``.

    Args:
        description: what stands before the bar.
        total: the amount at the end, or None if it is not known.
        in_bytes: amounts are bytes (a download); otherwise they are counted items.
        quiet: show nothing.
        console: where to write; default is standard error.
    """
    console = console or new_console(stderr=True)
    if quiet:
        yield lambda amount: None
        return
    if not draws_bars(console):
        console.print(f"{description} ...", soft_wrap=True)
        yield lambda amount: None
        return
    counted = (DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(),)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), *counted, TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(description, total=total)
        yield lambda amount: progress.update(task, advance=amount)
        progress.refresh()  # in a notebook stopping does not draw the end
