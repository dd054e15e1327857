"""What every client here shares: the users it hosts, its introduction, evaluation, and where users stand in it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from flwr.client import NumPyClient

from fedem_flwr.engine.history import IntArray
from fedem_flwr.evaluation.cohort import Scorer, evaluate_cohort
from fedem_flwr.nodes.host import NodeHost, as_tensor

Scalar = bool | bytes | float | int | str
Arrays = list[np.ndarray]


class HostClient(NumPyClient):
    """Hosts the users of one node.

    Args:
        host: where the node's data and state are.
        node: the node's number.

    Attributes:
        DOWNLOAD: names and order of the arrays that `fit` and `evaluate` take.
        UPLOADS: names of the arrays that `fit` returns, for each kind of upload that a strategy may ask for.
        LOCAL_ONLY: whether the method can be trained without federation, as a control.
    """

    DOWNLOAD: ClassVar[tuple[str, ...]]
    UPLOADS: ClassVar[dict[str, tuple[str, ...]]]
    LOCAL_ONLY: ClassVar[bool] = True

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
            `users` (k,) and `samples` (k,), the counts behind the weights p_v of Eq. 13.
        """
        split = self.host.split
        offsets, rows = split.train_offsets, split.rows(self.users)
        counts = np.asarray(offsets[rows + 1]) - np.asarray(offsets[rows])
        return {"users": self.users, "samples": counts}

    def evaluate(self, parameters: Arrays, config: dict[str, Scalar]) -> tuple[float, int, dict[str, Scalar]]:
        """Evaluate all users with what was received; only sums are returned."""
        scorer = self.model(int(config["server-round"]), parameters, config)
        edges = [float(x) for x in str(config.get("group-edges", "")).split(",") if x]
        return 0.0, len(self.users), dict(evaluate_cohort(scorer, self.host.split, edges))

    def asked(self, participants: np.ndarray, least: int = 1) -> IntArray:
        """(k',) positions of those whose sum goes up: nobody where the node's policy says so.

        Args:
            least: training items without which a user adds nothing to the sum, and so hides nobody in it.
        """
        return self.enough(np.asarray(self.positions(participants).cpu()), least)

    def enough(self, who: IntArray, least: int = 1) -> IntArray:
        """The same of positions."""
        policy = self.host.policy
        if policy.smallest_sum > 1:
            who = who[self.host.history(self.node).counts()[who] >= least]
        return who if policy.sends(who) else who[:0]

    def withheld(self, participants: np.ndarray, least: int = 1) -> dict[str, Scalar]:
        """The metric that says how many participants' sum did not go up (see `asked`); empty if it did."""
        if not len(participants) or len(self.asked(participants, least)):
            return {}
        return {"withheld": float(len(participants))}

    def positions(self, users: np.ndarray) -> torch.Tensor:
        """(k',) where users stand in this cohort.

        Raises:
            ValueError: a user that this node does not host, or one that is named twice.
        """
        first = self.users[0] if len(self.users) else 0
        position = users - first
        if len(users) and (position.min() < 0 or position.max() >= len(self.users)):
            raise ValueError(f"node {self.node} was asked for a user that it does not host")
        if len(users) > 1 and np.bincount(position).max() > 1:
            raise ValueError(f"node {self.node} was asked for a user more than once")
        return as_tensor(position.astype(np.int64), self.host.device())
