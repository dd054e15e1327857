"""Three ways to reach the clients (in this process, Ray, the network) behind one Flower ``Grid``.

    wire         arrays in messages, copied only where a message leaves the process
    inprocess    a Grid that runs a ClientApp's virtual nodes right here
    simulation   the same nodes as Ray actors, through Flower's simulation
    state_store  what a node keeps between rounds

Here itself: what Flower and Ray find in the environment, and what of theirs reaches the screen.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, TextIO, cast

# Modules of Flower whose log tells what an error reply or an exception tells as well.
_TOLD_OTHERWISE = frozenset({"vce_api", "raybackend", "ray_actor", "run_simulation"})
_RAYS_VOICE = "ray_listen_error_messages"  # the thread in which Ray prints what it calls (raylet) messages


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables for a while; afterwards all is as before, whatever else was set meanwhile."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let nothing of Flower's and Ray's reach the screen but errors that are told nowhere else."""
    logger = logging.getLogger("flwr")

    def is_news(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR and record.module not in _TOLD_OTHERWISE

    logger.addFilter(is_news)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(cast(TextIO, _WithoutRay(sys.stdout))):
            tip = "Tip: In future versions of Ray"
            warnings.filterwarnings("ignore", message=tip, category=FutureWarning)
            yield
    finally:
        logger.removeFilter(is_news)


class _WithoutRay:
    """A stream that drops what one thread of Ray prints: that a process died, which its reply tells too."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return len(text) if threading.current_thread().name == _RAYS_VOICE else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


# Flower decides when it is first imported whether it sends usage statistics, so before any other module of this
# package imports it. A program that imports Flower earlier decides for itself, in its own environment.
with environment(FLWR_TELEMETRY_ENABLED="0"):
    importlib.import_module("flwr.app")
