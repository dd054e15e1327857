"""Cells as tasks of Ray: each starts the process that a cell is anyway, and waits for it.

Ray is one of this machine, started for the comparison: never a cluster that happens to be running. That a task is a
process of its own, and not the worker itself, keeps a cell's memory and threads its own.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from fedem_flwr.errors import FedemError, InputError, suggest
from fedem_flwr.files import unlinked_private
from fedem_flwr.network.processes import Child, running
from fedem_flwr.runtime.surroundings import environment, quiet, short_directory
from fedem_flwr.text import one_line

if TYPE_CHECKING:
    from ray import ObjectRef

Parallel = Literal["processes", "ray"]
_LOOK = 0.1  # seconds between two looks of a task at its process


def check_parallel(parallel: str) -> Parallel:
    """What carries cells out, by its name.

    Raises:
        InputError: an unknown one, or Ray is missing or already running in this process.
    """
    ways: tuple[Parallel, ...] = get_args(Parallel)
    if parallel not in ways:
        raise InputError(f"parallel = {parallel!r}: write {' or '.join(ways)}{suggest(str(parallel), ways)}")
    way = ways[ways.index(parallel)]
    if way == "ray":
        if importlib.util.find_spec("ray") is None:
            raise InputError(
                "cells as tasks of Ray need Ray: pip install 'flwr[simulation]', or leave out --parallel ray"
            )
        import ray

        if ray.is_initialized():
            raise InputError("Ray is already running in this process: call ray.shutdown() before this comparison")
    return way


@contextmanager
def ray_of_this_machine(tasks: int, threads: int) -> Iterator[None]:
    """Ray for so many tasks at a time, of so many cores each; `os.environ` is as before afterwards.

    Raises:
        FedemError: it does not start. InputError: no usable temporary directory.
    """
    import ray

    with (
        short_directory() as directory,
        environment(
            RAY_USAGE_STATS_ENABLED="0",
            RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",  # a cell sees the GPUs that this process sees
        ),
    ):
        try:
            with quiet():
                ray.init(
                    address="local",
                    num_cpus=tasks * threads,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _temp_dir=str(directory),
                )
        except Exception as error:
            raise FedemError(f"Ray does not start: {one_line(str(error))}") from error
        try:
            yield
        finally:
            with quiet():
                ray.shutdown()


class RayCell(Child):
    """A `Child` that a task of Ray starts and ends.

    The folder's lock cannot be handed on to it; should this process be killed, Ray ends the tasks, and these theirs.
    """

    def start(self, *, outlive: bool = False) -> None:
        """Hand it to Ray."""
        import ray

        given = {**os.environ, **self.environment}
        task = ray.remote(num_cpus=int(self.environment["OMP_NUM_THREADS"]), max_retries=0)(carry_out)
        handle = task.remote(self.name, list(self.command), str(self.log.absolute()), given)
        self.process = _Handle(handle, self.log)  # type: ignore[assignment]  # what is asked of a process
        self.starts += 1

    def signal(self, number: int) -> None:
        """End the task, and so the process; any other signal has no meaning."""
        import ray

        if self.process is not None and number in (signal.SIGTERM, signal.SIGKILL):
            handle: Any = self.process
            ray.cancel(handle.task, force=number == signal.SIGKILL)


class _Handle:
    """Of a task, with what of a process is asked.

    Attributes:
        pid: not known here, 0: what a cell holds already is not taken off what it needs, so that fewer may run.
    """

    pid = 0

    def __init__(self, task: ObjectRef[int], log: Path) -> None:
        self.task, self._log = task, log
        self._code: int | None = None

    def poll(self) -> int | None:
        """The process's exit code, None while it runs."""
        return self._look(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """The same, once it has ended."""
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("a task of Ray", timeout or 0.0)
        return code

    def _look(self, seconds: float | None) -> int | None:
        import ray

        if self._code is None and ray.wait([self.task], timeout=seconds)[0]:
            try:
                self._code = int(ray.get(self.task))
            except ray.exceptions.RayError as error:  # its worker died, or it was cancelled
                with open(self._log, "ab", opener=unlinked_private) as log:
                    log.write(f"fedem: Ray lost the cell's task: {one_line(str(error))}\n".encode())
                self._code = 1
        return self._code


def carry_out(name: str, command: Sequence[str], log: str, given: dict[str, str]) -> int:
    """In a worker of Ray: start a process, wait for it, and end it where the task is ended."""
    child = Child(name, command, Path(log), given)
    child.start()
    with running([child]):
        while child.alive:
            time.sleep(_LOOK)
        code = child.ended()
    return 1 if code is None else code
