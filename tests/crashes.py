"""Runs that die, and are resumed by another process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from worlds import Done, done, prepare

from fedem_flwr.config import Config
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.runtime.prepared import PreparedRun


class Crash(BaseException):
    """Stands for SIGKILL: nothing handles it."""


def resumed_after(path: Path, config: Config, last: int) -> Done:
    """A run that dies when the line of round `last` is written, and is resumed by another process."""
    run = prepare(path, config)

    def die(line: dict[str, Any]) -> None:
        if line["round"] == last:
            raise Crash

    with pytest.raises(Crash):
        carry_out_rounds(run, die)
    again = PreparedRun.open(run.directory)
    return done(again, carry_out_rounds(again, lambda _: None, resume=True))
