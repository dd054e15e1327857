"""The client of fedials: users are solved anew from their histories and the downloaded table. It keeps nothing.

Private: interactions, embeddings p and evaluation targets. Up: sums over the cohort (see `training.ials.TableSums`) and
metric sums. Down: one item table for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch

from clients.base import Arrays, HostClient, Scalar
from fedem_flwr.engine.ials import FoldIn, FoldInScores, Objective, Recency, TableSums, table_sums
from fedem_flwr.evaluation.cohort import evaluate_cohort
from fedem_flwr.evaluation.scorers import Component, HistoryScorer
from fedem_flwr.evaluation.settings_grid import grid_sums
from fedem_flwr.nodes.host import as_tensor


class FedialsClient(HostClient):
    """Hosts the users of one node."""

    DOWNLOAD: ClassVar[tuple[str, ...]] = ("participants", "uploaders", "table")
    UPLOADS: ClassVar[dict[str, tuple[str, ...]]] = {"sums": ("items", "rows", "counts", "gram")}
    LEAST: ClassVar[dict[str, int]] = {}  # items without which a user adds nothing to a kind of upload; else 1
    LOCAL_ONLY: ClassVar[bool] = False  # a table of one's own history alone knows no other item

    def fit(self, parameters: Arrays, config: dict[str, Scalar]) -> tuple[Arrays, int, dict[str, Scalar]]:
        """Evaluate what was received, train the participants, and return their sums."""
        metrics: dict[str, Scalar] = self.withheld(parameters[0], self.least(config))
        if config.get("evaluate"):
            metrics |= evaluate_cohort(self.model(0, parameters, config), self.host.split)
        if config.get("tune") or config.get("mix"):
            metrics |= self.tune(parameters, config)
        upload, samples, loss = self.train(parameters, config)
        return upload, samples, metrics if loss is None else {**metrics, "loss-total": loss}

    def train(self, parameters: Arrays, config: Mapping[str, Scalar]) -> tuple[Arrays, int, float | None]:
        """Solve the participants; returns their sums, the number of samples and the loss over them, if any."""
        who = self.asked(parameters[0], self.least(config))
        sums = table_sums(self.tensor(parameters[2]), self.host.history(self.node), who, self.objective())
        return self.pack(sums), sums.samples, sums.error

    def model(self, round_: int, parameters: Arrays, config: Mapping[str, Scalar]) -> HistoryScorer:
        """This node's users, scored from their histories with the settings of the message."""
        return self.history_scorer(self.components(parameters, config))

    def components(self, parameters: Arrays, config: Mapping[str, Scalar]) -> list[tuple[float, Component]]:
        """What scores any history, also of a user that was never in training, with weights."""
        recency = Recency.of(float(config["half_life"]), float(config["ridge"]))
        return [(1.0, FoldInScores(FoldIn(self.tensor(parameters[2]), self.objective()), recency))]

    def tune(self, parameters: Arrays, config: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """Validation sums of the grid of half-lives and ridges, in the order of the configuration."""
        grid, fold_in = self.host.config.fold_in.grid(), FoldIn(self.tensor(parameters[2]), self.objective())
        components = [FoldInScores(fold_in, Recency.of(row["half_life"], row["ridge"])) for row in grid]
        scorers = [self.history_scorer([(1.0, component)]) for component in components]
        return dict(grid_sums(scorers, self.host.split, "fold-in"))

    def history_scorer(self, components: Sequence[tuple[float, Component]]) -> HistoryScorer:
        """All users, scored by weighted components."""
        later = self.host.config.evaluation.test_history == "all"
        newest = np.asarray(self.host.split.validation[self.host.split.rows(self.users)]) if later else None
        return HistoryScorer(self.host.history(self.node), self.host.device(), components, newest)

    def least(self, config: Mapping[str, Scalar]) -> int:
        """See `LEAST`."""
        return self.LEAST.get(str(config["upload"]), 1)

    def objective(self) -> Objective:
        """a and λ."""
        ials = self.host.config.ials
        return Objective(ials.weight, ials.ridge)

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        """A downloaded array where this process computes."""
        return as_tensor(array, self.host.device())

    def pack(self, sums: TableSums) -> Arrays:
        """The touched rows, in the order of `UPLOADS`."""
        touched = torch.nonzero(sums.counts).squeeze(1)
        found = (touched.int(), sums.gradient[touched].float(), sums.counts[touched].int(), sums.gram.float())
        return [array.cpu().numpy() for array in found]
