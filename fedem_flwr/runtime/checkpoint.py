"""Checkpoints of the server's side: what the strategy needs to go on, and how far the run is.

`checkpoint/server/round-N.safetensors` holds the arrays after round N, `checkpoint/latest.json` names the newest
complete one and is written last, so a process killed at any moment leaves the previous checkpoint whole. It also names
those before it that are kept, so that a run can go back. Nodes keep their own state beside it (`checkpoint/nodes`).

Where clients keep nothing between rounds, `checkpoint/best/server/round-N.safetensors` holds the arrays after the best
round so far. `latest.json` names that round too: a run that goes on from a checkpoint has the best round that was
known then, and finds later ones again when it repeats them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedem_flwr.errors import InputError
from fedem_flwr.files import quoted, write_atomically
from fedem_flwr.nodes.state_store import DiskStateStore
from fedem_flwr.report.run_directory import RunDirectory

KEPT = 2  # checkpoints, unless a run says otherwise
_SERVER = "server"


@dataclass(frozen=True)
class Best:
    """The best round of a run so far.

    Attributes:
        users: how many users the round was evaluated on.
        score: its validation NDCG@10.
        arrays: the strategy's state after the round.
    """

    round: int
    users: int
    score: float
    arrays: dict[str, np.ndarray]


@dataclass(frozen=True)
class Checkpoint:
    """A point to go on from.

    Attributes:
        round: the last completed round; every node's state of it, or an earlier one where it did not take part, is on
            disk.
        arrays: the strategy's state.
        pending: the metrics line of `round` as far as it is known; None if it stands in metrics.jsonl already.
        failures: contributions left out so far.
        best: the best round so far, of strategies whose clients keep nothing; never later than the metrics lines that
            are kept when the run goes on from here.
    """

    round: int
    arrays: dict[str, np.ndarray]
    pending: dict[str, Any] | None
    failures: list[dict[str, Any]]
    best: Best | None = None


class Checkpoints:
    """The checkpoint folder of a run.

    Args:
        keep: how many checkpoints, the newest ones.
    """

    def __init__(self, directory: Path, keep: int = KEPT) -> None:
        self._directory, self._keep = directory, keep
        self._store, self._bests = DiskStateStore(directory), DiskStateStore(directory / "best")
        self._stored_best = 0  # the round whose state is known to be on disk

    @property
    def _latest(self) -> Path:
        return self._directory / "latest.json"

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint; on return it is the one that `load` gives, and those beyond `keep` are gone."""
        best = checkpoint.best
        if best is not None and best.round != self._stored_best:
            self.save_best(best.round, best.arrays)
        self._store.save(_SERVER, checkpoint.round, checkpoint.arrays)
        record = {
            "round": checkpoint.round,
            "pending": checkpoint.pending,
            "failures": checkpoint.failures,
            "best": best and {"round": best.round, "users": best.users, "score": best.score},
        }
        earlier = [one for one in self._records() if one["round"] < checkpoint.round][: self._keep - 1]
        write_atomically(self._latest, json.dumps({**record, "earlier": earlier}), private=True)
        self._store.prune(_SERVER, *(int(one["round"]) for one in (record, *earlier)))
        if best is not None:
            self._bests.prune(_SERVER, best.round, *(int(one["best"]["round"]) for one in earlier if one.get("best")))
            self._bests.drop_after(best.round)  # of a process that died before its next checkpoint

    def rounds(self) -> list[int]:
        """The rounds of the checkpoints that are there, the newest first.

        Raises:
            InputError: the record is damaged.
        """
        return [int(record["round"]) for record in self._records()]

    def go_back(self, round_: int) -> None:
        """Make an earlier checkpoint the newest, and forget those after it.

        Raises:
            InputError: there is none of this round, or the record is damaged.
        """
        records = self._records()
        at = next((at for at, record in enumerate(records) if record["round"] == round_), None)
        if at is None:
            there = ", ".join(map(str, self.rounds())) or "none"
            raise InputError(f"{self._directory} has no checkpoint of round {round_}; rounds that are there: {there}")
        self._arrays(self._store, round_)  # before the newer ones are given up
        write_atomically(self._latest, json.dumps({**records[at], "earlier": records[at + 1 :]}), private=True)
        self._store.drop_after(round_)

    def _records(self) -> list[dict[str, Any]]:
        """What is written down of the checkpoints, the newest first."""
        if not self._latest.exists():
            return []
        try:
            newest = json.loads(self._latest.read_text(encoding="utf-8"))
            found = [{key: value for key, value in newest.items() if key != "earlier"}, *newest.get("earlier", [])]
            if not all(isinstance(record["round"], int) for record in found):
                raise TypeError("a round that is no number")
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise self._damaged(error) from None
        return found

    def _damaged(self, error: Exception) -> InputError:
        return InputError(f"{self._latest} is damaged ({error}): the run cannot be resumed; start it again")

    def save_best(self, round: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Store the state after the best round; it becomes what `load_best` gives with the `save` that names it."""
        self._bests.save(_SERVER, round, arrays)
        self._stored_best = round

    def load(self) -> Checkpoint | None:
        """The newest complete checkpoint, or None before the first.

        Raises:
            InputError: the record is damaged. FedemError: the arrays are.
        """
        records = self._records()
        if not records:
            return None
        record = records[0]
        try:
            round_, pending, failures = int(record["round"]), record["pending"], list(record["failures"])
            named = record.get("best")
            scored = named and (int(named["round"]), int(named["users"]), float(named["score"]))
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(error) from None
        best = Best(*scored, self._arrays(self._bests, scored[0])) if scored else None
        self._stored_best = best.round if best else 0
        return Checkpoint(round_, self._arrays(self._store, round_), pending, failures, best)

    def load_best(self) -> tuple[int, dict[str, np.ndarray]] | None:
        """The best round so far and the state after it; None before one is known, and where clients keep a state.

        Raises:
            InputError: the record is damaged. FedemError: the arrays are.
        """
        point = self.load()
        return (point.best.round, point.best.arrays) if point and point.best else None

    def _arrays(self, store: DiskStateStore, round_: int) -> dict[str, np.ndarray]:
        arrays = store.load(_SERVER, round_) if store.holds(_SERVER, round_) else None  # an earlier one is another's
        if arrays is None:
            raise InputError(f"the checkpoint of round {round_} in {self._directory} is missing; start the run again")
        return arrays


def served_checkpoint(directory: RunDirectory) -> Checkpoint:
    """What a run's recommendations are made from: the best round's state if there is one, else the newest checkpoint.

    Raises:
        InputError: the run has no checkpoint yet, or it is damaged.
    """
    point = Checkpoints(directory.checkpoint_dir).load()
    if point is None:
        raise InputError(
            f"{directory.path} has no checkpoint yet; finish the run first: fedem resume {quoted(directory.path)}"
        )
    return point if point.best is None else Checkpoint(point.best.round, point.best.arrays, None, point.failures)
