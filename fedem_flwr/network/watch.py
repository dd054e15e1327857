"""A node's watch over its own work: signs of life, an end on demand, and a limit to what one answer takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedem_flwr.errors import FedemError
from fedem_flwr.pulse import heard_by

_TOUCH = 1.0  # seconds between touches of the health file


class Ended(BaseException):
    """The process is to end now; no answer is made of this."""


class Watch:
    """Hears the beats of an answer's work (`pulse`), in whatever thread they come.

    Args:
        stopped: the process is to end. health: a file, touched while the node works or has contact; None: none.
        seconds: that an answer may take.
    """

    def __init__(self, stopped: threading.Event, health: Path | None, seconds: float) -> None:
        self._stopped, self._health, self._seconds = stopped, health, seconds
        self._touched, self._until = 0.0, 0.0

    def touch(self) -> None:
        """A sign of life; where that fails the file grows old, which is what its readers look at."""
        now = time.monotonic()
        if self._health is not None and now - self._touched >= _TOUCH:
            self._touched = now
            with suppress(OSError):
                self._health.touch()

    @contextmanager
    def of_an_answer(self) -> Iterator[None]:
        """Watch the work inside the block.

        Raises:
            Ended: the process is to end. FedemError: the answer takes too long; both at the next beat.
        """
        self._until = time.monotonic() + self._seconds
        with heard_by(self._beat):
            yield

    def _beat(self) -> None:
        if self._stopped.is_set():
            raise Ended
        if time.monotonic() > self._until:
            raise FedemError(f"an answer that takes more than {self._seconds:.0f} s (--max-seconds): given up")
        self.touch()
