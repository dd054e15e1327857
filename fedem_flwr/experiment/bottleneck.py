"""`diagnostics.bottleneck`: what a run looks at inside its clients, and writes beside its metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from fedem_flwr.config import Config
from fedem_flwr.config.registry import find, is_method
from fedem_flwr.contract import Asked, Device, Method
from fedem_flwr.contract.finding import method_of
from fedem_flwr.errors import InputError
from fedem_flwr.evaluation.bottleneck import SUMS, Bottleneck
from fedem_flwr.files import write_atomically
from fedem_flwr.randomness import keyed_permutation

FILE = "bottleneck.json"


def check_bottleneck(config: Config) -> None:
    """Find out whether the bottleneck can be looked at.

    Raises:
        InputError: it cannot.
    """
    if not config.diagnostics.bottleneck:
        return
    check_merged_tables(config, "diagnostics.bottleneck")


def check_merged_tables(config: Config, setting: str) -> None:
    """Find out whether there are tables of clients' own to look at, merged with what they receive.

    Raises:
        InputError: there are none, or none in this process.
    """
    if config.run.runtime != "inprocess":
        raise InputError(
            f"{setting} looks inside clients, and --runtime {config.run.runtime} is no single process: leave either out"
        )
    kind = find("strategies", config.method.strategy)
    if not is_method(kind) or not method_of(config, 1).merged or config.merge.mode == "none":
        raise InputError(
            f"{setting} is about tables of clients' own, merged with what they receive: "
            f"{config.method.name} has none; use fedem or fedsim, or set merge.mode"
        )


class Observer:
    """Told by the clients of this process what they have just received; adds up over nodes and writes.

    Args:
        run_dir: the run's directory. config: the run's. users: n.
    """

    def __init__(self, run_dir: Path, config: Config, users: int) -> None:
        self.path = run_dir / FILE
        order = keyed_permutation(users, config.run.seed, "bottleneck/users").numpy()
        self.chosen = np.sort(order[: config.diagnostics.users])
        self.rounds: dict[int, dict[str, float]] = read_rounds(run_dir)
        self._fresh = set[int]()
        self._known: dict[int, Bottleneck] = {}

    def __call__(self, method: Method, device: Device, asked: Asked, round_: int) -> None:
        """Look at a node's users after a round, before they train on."""
        who = np.flatnonzero(np.isin(device.users, self.chosen))
        if not len(who) or not round_:
            return
        node, cohort = int(device.users[0]), method.training_cohort(device)
        if node not in self._known:
            self._known[node] = Bottleneck(cohort.data, method, torch.from_numpy(who).to(cohort.device))
        found = self._known[node].look(cohort, method.downloads(device, asked))
        found["looked at"] = float(len(who))
        found["converged"] = float(self._known[node].converged)
        before = self.rounds.get(round_, {}) if round_ in self._fresh else {}  # a round that is repeated counts once
        self.rounds[round_] = {name: value + before.get(name, 0.0) for name, value in found.items()}
        self._fresh.add(round_)
        self._write()

    def _write(self) -> None:
        rounds = {str(round_): self.rounds[round_] for round_ in sorted(self.rounds)}
        write_atomically(self.path, json.dumps(rounds, indent=1) + "\n")


def read_rounds(run_dir: Path) -> dict[int, dict[str, float]]:
    """Sums by round, as far as a run has written them; what is damaged is measured again."""
    try:
        told = json.loads((run_dir / FILE).read_text(encoding="utf-8"))
        return {int(round_): {str(k): float(v) for k, v in sums.items()} for round_, sums in told.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def shares(run_dir: Path) -> dict[str, object] | None:
    """For diagnostics.json: by round, shares of the users who had received a table, and means; None: nothing there."""
    found = {round_: sums for round_, sums in read_rounds(run_dir).items() if sums.get("users")}
    if not found:
        return None
    last = found[max(found)]
    columns = {name: [_mean(sums, name) for _, sums in sorted(found.items())] for name in SUMS[1:]}
    return {
        "rounds": sorted(found),
        "users": [int(sums["users"]) for _, sums in sorted(found.items())],
        **columns,
        "looked_at": int(last.get("looked at", 0.0)),
        "converged": int(last.get("converged", 0.0)),
    }


def _mean(sums: Mapping[str, float], name: str) -> float:
    return sums.get(name, 0.0) / sums["users"]
