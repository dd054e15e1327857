"""The client for stock Flower strategies (FedAvg, FedMedian, ...): one item table down, one item table up.

Private: user embeddings p, interactions and evaluation targets. Up: the cohort's mean trained table, `num-examples` =
samples. Down: the global table, which replaces the own one. What is trained is FedMF's matrix factorisation.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedem_flwr.contract.asked import as_tensor
from fedem_flwr.contract.phases import Task
from fedem_flwr.contract.serving import StaleScorer
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.downloads import Download
from fedem_flwr.errors import FedemError
from fedem_flwr.evaluation.cohort import MEANS, Scorer, evaluate_cohort, means_of
from fedem_flwr.evaluation.scorers import CohortScorer
from fedem_flwr.evaluation.some import OfSome

from .base import Arrays, HostClient, Scalar


class TableClient(HostClient):
    """Hosts the users of one node for a strategy that knows one global model."""

    DOWNLOAD = ("item_table",)

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
        table = as_tensor(parameters[0].astype(np.float32, copy=False), self.host.device())
        return CohortScorer(self.host.cohort(self.node, round_), {"items": Download.for_all(table, len(self.users))})

    def _scored(self, scorer: CohortScorer, some: np.ndarray | None) -> Scorer:
        """All users, or the run's sample; where they are scored from histories, with what they had in training."""
        if self.host.split.histories is not None:
            return StaleScorer(scorer, self.host.interactions(self.node) > 0)
        return scorer if some is None else OfSome(scorer, some)

    def fit(self, parameters: Arrays, config: dict[str, Scalar]) -> tuple[Arrays, int, dict[str, Scalar]]:
        """Train every user from the downloaded table; return the mean table and the samples behind it.

        Raises:
            FedemError: too few users live here for the node's policy, or nearly those of a sum that went before.
        """
        round_ = int(config["server-round"])
        scorer = self.model(round_ - 1, parameters, config)
        self._require_enough()
        if not self.host.admits(self.node, Task.least_items, self.with_data):
            raise FedemError(f"node {self.node}: a sum over nearly the same users went up before: refused")
        cohort: Cohort = scorer.cohort
        result = cohort.train(cohort.everyone, scorer.downloads, round_, sums=True)
        self.keep(round_, cohort, config)
        sums, samples = result.sums["items"], int(result.samples.sum())
        table = (sums.total / sums.weight.clamp(min=1)).float().cpu().numpy()
        loss = float((result.loss.double() * result.samples).sum()) / max(1, samples)
        return [table], samples, {"train-loss": loss}

    def evaluate(self, parameters: Arrays, config: dict[str, Scalar]) -> tuple[float, int, dict[str, Scalar]]:
        """Means over this node's users, or the run's sample; `num-examples`, their weight, is how many they are.

        Raises:
            FedemError: too few users live here for the node's policy.
        """
        scorer = self.model(int(config["server-round"]), parameters, config)
        if self.host.policy.smallest_sum > 1:
            self._require_enough()
        some = None if config.get("everybody", 1) else self.host.sampled(self.node)
        split = self.host.split
        sums = evaluate_cohort(self._scored(scorer, some), split)
        nobody: dict[str, Scalar] = dict.fromkeys(
            (name for name in MEANS if name.partition("/")[0] in split.parts), 0.0
        )
        return 0.0, int(sums.get("users", 0)), {**means_of(sums)} or nobody  # which has no weight

    def _require_enough(self) -> None:
        if not self.host.policy.sends(self.with_data):
            least = self.host.policy.smallest_sum
            raise FedemError(f"node {self.node} hosts too few users: it sends no sum over fewer than {least}")
