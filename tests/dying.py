"""A run that dies on request, and what of its results must not change."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedem_flwr.cli import main

RESULTS = (
    "metrics",
    "rounds",
    "users",
    "items",
    "interactions",
    "bytes_up",
    "bytes_down",
    "node_bytes_up",
    "node_bytes_down",
    "failures",
    "controls",
)


def results(directory: Path) -> dict[str, Any]:
    """What of a summary must not change."""
    summary = json.loads((directory / "summary.json").read_text())
    return {key: summary[key] for key in RESULTS}


def fedem(*arguments: str) -> int:
    """Run the command line in this process."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return int(stopped.value.code or 0)


class Crash(BaseException):
    """Stands for SIGKILL: nothing handles it."""


def crash_at(call: int, patch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Let the process die in its `call`-th fsync; returns how many there were.

    Nothing is forced to the disk meanwhile, which takes long: the system outlives the process.
    """
    calls = 0

    def counted(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Crash

    patch.setattr(os, "fsync", counted)
    return lambda: calls
