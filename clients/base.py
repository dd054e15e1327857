"""What every client here shares: the users it hosts, its introduction, evaluation, and where users stand in it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from flwr.client import NumPyClient

from fedem_flwr.contract.asked import Setting, as_tensor
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.evaluation.cohort import Scorer, Sums, evaluate_cohort, groups_of
from fedem_flwr.evaluation.sample import sample_size
from fedem_flwr.evaluation.some import OfSome
from fedem_flwr.nodes.host import NodeHost
from fedem_flwr.nodes.sampling import METRICS

Scalar = Setting
Arrays = list[np.ndarray]
MOST_KEPT = 20  # states of checkpoints: a disk is finite, and a server may ask for any
METRICS_WITHHELD = "metrics-withheld"  # name of the number of users over whom a node sends no metrics


class HostClient(NumPyClient):
    """Hosts the users of one node.

    Args:
        host: where the node's data and state are.
        node: the node's number.

    Attributes:
        DOWNLOAD: names and order of the arrays that `fit` and `evaluate` take.
        UPLOADS: names of the arrays that `fit` returns, for each kind of upload that a strategy may ask for.
    """

    DOWNLOAD: tuple[str, ...]
    UPLOADS: Mapping[str, tuple[str, ...]]

    def __init__(self, host: NodeHost, node: int) -> None:
        self.host, self.node = host, node
        self.users = host.users(node)

    @abstractmethod
    def fit(self, parameters: Arrays, config: dict[str, Scalar]) -> tuple[Arrays, int, dict[str, Scalar]]:
        """One round: evaluate what was received if `config["evaluate"]`, train, and return what the method uploads."""

    @abstractmethod
    def model(self, round_: int, parameters: Arrays, config: Mapping[str, Scalar]) -> Scorer:
        """What this node's users score with after `round_`, given what they downloaded.

        Evaluation and recommendations start from it.

        Args:
            config: the settings that came with the message.
        """

    def upload_names(self, config: dict[str, Scalar]) -> tuple[str, ...]:
        """Names of the arrays that `fit` returns under this configuration."""
        return self.UPLOADS[str(config["upload"])]

    def introduce(self) -> dict[str, np.ndarray]:
        """What the server must know before the first round: who lives here, and how much data each has.

        Returns:
            `users` (k,) and `samples` (k,), the counts behind the weights p_v of Eq. 13; where the node's policy says
            so, the largest count of each user's fixed group.
        """
        counts, group = self.host.interactions(self.node), self.host.whole_groups(self.node)
        if self.host.policy.coarse_counts and group is not None:
            most = np.zeros(int(group.max(initial=-1)) + 1, counts.dtype)
            np.maximum.at(most, group, counts)
            counts = np.where(counts > 0, most[group], 0)
        return {"users": self.users, "samples": counts}

    def evaluate(self, parameters: Arrays, config: dict[str, Scalar]) -> tuple[float, int, dict[str, Scalar]]:
        """Evaluate with what was received; only sums are returned."""
        scorer = self.model(int(config["server-round"]), parameters, config)
        edges = [float(x) for x in str(config.get("group-edges", "")).split(",") if x]
        return 0.0, len(self.users), self.of_all(lambda: self.evaluated(scorer, config, edges))

    def evaluated(self, scorer: Scorer, config: Mapping[str, Scalar], edges: Sequence[float] = ()) -> Sums:
        """Metric sums: over the users of the run's sample, where it has one; over all, if the message says so.

        Then those of the sample come along, so that rounds compare.
        """
        split, some = self.host.split, self.host.sampled(self.node)
        if some is not None and not config.get("everybody"):
            return evaluate_cohort(OfSome(scorer, some), split) if len(some) else {}
        whole = self.host.whole_groups(self.node) if edges else None
        edges = edges if whole is None or self._tells_groups(scorer, edges, whole) else ()
        if some is None and sample_size(self.host.config, split.users):
            some = np.arange(len(self.users))  # this node's part of it: see `NodeHost.sampled`
        return evaluate_cohort(scorer, split, edges, whole, some if config.get("everybody") else None)

    def _tells_groups(self, scorer: Scorer, edges: Sequence[float], whole: np.ndarray) -> bool:
        """Whether metrics of groups go up: none is nearly the sample of this run or another, and then is remembered."""
        place, has_data = groups_of(scorer.counts(), edges, whole), self.host.interactions(self.node) > 0
        groups = (np.flatnonzero((place == group) & has_data) for group in range(len(edges) + 1))
        return all(self.host.admits(self.node, METRICS, members) for members in groups if len(members))

    @property
    def with_data(self) -> np.ndarray:
        """Positions of the users who have any training interactions."""
        return np.flatnonzero(self.host.interactions(self.node) > 0)

    def of_all(self, measure: Callable[[], Mapping[str, float]]) -> dict[str, Scalar]:
        """Metric sums over all users here; where the node's policy says that they are too few, only their number."""
        policy = self.host.policy
        if policy.smallest_sum == 1 or policy.sends(self.with_data):
            return {**measure()}
        return {METRICS_WITHHELD: float(len(self.users))}

    def keep(self, round_: int, cohort: Cohort, config: Mapping[str, Scalar]) -> None:
        """Store the cohort's state after a round, as the message says: for how long, and beside which others."""
        rounds = [int(text) for text in str(config.get("keep-from", 0)).split(",")[-MOST_KEPT:]]
        self.host.keep(self.node, round_, cohort, durable=bool(config.get("persist")), keep_from=rounds)

    def positions(self, users: np.ndarray) -> torch.Tensor:
        """(k',) where users stand in this cohort.

        Raises:
            ValueError: a user that this node does not host, or one that is named twice.
        """
        return as_tensor(self.host.side(self.node, 0).positions(users), self.host.device())
