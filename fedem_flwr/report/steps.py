"""Progress of steps that are long without being rounds: reading, controls, what happens inside a round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from fedem_flwr.pulse import watched_by
from fedem_flwr.terminal import console as new_console

PATIENCE = 2.0  # seconds that a step may take before it is shown
LIVE, LINES = 0.2, 10.0  # seconds between two showings, on a bar and as lines


def clock_text(seconds: float) -> str:
    """Return a duration as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def draws_bars(console: Console) -> bool:
    """A notebook draws a live bar with widgets; without them there is a warning for every look at it."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


@dataclass
class _Step:
    began: float
    done: int = 0
    shown: float = 0.0


class StepWatch:
    """Turns what steps `tell` into words with share, rate and time left; nothing of those that are over at once.

    Args:
        show: takes the words; empty ones when a step is over.
        every: seconds between two showings of a step.
        clock: seconds, monotonic.
    """

    def __init__(self, show: Callable[[str], None], every: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._show, self._every, self._clock = show, every, clock
        self._steps: dict[str, _Step] = {}
        self._last = clock()  # when the step before ended

    def __call__(self, what: str, done: int, total: int) -> None:
        """See `pulse.Watcher`."""
        now, step = self._clock(), self._steps.get(what)
        if step is None or done <= step.done:
            step = self._steps[what] = _Step(self._last)
        step.done = done
        if done >= total:
            if step.shown:
                self._show("")
            self._steps.pop(what)
            self._last = now
            return
        spent = now - step.began
        if spent < PATIENCE or now - step.shown < self._every:
            return
        step.shown = now
        pace = done / spent
        self._show(f"{what}: {done / max(1, total):.0%}  {_rate(pace)}  ETA {clock_text((total - done) / pace)}")


def _rate(pace: float) -> str:
    if pace >= 1e6:
        return f"{pace / 1e6:.1f} M/s"
    return f"{pace:,.0f}/s" if pace >= 10 else f"{pace:.2f}/s"


@contextmanager
def steps_shown(*, quiet: bool = False, console: Console | None = None) -> Iterator[None]:
    """Show the steps inside the block that take long: a live line on a terminal, a line every ten seconds elsewhere.

    Args:
        quiet: show nothing.
        console: where to write; default is standard error.
    """
    place = console or new_console(stderr=True)
    if quiet:
        with watched_by(None):
            yield
        return
    if not draws_bars(place):
        with watched_by(StepWatch(lambda words: place.print(words, soft_wrap=True) if words else None, LINES)):
            yield
        return
    spinner = Spinner("line", Text(""))
    with Live(console=place, transient=True, refresh_per_second=5) as live:

        def show(words: str) -> None:
            spinner.update(text=Text(words))
            live.update(spinner if words else Text(""))

        with watched_by(StepWatch(show, LIVE)):
            yield
