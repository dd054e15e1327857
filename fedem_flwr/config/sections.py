"""The sections of a configuration: one class each, with defaults, bounds and a word on every field.

Symbols in the descriptions are those of the FedEM paper (AAAI 2026).
"""

from __future__ import annotations

from itertools import product
from typing import Annotated, Literal

from pydantic import Field, SerializeAsAny

from fedem_flwr.config.section import NoOptions, Section

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class MethodConfig(Section):
    """What a run carries out."""

    name: str = Field("fedmf", pattern=_NAME, description="name of the preset; shown in results, and a folder's name")
    base: str = Field("", description="preset whose settings this method starts from; default: the one of its name")
    title: str = Field("", description="one line for reports")
    strategy: str = Field(
        "fedmf",
        description="a method, by name or as `package.module:Class`; or a Flower strategy (`flwr.NAME`: stock)",
    )
    client: str = Field("", description="a client kind, for a Flower strategy of your own; empty: the method's")
    options: SerializeAsAny[Section] = Field(
        NoOptions(), description="the method's own settings; of a Flower strategy, its keyword arguments"
    )


class ModelConfig(Section):
    """Matrix factorisation."""

    dim: int = Field(16, ge=1, le=1024, description="d, embedding width (paper: 16)")
    init_std: float = Field(1.0, gt=0, description="standard deviation of initial embeddings (released program: 1)")


class LocalConfig(Section):
    """Local training, Eq. 12. Defaults are the paper's."""

    epochs: int = Field(10, ge=1, description="E")
    batch_size: int = Field(256, ge=1, description="B")
    negatives: int = Field(4, ge=0, le=100, description="drawn for each positive, fresh every round")
    lr_user: float = Field(0.1, gt=0, description="η for p_u (Adam)")
    lr_item: float = Field(0.1, gt=0, description="η for Q_u (Adam)")
    early_stop: float = Field(
        0.0, ge=0, description="relative change of the running loss at which a client stops; 0 never"
    )


class MergeConfig(Section):
    """Elastic merging, Eq. 9–11, and the variants of Table 2."""

    mode: Literal["none", "replace", "static", "scalar", "elastic"] = Field(
        "replace", description="how G and Q become one"
    )
    schedule: Literal["paper", "released"] = Field("paper", description="merge once a round, or again in every batch")
    rho: float = Field(0.5, ge=0, le=1, description="ρ of `static`")
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (16, 8), min_length=1, description="hidden widths of the adapter"
    )
    bias: float = Field(0.0, description="added to the adapter's output at the start; > 0 favours the global table")
    lr: float = Field(0.1, gt=0, description="β for Θ_u (Adam)")
    epochs: int = Field(1, ge=1, description="epochs of Eq. 11 under the `paper` schedule")


class AggregateConfig(Section):
    """What the server makes of the uploads, Eq. 13 and its alternatives."""

    weights: Literal["average", "rows", "eq13", "released", "cvxpy"] = Field(
        "average",
        description="average: w = p_v; rows: each row over the clients that trained it; others: one w a client",
    )
    similarity: Literal["frobenius", "pca", "cosine"] = Field("frobenius", description="σ between two clients' tables")
    alpha: float = Field(0.9, ge=0, description="α, weight of similarity")
    fraction: float = Field(1.0, gt=0, le=1, description="share of participants whose tables are aggregated")
    saturate: float | None = Field(None, gt=0, description="similarities above this become 1 (released program: 0.9)")
    pca_sign: Literal["raw", "fixed"] = Field("raw", description="sign of the first principal component")
    block_items: int = Field(512, ge=1, description="items combined at a time; bounds the server's memory")
    max_norm: float = Field(
        1e6,
        gt=0,
        description="larger uploads are refused: norm of a table or of mean rows; fedials: largest entry a user",
    )


class IalsConfig(Section):
    """Implicit least squares (`fedials`): the objective, and the server's Newton-like step."""

    weight: float = Field(0.3, gt=0, description="a, weight of all pairs of user and item")
    ridge: float = Field(0.005, gt=0, description="λ, ridge, scaled by frequency")
    kappa: float = Field(3.0, ge=0, description="κ, how much a row's curvature grows with its share of users")
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
        400, ge=1, description="the run's last rounds, for the map and the encoder; the others train the table"
    )
    participants: float = Field(0.02, gt=0, le=1, description="share of users in such a round")
    fine_tune: bool = Field(True, description="also train a copy of the item rows; false: frozen, only weights go up")
    layers: int = Field(2, ge=1, le=8, description="of the transformer")
    heads: int = Field(2, ge=1, description="of attention; divides d")
    window: int = Field(50, ge=2, le=1000, description="newest items that are looked at")
    dropout: float = Field(0.2, ge=0, lt=1, description="share of activations dropped in training")
    negatives: int = Field(256, ge=0, description="of the sampled softmax, a user and round; 0: the whole catalogue")
    lr: float = Field(0.001, gt=0, description="of the server's Adam; warmed up, then a cosine down to a twentieth")
    weight: float = Field(1.0, ge=0, description="of the order scores beside the fold-in's, both standardised")
    tune: bool = Field(True, description="choose the weights on validation sums; off where one is given")
    weights: list[Annotated[float, Field(ge=0)]] = Field(
        [0.0, 1.0, 2.0, 3.0, 5.0], min_length=1, description="grid of the weight"
    )
    map: int = Field(
        0, ge=0, description="entries kept in a row of a directional item map beside the encoder; 0: no map"
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


class ElasticConfig(Section):
    """A table for each group of similar users, merged with the global one (`fedials-elastic`, `fedmf-elastic`).

    A merged row is T_i + ρ (Q_i − T_i): T the group's table, Q the global one, ρ fitted on held-out training items.
    """

    merge: Literal["none", "all", "client", "item"] = Field(
        "all", description="one ρ for all, a client, or an item (a shared adapter); none: the method without groups"
    )
    groups: int = Field(6, ge=1, le=64, description="G, tables of similar users; a client chooses by its embedding")
    clustering: int = Field(8, ge=1, description="rounds that find the groups' centres (k-means)")
    rounds: int = Field(5, ge=1, description="rounds of the groups' tables without the held-out items, and with them")
    ridge: float = Field(0.005, ge=0, description="pull of T to Q; fedials: like λ; fedmf: like so many clients")
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
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (16, 8), min_length=1, description="of `item`: hidden widths of the adapter"
    )


class RunConfig(Section):
    """How the run is carried out.

    Nothing here changes what is computed, apart from seed, rounds and participants; and users_per_node, where networked
    nodes withhold the sums of too few users or a method is one of nodes.
    """

    rounds: int = Field(30, ge=1, description="T")
    seed: int = Field(0, ge=0, description="of every draw")
    participants: float = Field(1.0, gt=0, le=1, description="share of users that train in a round")
    runtime: Literal["inprocess", "ray", "network"] = Field("inprocess", description="where clients run")
    users_per_node: int = Field(
        0, ge=0, description="users that one Flower node hosts; 0: all on one node (ray, network: two nodes)"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where tensors live")
    engine: Literal["auto", "torch", "reference"] = Field(
        "auto", description="back end of local training; auto: torch, batched. reference: one client at a time, slow"
    )
    threads: int = Field(0, ge=0, description="torch threads; 0: torch's own choice")
    round_timeout: float = Field(
        3600.0, gt=0, description="seconds after which a round goes on without missing replies"
    )
    quorum: float = Field(
        0.0, ge=0, le=1, description="share of a round's participants that must contribute; 0: one node is enough"
    )
    patience: float = Field(
        600.0, ge=0, description="seconds that a networked round below its quorum is repeated before the run stops"
    )
    checkpoint_every: int = Field(5, ge=1, description="rounds between checkpoints; the last round always has one")


class NetworkConfig(Section):
    """Networked processes (`run.runtime = "network"`): where they are, and how long they are waited for."""

    superlink: str = Field("", description="host:port of a SuperLink that runs; empty: start one, and the nodes, here")
    certs: str | None = Field(None, description="folder made by `fedem deploy certs`; what starts here makes its own")
    insecure: bool = Field(False, description="plain HTTP and any node: for trying things out")
    join_timeout: float = Field(60.0, gt=0, description="seconds that the first round waits for nodes to come")
    reconnect: float = Field(60.0, ge=0, description="seconds that the server waits for a SuperLink that is away")
    max_message_mb: int = Field(
        0, ge=0, description="larger messages are refused; 0: what the largest shard's tables could take, twice"
    )
    database: bool = Field(
        False, description="the SuperLink started here keeps messages in a file: killed, it goes on, but each is slower"
    )


class PrivacyConfig(Section):
    """What uploads tell of single users.

    What a node sends is its own policy, given when it is started: neither the server of a run nor nodes that run
    already change with `individual_uploads`. A simulation's nodes send everything.
    """

    individual_uploads: bool = Field(
        False,
        description="`fedem run --runtime network` starts its nodes with `--allow-individual-uploads`, as `deploy up` "
        "does with that option: uploads of a single user go up, which show its embedding up to sign, or its table",
    )
    secret_draws: bool = Field(
        False,
        description="key what clients draw by a secret of their node instead of `run.seed`, and add decoys; results "
        "are then the node's own: other runs, runtimes and spreads over nodes differ",
    )
    decoys: float = Field(
        4.0,
        ge=0,
        le=100,
        description="with `secret_draws`: negatives for each positive that are the same in every round, beside the "
        "fresh ones",
    )


class EvaluationConfig(Section):
    """What stands beside the result."""

    every: int = Field(1, ge=1, description="rounds between evaluations; the last round is always evaluated")
    controls: bool = Field(True, description="compute random, popularity, item-kNN and EASE, with and without recency")
    local_only: bool = Field(True, description="train the same method without federation, as a control")
    ease_lambda: float | None = Field(None, gt=0, description="λ, ridge of EASE; default: chosen on validation")
    test_history: Literal["training", "all"] = Field(
        "training",
        description="whether the validation item counts as history when the test item is scored; for methods that "
        "fold in and for the controls that do",
    )
    cache_dir: str | None = Field(None, description="where controls are kept; default: the user's cache folder")
