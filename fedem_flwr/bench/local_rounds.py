"""A local round of a cohort, ready to be trained over and over by either back end.

One round is trained first, so that all users have tables of their own; then everyone that a method aggregates has
received a table, and the same round is trained again and again: all users, merging included, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.config import Config
from fedem_flwr.contract import Method
from fedem_flwr.contract.finding import method_of
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.contribution import TrainResult
from fedem_flwr.engine.downloads import Download, Downloads
from fedem_flwr.errors import FedemError
from fedem_flwr.nodes.slices import slice_histories
from fedem_flwr.protocol.split import Split
from fedem_flwr.randomness import keyed_normal
from fedem_flwr.runtime.inputs import load_interactions, split_of

Engine = Literal["fused", "torch"]


@dataclass(frozen=True)
class Work:
    """One round, ready to be trained over and over."""

    split: Split
    method: Method
    state: dict[str, Tensor]
    downloads: Downloads

    def cohort(self, engine: Engine) -> Cohort:
        """All users before the round, to be trained by a back end."""
        self.method.engine = engine
        data = slice_histories(self.split, np.arange(self.split.users), torch.device("cpu"))
        return Cohort(data, {name: x.clone() for name, x in self.state.items()}, self.method)

    def train(self, cohort: Cohort) -> TrainResult:
        """The round.

        Raises:
            FedemError: compiled functions were asked for, and did not train all of it.
        """
        result = cohort.train(cohort.everyone, self.downloads, 2, sums=not self.each)
        if self.method.engine == "fused" and result.uncompiled:
            raise FedemError(f"compiled functions do not train {self.method.config.method.name}: {result.uncompiled}")
        return result

    @property
    def each(self) -> bool:
        """Whether users send their own tables."""
        return any(part.up == "each" for part in self.method.parts().values())


def work(config: Config, engine: Engine = "fused") -> Work:
    """A method's second round on a data set.

    Args:
        engine: trains the first.
    """
    split = split_of(config, load_interactions(config))
    method = method_of(config, split.items)
    n = split.users
    cohort = method.cohort(
        slice_histories(split, np.arange(n), torch.device("cpu")), method.initial_state(n, torch.device("cpu"))
    )
    method.engine = engine
    result = cohort.train(cohort.everyone, {}, 1, sums=True)
    parts = method.parts()
    received = {name: Download.for_all(mean_of(result, name), n) for name in result.sums}
    for name in (name for name, part in parts.items() if part.up == "each"):
        received[name] = own_tables(cohort.state[name], round(1 / config.aggregate.fraction))
    if "anchor" in parts:  # what tables are pulled to; everybody starts from their mean
        received["anchor"] = received["items"]
        received["items"] = Download.for_all(cohort.state["items"].mean(0), n)
    return Work(split, method, cohort.state, received)


def mean_of(result: TrainResult, name: str) -> Tensor:
    """What a server makes of a sum."""
    total, weight = result.sums[name].total, result.sums[name].weight.clamp(min=1)
    return (total / (weight.unsqueeze(1) if weight.ndim else weight)).float()


def own_tables(kept: Tensor, every: int) -> Download:
    """A table for one user in so many, of users' own (n, m, d): half-way to the mean, and noise."""
    n, items, dim = kept.shape
    chosen = torch.arange(0, n, max(1, every))
    slot = torch.full((n,), -1)
    slot[chosen] = torch.arange(len(chosen))
    noise = keyed_normal(0, "benchmark", torch.arange(items)[:, None], torch.arange(dim)) * 0.1
    return Download(torch.lerp(kept[chosen], kept.mean(0, keepdim=True), 0.5) + noise, slot)
