"""Checkpoints of the server's side: what the strategy needs to go on, and how far the run is.

`checkpoint/server/round-N.safetensors` holds the arrays after round N, `checkpoint/latest.json` names the newest
complete one and is written last, so a process killed at any moment leaves the previous checkpoint whole. Nodes keep
their own state beside it (`checkpoint/nodes`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedem_flwr.errors import InputError
from fedem_flwr.report.run_directory import write_atomically
from fedem_flwr.runtime.state_store import DiskStateStore

_SERVER = "server"


@dataclass(frozen=True)
class Checkpoint:
    """A point to go on from.

    Attributes:
        round: the last completed round; every node's state of it, or an earlier one where it did not take part, is on
            disk.
        arrays: the strategy's state.
        pending: the metrics line of `round` as far as it is known; None if it stands in metrics.jsonl already.
        failures: contributions left out so far.
    """

    round: int
    arrays: dict[str, np.ndarray]
    pending: dict[str, Any] | None
    failures: list[dict[str, Any]]


class Checkpoints:
    """The checkpoint folder of a run."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._store = DiskStateStore(directory)

    @property
    def _latest(self) -> Path:
        return self._directory / "latest.json"

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint; on return it is the one that `load` gives, and older ones are gone."""
        self._store.save(_SERVER, checkpoint.round, checkpoint.arrays)
        record = {"round": checkpoint.round, "pending": checkpoint.pending, "failures": checkpoint.failures}
        write_atomically(self._latest, json.dumps(record))
        self._store.prune(_SERVER, checkpoint.round)

    def load(self) -> Checkpoint | None:
        """The newest complete checkpoint, or None before the first.

        Raises:
            InputError: the record is damaged. FedemError: the arrays are.
        """
        if not self._latest.exists():
            return None
        try:
            record: Mapping[str, Any] = json.loads(self._latest.read_text(encoding="utf-8"))
            round_, pending, failures = int(record["round"]), record["pending"], list(record["failures"])
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise InputError(
                f"{self._latest} is damaged ({error}): the run cannot be resumed; start it again"
            ) from None
        arrays = self._store.load(_SERVER, round_)
        if arrays is None:
            raise InputError(f"the checkpoint of round {round_} in {self._directory} is missing; start the run again")
        return Checkpoint(round_, arrays, pending, failures)
