"""The model that a finished run serves, opened where its data are: for recommendations and for a last look at it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedem_flwr.config.registry import client_of
from fedem_flwr.evaluation.bootstrap import best_control, paired_interval
from fedem_flwr.evaluation.cohort import Scorer
from fedem_flwr.evaluation.lists import Served, list_diagnostics, served
from fedem_flwr.messages.narrow import crossed
from fedem_flwr.nodes.host import NodeHost
from fedem_flwr.protocol.rules import rules_of
from fedem_flwr.runtime.checkpoint import Checkpoint, served_checkpoint
from fedem_flwr.runtime.inputs import build_strategy
from fedem_flwr.runtime.prepared import PreparedRun
from fedem_flwr.runtime.resumable import Resumable

LEVEL = 0.95
_NOBODY = np.empty(0, dtype=np.int64)
_PATHS = ("full/ndcg@10", "full/hr@10", "sampled99/ndcg@10", "sampled99/hr@10")


@dataclass
class ServedModel:
    """A run's model: the best round's where clients keep nothing, else the last round's."""

    run: PreparedRun
    point: Checkpoint
    strategy: Resumable

    @classmethod
    def open(cls, run: PreparedRun) -> ServedModel:
        """Restore the strategy from the run's checkpoint.

        Raises:
            InputError: there is none yet.
        """
        point = served_checkpoint(run.directory)
        strategy = build_strategy(run.config, run.facts.items)
        strategy.restore(point.arrays)
        return cls(run, point, strategy)

    def client(self, node: int) -> Any:
        """The client of a node, in this process."""
        host = NodeHost(self.run.directory.path.resolve(), self.run.nodes, self.run.config.run.threads, trains=False)
        return client_of(self.run.config.method.strategy, self.run.config.method.client)(host, node)

    def message(self, users: np.ndarray) -> tuple[dict[str, np.ndarray], Mapping[str, Any]]:
        """The arrays and settings that a node with these users would be sent now."""
        arrays = {
            "participants": _NOBODY,
            "uploaders": _NOBODY,
            **crossed(self.strategy.download(users), self.run.config.messages.bits_down),
        }
        return arrays, self.strategy.settings(self.point.round)

    def scorer(self, node: int) -> Scorer:
        """What a node's users are scored with."""
        client = self.client(node)
        arrays, settings = self.message(client.users)
        scorer: Scorer = client.model(self.point.round, [arrays[name] for name in client.DOWNLOAD], settings)
        return scorer

    def scorers(self) -> Iterator[Scorer]:
        """Of all nodes that host somebody."""
        for node in range(self.run.nodes):
            if len(self.client(node).users):
                yield self.scorer(node)


def with_served(diagnostics: Mapping[str, Any], model: ServedModel) -> dict[str, Any]:
    """Diagnostics whose grids say which settings are served; the last choice may be newer than the best round."""
    settings = model.strategy.settings(model.point.round)
    out = dict(diagnostics)
    for name in ("tuning", "mixing"):
        if grid := out.get(name):
            out[name] = {**grid, "chosen": {key: settings.get(key, value) for key, value in grid["chosen"].items()}}
    return out


def look_at(
    model: ServedModel,
    controls: Mapping[str, Any],
    per_user: Mapping[str, Mapping[str, np.ndarray]],
    found: Served | None = None,
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Compare the served model with the best control, user by user, and look at its lists.

    Args:
        controls: their figures. per_user: their test metrics of each user; empty where none was measured.
        found: what the model serves, where that is known already.

    Returns:
        The comparison (None without controls) and the diagnostics of the lists.
    """
    run = model.run
    found = found or served(run.split, model.scorers())
    lists = list_diagnostics(run.split, found.recommended)
    first = rules_of(run.split.protocol).headline
    rivals = {name: figures for name, figures in controls.items() if name in per_user}
    if not rivals:
        return None, lists
    control = best_control(rivals, f"{first}/ndcg@10")
    if control is None:
        return None, lists
    intervals: dict[str, dict[str, float]] = {}
    for path in _PATHS:
        known = np.isfinite(found.metrics[path]) & np.isfinite(per_user[control][path])
        a, b = found.metrics[path][known], per_user[control][path][known]
        interval = paired_interval(a, b, seed=run.config.run.seed, level=LEVEL)
        intervals[path] = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    metrics: dict[str, Any] = {metric: intervals[f"{first}/{metric}"] for metric in ("ndcg@10", "hr@10")}
    metrics["sampled99"] = {metric: intervals[f"sampled99/{metric}"] for metric in ("ndcg@10", "hr@10")}
    both = np.isfinite(found.metrics[_PATHS[0]]) & np.isfinite(per_user[control][_PATHS[0]])
    users = int(both.sum())
    return {"control": control, "metrics": metrics, "round": model.point.round, "users": users, "level": LEVEL}, lists
