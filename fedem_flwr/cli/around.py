"""What holds while any command runs: how it is interrupted, and where its warnings go."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from fedem_flwr.text import SafeFormatter


@contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """On SIGTERM, too, what a command has started is stopped, and it says how to go on."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread, which alone gets signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def warnings_shown() -> Iterator[None]:
    """What is logged while a command runs goes to standard error, made safe to show."""
    handler = logging.StreamHandler()
    handler.setFormatter(SafeFormatter("%(message)s"))
    loggers = [logging.getLogger(name) for name in ("fedem", "fedem_flwr")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
