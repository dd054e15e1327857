"""What Flower and Ray find in the environment, and what of theirs reaches the screen."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, cast

from fedem_flwr.errors import InputError

# Modules of Flower whose log tells what an error reply or an exception tells as well.
_TOLD_OTHERWISE = frozenset({"vce_api", "raybackend", "ray_actor", "run_simulation"})
LONGEST_DIRECTORY = 40  # characters: Ray's sockets add about 62, and a socket's path has at most 103 to 107


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
    """Let nothing of Flower's and Ray's reach the screen but errors that are told nowhere else.

    The calling thread prints nothing meanwhile; others may.
    """
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


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A new directory with a short path, for Ray's sockets and logs: old sockets and long paths break Ray.

    Raises:
        InputError: no temporary directory is writable and has a short path.
    """
    candidates = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")]
    for parent in candidates:
        short = len(str(parent)) + len("/fedem-12345678") <= LONGEST_DIRECTORY
        if short and parent.is_dir() and os.access(parent, os.W_OK | os.X_OK):
            directory = Path(tempfile.mkdtemp(prefix="fedem-", dir=parent))
            try:
                yield directory
            finally:
                shutil.rmtree(directory, ignore_errors=True)
            return
    raise InputError(
        f"Ray needs a writable temporary directory with a short path, and {candidates[0]} is none: "
        "set TMPDIR to one of at most 25 characters"
    )


class _WithoutRay:
    """A stream that drops what Ray prints: that a process died, for instance, which its reply tells too.

    Ray prints in a thread of its own, and in the one that started it while that waits for it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._muted = {threading.current_thread().name, "ray_listen_error_messages"}

    def write(self, text: str) -> int:
        return len(text) if threading.current_thread().name in self._muted else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def peak_rss_bytes() -> int:
    """The largest resident memory of this process so far; of a child that has ended where that is more.

    In one process it covers reading the data, training and evaluation, and all that the process did before: also runs
    that were carried out earlier beside this one. Ray's own processes are nobody's children and not covered.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return int(max(own, children)) * unit
