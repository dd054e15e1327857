"""FedFast: Muhammad et al., "FedFast: Going Beyond Average for Faster Training of Federated Recommender Systems", 2020.

Nothing is private: the user vector p goes up, too. ActvSAMP: the server clusters all users' vectors by k-means, and as
many users of each cluster, its delegates, train. Up: each delegate's p; a cohort's sums of trained item rows, weighted
by how far (l1) they have moved, and of the output layer. ActvAGG: an item row becomes the mean with these weights, the
output layer the mean by samples; delegates keep their p, and the others of a cluster, the subordinates, move by
exp(−fading · t) times the mean change of its delegates. Down: table, output layer, and to each user its own p.

No program of the authors is known, and settings that the paper does not give away here are named options. Every client
starts from the same p, so the first round is one cluster.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedem_flwr.aggregation.clusters import clusters_of, evenly
from fedem_flwr.config import Config
from fedem_flwr.config.section import Search, Section
from fedem_flwr.contract import Gathered, Method, Part, Phase, State, weights_of
from fedem_flwr.contract.training import LocalTraining
from fedem_flwr.errors import InputError
from fedem_flwr.models.mf import scores
from fedem_flwr.models.mlp import Mlp


class FedFastOptions(Section):
    """Of `FedFast`."""

    clusters: int = Field(20, ge=1, description="of users, by k-means on their vectors")
    fading: Annotated[float, Search(0, 3)] = Field(
        1.0, ge=0, description="subordinates move by exp(−fading · t) times their delegates' change"
    )


class FedFast(Method):
    """Score z = w · (p ⊙ q) + b."""

    Options = FedFastOptions
    STRATEGY = "fedem_flwr.strategies.tables:TablesStrategy"
    EXPOSES = (
        "FedFast shows the server the vector of every user that trains: what that user likes, and whom it is like. "
        "Nothing of it is a sum; networked nodes refuse it unless they were started with --allow-individual-uploads"
    )

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        if config.aggregate.fraction < 1:
            raise InputError("fedfast takes in every delegate's upload: set run.participants, not aggregate.fraction")

    def parts(self) -> Mapping[str, Part]:
        """Nothing is private."""
        dim, std, output = self.config.model.dim, self.config.model.init_std, Mlp((self.config.model.dim, 1))
        return {
            "user": Part("user", dim, up="each", kept=True, std=std),
            "items": Part("item", dim, up="sum", mean="distance", std=std),
            "output": weights_of(output, "output", up="sum"),
        }

    def score(self, parts: Mapping[str, Tensor]) -> Tensor:
        """See the class."""
        output = parts["output"]
        return scores(parts["user"] * output[:, :-1], parts["items"]) + output[:, -1:]

    def phases(self) -> Sequence[Phase]:
        """One."""
        return [Phase("train", self.config.run.rounds, ActiveAggregation(self))]

    def participants(self, state: State, samples: np.ndarray, round_: int) -> np.ndarray:
        """ActvSAMP: the delegates."""
        users = np.flatnonzero(samples)
        labels = self.clusters(self.vectors(state, len(samples)), round_)[users]
        count = max(1, math.floor(self.config.run.participants * len(users) + 1e-9))
        return np.sort(users[evenly(labels, count, self.seed, round_)])

    def vectors(self, state: State, users: int) -> Tensor:
        """(n, d) of all users, as the server has them."""
        if len(state["user"]):
            return state["user"]
        start = self.parts()["user"].initial("user", self.items, self.seed)
        return start.expand(users, -1)

    def clusters(self, vectors: Tensor, round_: int) -> np.ndarray:
        """(n,) the cluster of each user."""
        return clusters_of(vectors.numpy(), self.options.clusters, self.seed, round_)


class ActiveAggregation(LocalTraining):
    """ActvAGG."""

    method: FedFast

    def fold(self, state: State, gathered: Gathered) -> State:
        """Means, and every user's vector."""
        order = np.argsort(gathered.uploaders)
        who, sent = gathered.uploaders[order], gathered.each["user"][torch.from_numpy(order)]
        old = self.method.vectors(state, len(gathered.samples))
        labels = torch.from_numpy(self.method.clusters(old, gathered.round))
        change, count = torch.zeros(int(labels.max()) + 1, old.shape[1]), torch.zeros(int(labels.max()) + 1)
        change.index_add_(0, labels[who], sent - old[who])
        count.index_add_(0, labels[who], torch.ones(len(who)))
        moved = change / count.clamp(min=1).unsqueeze(1)
        new = old + math.exp(-self.method.options.fading * gathered.round) * moved[labels]
        new[who] = sent
        return {**super().fold(state, gathered), "user": new, "receivers": torch.arange(len(new))}
