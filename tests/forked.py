"""Cells that are forks of the test's process: they can be killed like any other, and need no seconds to start."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
from multiprocessing.context import ForkProcess
from typing import Any

import torch

from fedem_flwr.cli import main
from fedem_flwr.network.processes import Child, _die_with_parent


class ForkedCell(Child):
    """A `Child` that carries out a `fedem` command without a program's start."""

    def start(self, *, outlive: bool = False) -> None:
        process = multiprocessing.get_context("fork").Process(target=self._carry_out)
        process.start()
        self.process = _AsPopen(process)  # type: ignore[assignment]  # what of it a schedule asks

    def _carry_out(self) -> None:
        os.setsid()
        _die_with_parent()
        log = os.open(self.log, os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        torch.set_num_threads(1)
        main(list(self.command[self.command.index("resume") :]))


class _AsPopen:
    def __init__(self, process: ForkProcess) -> None:
        self._process = process

    @property
    def pid(self) -> Any:
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("cell", timeout or 0.0)
        return self._process.exitcode
