"""Sections of `fedials` and what is built upon it: the objective, the fold-in, order, and groups of similar users.

Symbols in the descriptions are those of the docs, and of the FedEM paper (AAAI 2026) where it has them.
"""

from __future__ import annotations

from itertools import product
from typing import Annotated, Literal

from pydantic import Field

from fedem_flwr.config.section import Search, Section, Widths


class IalsConfig(Section):
    """Implicit least squares (`fedials`): the objective, and the server's Newton-like step."""

    weight: Annotated[float, Search(0.01, 3, log=True)] = Field(
        0.3, gt=0, description="a, weight of all pairs of user and item"
    )
    ridge: Annotated[float, Search(1e-4, 0.1, log=True)] = Field(
        0.005, gt=0, description="λ, ridge, scaled by frequency"
    )
    kappa: Annotated[float, Search(0, 10)] = Field(
        3.0, ge=0, description="κ, how much a row's curvature grows with its share of users"
    )
    rate: float | None = Field(
        None, gt=0, le=1, description="η; default: 1 with everybody, else max(1 / round, participants ** 0.9)"
    )


class FoldInConfig(Section):
    """How a user is solved from its history when it is served; training is not weighted."""

    half_life: float = Field(
        8.0, ge=0, description="h: an item counts 0.5 ** (newer items / h); 0: all count the same (data without times)"
    )
    ridge: float = Field(1.0, gt=0, description="factor on λ")
    tune: bool = Field(
        True, description="choose both on validation sums, halfway through the table; off where one is given"
    )
    half_lives: list[Annotated[float, Field(ge=0)]] = Field(
        [0.0, 3.0, 5.0, 8.0, 12.0, 30.0], min_length=1, description="grid of h"
    )
    ridges: list[Annotated[float, Field(gt=0)]] = Field([0.5, 1.0, 2.0], min_length=1, description="grid of the ridge")

    def grid(self) -> list[dict[str, float]]:
        """The settings that clients evaluate, in the order of their sums."""
        return [{"half_life": h, "ridge": r} for h, r in product(self.half_lives, self.ridges)]


class OrderConfig(Section):
    """What follows what: a causal encoder over the newest items, trained after the table (`fedials-order`)."""

    rounds: int = Field(
        400, ge=0, description="the run's last rounds, for the map and the encoder; the others train the table"
    )
    participants: float = Field(0.02, gt=0, le=1, description="share of users in such a round")
    fine_tune: bool = Field(True, description="also train a copy of the item rows; false: frozen, only weights go up")
    layers: int = Field(3, ge=1, le=8, description="of the transformer")
    heads: int = Field(2, ge=1, description="of attention; divides d")
    window: int = Field(200, ge=2, le=1000, description="newest items that are looked at")
    dropout: Annotated[float, Search(0, 0.5)] = Field(
        0.2, ge=0, lt=1, description="share of activations dropped in training"
    )
    negatives: int = Field(512, ge=0, description="of the sampled softmax, a user and round; 0: the whole catalogue")
    lr: Annotated[float, Search(1e-4, 0.1, log=True)] = Field(
        0.001, gt=0, description="of the server's Adam; warmed up, then a cosine down to a twentieth"
    )
    weight: float = Field(1.0, ge=0, description="of the order scores beside the fold-in's, both standardised")
    tune: bool = Field(True, description="choose the weights on validation sums; off where one is given")
    weights: list[Annotated[float, Field(ge=0)]] = Field(
        [0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0], min_length=1, description="grid of the weight"
    )
    map: int = Field(
        0, ge=0, description="entries kept in a row of a directional item map beside the encoder; 0: no map"
    )
    map_sparse: bool = Field(
        False,
        description="solve the map row by row, from the pairs that there are; not given: with more than 5,000 items "
        "that have few interactions. Above 10,000 items it is so in any case",
    )
    map_ridge: float = Field(0.4, gt=0, description="λ of the map, as a share of the mean diagonal of its sums")
    map_weight: float = Field(0.5, ge=0, description="of the map's scores, standardised like the others")
    map_weights: list[Annotated[float, Field(ge=0)]] = Field(
        [0.0, 0.25, 0.5, 1.0], min_length=1, description="grid of the map's weight"
    )

    def grid(self) -> list[dict[str, float]]:
        """The weights that clients evaluate, in the order of their sums; without a map it has no weight."""
        maps = self.map_weights if self.map else [0.0]
        return [{"order_weight": w, "map_weight": v} for w, v in product(self.weights, maps)]


class GroupTablesConfig(Section):
    """Elastic merging whose second table is that of a client's group (`fedials-elastic`, `fedmf-elastic`).

    A merged row is T_i + ρ (Q_i − T_i): T the group's table, Q the global one, ρ fitted on held-out training items.
    """

    merge: Literal["none", "all", "client", "item"] = Field(
        "all", description="one ρ for all, a client, or an item (a shared adapter); none: the method without groups"
    )
    groups: int = Field(6, ge=1, le=64, description="G, tables of similar users; a client chooses by its embedding")
    clustering: int = Field(8, ge=1, description="rounds that find the groups' centres (k-means)")
    rounds: int = Field(5, ge=1, description="rounds of the groups' tables without the held-out items, and with them")
    ridge: Annotated[float, Search(1e-4, 10, log=True)] = Field(
        0.005, ge=0, description="pull of T to Q; fedials: like λ; fedmf: like so many clients"
    )
    hold_out: int = Field(
        2, ge=1, le=50, description="newest training items of each client (random ones without times) that fit ρ"
    )
    start: float = Field(0.5, ge=0, le=1, description="ρ until it is fitted")
    rhos: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        [0.0, 0.15, 0.3, 0.45, 0.6, 0.8, 1.0], min_length=1, description="grid of ρ; 1: the global table alone"
    )
    evidence: float = Field(
        10.0, ge=0, description="of `client`: how many items of all clients count beside a client's own"
    )
    steps: int = Field(10, ge=1, description="of `item`: rounds that fit the adapter Θ, after one for a common ρ")
    lr: float = Field(0.01, gt=0, description="of `item`: of the server's Adam")
    hidden: Widths = Field((16, 8), min_length=1, description="of `item`: hidden widths of the adapter")
