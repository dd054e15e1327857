"""GPFedRec (Zhang et al., KDD 2024): a graph of users that the server makes from their tables guides each of them.

Private: p and a scoring network (`network`). Up: each user's trained item table. Server: neighbours are users whose
tables are more alike than the mean pair; r_u is the mean of u's neighbours' tables. Down: the mean of all r, from which
everybody starts, and to each user its own r_u, to which its table is pulled. Score: a network over [p; q]. Loss:
cross-entropy + λ ‖Q_u − r_u‖² / (m d) over the whole table, of which rows that no batch touches are moved in closed
form. Users are scored with their own trained tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedem_flwr.aggregation.combine import combine_tables
from fedem_flwr.aggregation.similarity import cosines
from fedem_flwr.config import Config
from fedem_flwr.config.section import Search, Section, Widths
from fedem_flwr.contract import Asked, Device, Gathered, Layers, Method, Part, Phase, Pull, State, Update, weights_of
from fedem_flwr.contract.training import LocalTraining
from fedem_flwr.engine.device import resolve_device
from fedem_flwr.engine.downloads import Download, Downloads
from fedem_flwr.models.mf import initial_table
from fedem_flwr.models.mlp import Mlp
from fedem_flwr.models.neumf import beside


class GPFedRecOptions(Section):
    """Of `GPFedRec`."""

    similarity: Literal["cosine", "cosine-distance"] = Field(
        "cosine", description="of two users' tables; the released program takes 1 − cosine for it"
    )
    threshold: float = Field(1.0, ge=0, description="t: neighbours are more alike than t times the mean pair")
    neighbours: int = Field(0, ge=0, description="take so many, whoever is above the threshold; 0: by the threshold")
    layers: int = Field(1, ge=1, description="ℓ, how often tables are averaged along the graph")
    pull: Annotated[float, Search(0, 3)] = Field(1.0, ge=0, description="λ, pull of a table to r_u")
    lr: Annotated[float, Search(1e-3, 1, log=True)] = Field(0.1, gt=0, description="η, of the network")
    factor: Annotated[float, Search(2, 500, log=True)] = Field(
        80.0, gt=1, description="η of p over the network's, + 1, where all users train; of a row, for each item"
    )
    hidden: Widths = Field((32, 16, 8), min_length=1, description="hidden widths")


class GPFedRec(Method):
    """Each user's table, and the mean of its neighbours'."""

    Options = GPFedRecOptions
    STRATEGY, EVALUATED, TUNES = "fedem_flwr.strategies.tables:TablesStrategy", "local", ("local.epochs",)
    EXPOSES = (
        "GPFedRec shows the server each user's trained item table: it tells which items that user has met, "
        "and the graph of users is made from it"
    )

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        self.network = Mlp((2 * config.model.dim, *self.options.hidden, 1))

    def parts(self) -> Mapping[str, Part]:
        """r_u is a part of its own, that training only looks at."""
        dim, std = self.config.model.dim, self.config.model.init_std
        items = Part("item", dim, up="each", kept=True, std=std)
        return {
            "user": Part("user", dim, private=True, std=std),
            "network": weights_of(self.network, "network", private=True),
            "items": items,
            "anchor": Part("item", dim, start=lambda seed: initial_table(self.items, dim, std, seed)),
        }

    @property
    def floats_of_a_score(self) -> int:
        """The network's layers."""
        return sum(self.options.hidden)

    def score(self, parts: Mapping[str, Tensor]) -> Tensor:
        """See the module."""
        return beside(self.network, parts["network"], parts["user"], parts["items"]).squeeze(-1)

    def updates(self, round_: int) -> Sequence[Update]:
        """One backward pass, three rates."""
        o, dim, share = self.options, self.config.model.dim, self.config.run.participants
        rates = {"network": o.lr, "user": o.lr * (o.factor / share - 1), "items": o.lr * (o.factor * self.items - 1)}
        pull = Pull(2 * o.pull / (self.items * dim), "anchor")
        return [Update(rates, "sgd", {"items": pull})]

    def products(self, round_: int) -> Layers | None:
        """Itself, where no subclass trains otherwise."""
        own = Layers("network", ("items",), "user", self.options.hidden)
        return own if self.trains_as(GPFedRec) else None

    def start(self) -> State:
        """The mean of all r, before there are any: what everybody starts from."""
        return {"common": self.parts()["anchor"].initial("anchor", self.items, self.seed)}

    def sends(self) -> Sequence[str]:
        """Each user's r, and their mean."""
        return ["items", "common"]

    def scored_with(self, done: int) -> Sequence[str]:
        """Nothing: users keep what they score with."""
        return []

    def downloads(self, device: Device, asked: Asked) -> Downloads:
        """Everybody starts from the mean; who has no r yet is pulled to the mean, too."""
        common, own = asked.download("common", device, 2), asked.download("items", device, 2)
        if common is None:
            return {}
        if own is not None and not bool(own.received.all()):
            slot = torch.where(own.received, own.slot, len(own.values))
            own = Download(torch.cat([own.values, common.values]), slot)
        return {"items": common, "anchor": own or common}

    def phases(self) -> Sequence[Phase]:
        """One."""
        return [Phase("train", self.config.run.rounds, Neighbours(self))]

    def graph(self, tables: Tensor) -> Tensor:
        """(a, a) weights of tables (a, m, d) in each r, float64: rows sum to 1; who has no neighbour is its own.

        They are on the run's device; tables come there block by block.
        """
        o, place = self.options, resolve_device(self.config.run.device)
        alike = cosines(tables, self.config.aggregate.block_items, place=place)
        alike = 1 - alike if o.similarity == "cosine-distance" else alike
        near = alike > o.threshold * alike.mean()
        if o.neighbours:
            near = torch.zeros_like(near).scatter_(1, alike.topk(min(o.neighbours, len(alike))).indices, True)
        near |= torch.eye(len(near), dtype=torch.bool, device=place) & ~near.any(1, keepdim=True)
        weights: Tensor = near / near.sum(1, keepdim=True, dtype=torch.float64)
        found: Tensor = torch.linalg.matrix_power(weights, o.layers)
        return found


class Neighbours(LocalTraining):
    """Local training, r_u of every uploader, and their mean; in blocks of items."""

    method: GPFedRec

    def fold(self, state: State, gathered: Gathered) -> State:
        """See above."""
        tables, block = gathered.each["items"], self.method.config.aggregate.block_items
        if not len(tables):
            return state
        weights = self.method.graph(tables)
        common = combine_tables(weights.mean(0, keepdim=True), tables, block)[0]
        return {**state, "items": combine_tables(weights, tables, block), "common": common}
