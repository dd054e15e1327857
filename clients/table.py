"""The client for stock Flower strategies (FedAvg, FedMedian, ...): one item table down, one item table up.

Private: user embeddings p, interactions and evaluation targets. Up: the cohort's mean trained table, `num-examples` =
samples. Down: the global table, which replaces the own one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from clients.base import Arrays, Scalar
from clients.cohort import CohortClient
from fedem_flwr.errors import FedemError
from fedem_flwr.evaluation.cohort import evaluate_cohort, means_of
from fedem_flwr.evaluation.scorers import CohortScorer

_NOBODY = np.empty(0, dtype=np.int64)


class TableClient(CohortClient):
    """Hosts the users of one node for a strategy that knows one global model."""

    DOWNLOAD: ClassVar[tuple[str, ...]] = ("item_table",)

    def upload_names(self, config: dict[str, Scalar]) -> tuple[str, ...]:
        """The global model's only array."""
        return self.DOWNLOAD

    def model(self, round_: int, parameters: Arrays, config: Mapping[str, Scalar]) -> CohortScorer:
        """The downloaded table is everybody's; some of Flower's strategies (FedAdam) turn it into float64.

        Raises:
            FedemError: nobody lives here. Any table from here would count in a median; an error is left out.
        """
        if not len(self.users):
            raise FedemError(f"node {self.node} hosts no users: start fewer nodes")
        table = parameters[0][None].astype(np.float32, copy=False)
        return CohortScorer(self.host.cohort(self.node, round_), self.downloaded(_NOBODY, table))

    def fit(self, parameters: Arrays, config: dict[str, Scalar]) -> tuple[Arrays, int, dict[str, Scalar]]:
        """Train every user from the downloaded table; return the mean table and the samples behind it."""
        round_ = int(config["server-round"])
        scorer = self.model(round_ - 1, parameters, config)
        if not len(self.asked(self.users)):  # again an error: no table is so empty that it does not count
            raise FedemError(f"node {self.node} hosts too few users: it {self.host.policy.words}")
        cohort, downloaded = scorer.cohort, scorer.tables
        result = cohort.train(self.positions(self.users), downloaded, round_, sums=True)
        self.keep(round_, cohort, config)
        samples = int(result.samples.sum())
        loss = float((result.loss.double() * result.samples).sum()) / max(1, samples)
        return [self.pack("average", cohort, result, self.users)[0]], samples, {"train-loss": loss}

    def evaluate(self, parameters: Arrays, config: dict[str, Scalar]) -> tuple[float, int, dict[str, Scalar]]:
        """Means over this node's users; the strategy weights them by `num-examples`, here the number of users."""
        scorer = self.model(int(config["server-round"]), parameters, config)
        return 0.0, len(self.users), dict(means_of(evaluate_cohort(scorer, self.host.split)))
