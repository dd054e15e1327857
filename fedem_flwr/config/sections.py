"""The sections of a configuration: one class each, with defaults, bounds and a word on every field.

Symbols in the descriptions are those of the FedEM paper (AAAI 2026).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SerializeAsAny

from fedem_flwr.config.section import NoOptions, Search, Section, Widths

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

    epochs: Annotated[int, Search(1, 20, log=True)] = Field(10, ge=1, description="E")
    batch_size: int = Field(256, ge=0, description="B; 0: all samples of a client in one batch")
    negatives: int = Field(4, ge=0, le=100, description="drawn for each positive, fresh every round")
    lr_user: Annotated[float, Search(1e-3, 1, log=True)] = Field(0.1, gt=0, description="η for p_u")
    lr_item: Annotated[float, Search(1e-3, 1, log=True)] = Field(0.1, gt=0, description="η for Q_u")
    optimiser: Literal["adam", "sgd", "frequency-sgd"] = Field(
        "adam",
        description="of methods that bring none; `frequency-sgd`: a row's gradient is the mean over its occurrences in "
        "the batch",
    )
    ridge: Annotated[float, Search(0, 0.1)] = Field(
        0.0, ge=0, description="γ of FedMF and FedEM: loss + γ mean(‖p‖² + ‖q‖²) over a batch"
    )
    early_stop: float = Field(
        0.0, ge=0, description="relative change of the running loss at which a client stops; 0 never"
    )


class GradientsConfig(Section):
    """Where the gradients of local training are taken, for any method that the engine trains."""

    sharpness: float = Field(
        0.0,
        ge=0,
        description="ρ of sharpness-aware gradients (FedRecGEL), taken at θ + ρ g / ‖g‖, of shared and of private "
        "parts in turn; 0: plain ones",
    )
    sharpness_private: float | None = Field(None, ge=0, description="ρ of the private parts; default: the same")
    clip: float | None = Field(
        None,
        gt=0,
        description="Z (Table 4): a user's gradient of what goes up, in each batch, is scaled down to this norm (l2); "
        "default: not",
    )

    def rho(self, *, private: bool) -> float:
        """ρ of shared or of private parts."""
        return self.sharpness if self.sharpness_private is None or not private else self.sharpness_private

    @property
    def sharp(self) -> str:
        """Which ρ is not 0, to be shown; empty: gradients are plain."""
        name = "sharpness" if self.sharpness else "sharpness_private"
        value = self.sharpness or self.sharpness_private
        return f"gradients.{name} = {value:g}" if value else ""


class MergeConfig(Section):
    """Elastic merging, Eq. 9–11, and the variants of Table 2, of any method whose clients send an item table up.

    With another mode than `replace` clients keep a table of their own, which they merge with the one they receive.
    """

    mode: Literal["none", "replace", "static", "scalar", "elastic"] = Field(
        "replace", description="how G and Q become one"
    )
    schedule: Literal["paper", "released"] = Field("paper", description="merge once a round, or again in every batch")
    rho: Annotated[float, Search(0, 1)] = Field(0.5, ge=0, le=1, description="ρ of `static`")
    hidden: Widths = Field(
        (16, 8), description="hidden widths of the adapter; L is one more; none: ρ is a logistic function of a row"
    )
    bias: float = Field(0.0, description="added to the adapter's output at the start; > 0 favours the global table")
    lr: Annotated[float, Search(1e-3, 1, log=True)] = Field(0.1, gt=0, description="β for Θ_u (Adam)")
    epochs: int = Field(1, ge=1, description="epochs of Eq. 11 where it stands before the merge")
    gate_data: Literal["train", "heldout"] = Field(
        "train",
        description="what Θ_u is trained on: the round's samples, or items left out of p_u's and Q_u's training",
    )
    hold_out: int = Field(
        2, ge=1, le=50, description="of `heldout`: newest training items of each client (random ones without times)"
    )
    part: str = Field("", description="the table that is merged, of a method with several; default: its first")
    table: Literal["whole", "touched"] = Field(
        "whole",
        description="what a client keeps of its own table, and sends where tables go up: all of it, as the paper; "
        "or the rows that its last round trained, while every other row is the one that it received",
    )


class AggregateConfig(Section):
    """What the server makes of the uploads, Eq. 13 and its alternatives."""

    weights: Literal["average", "rows", "eq13", "released", "cvxpy"] = Field(
        "average",
        description="average: w = p_v; rows: each row over the clients that trained it; others: one w a client",
    )
    shares: Literal["samples", "users"] = Field(
        "samples",
        description="p_v in average, eq13, released and cvxpy (fedmf, fedncf, fedem, fedsim): samples: a share "
        "of the data; users: the same for every user (FCF's 1/n)",
    )
    similarity: Literal["frobenius", "pca", "cosine"] = Field("frobenius", description="σ between two clients' tables")
    alpha: Annotated[float, Search(0, 4)] = Field(0.9, ge=0, description="α, weight of similarity")
    fraction: float = Field(1.0, gt=0, le=1, description="share of participants whose tables are aggregated")
    saturate: float | None = Field(None, gt=0, description="similarities above this become 1 (released program: 0.9)")
    pca_sign: Literal["raw", "fixed"] = Field("raw", description="sign of the first principal component")
    neighbours: int = Field(
        0,
        ge=0,
        description="0: all pairs' similarity is exact; else, for eq13 with frobenius, that of so many pairs of each "
        "client, of others a smooth part, with a bound: products of tables then grow with the clients only",
    )
    block_items: int = Field(512, ge=1, description="items combined at a time; bounds the server's memory")
    max_norm: float | None = Field(
        None,
        gt=0,
        description="larger uploads are refused: norm of a table or of mean rows, largest entry a user of other sums; "
        "default: of a table whose entries are 30 on average. Methods have closer bounds of their own beside it",
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
    ray_address: str = Field(
        "",
        pattern=r"^(.+:\d+)?$",
        description="host:port of a Ray cluster that runs, of which this machine is one; empty: start Ray here",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where tensors live")
    engine: Literal["auto", "fused", "triton", "torch", "reference"] = Field(
        "auto",
        description="back end of local training. fused: compiled functions, on a CPU and for what they know; "
        "triton: kernels, on a GPU and for what they know; torch: batched, which the rest is trained by; "
        "reference: one client at a time, slow; auto: fused on a CPU, torch on a GPU",
    )
    deterministic: bool = Field(
        True, description="sums of triton's kernels have an order, for two sorts more an epoch; else the last bits vary"
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
    checkpoints_kept: int = Field(
        2,
        ge=1,
        le=20,
        description="checkpoints that stay; `fedem resume RUN --back-to 10` goes to an older one",
    )


class NetworkConfig(Section):
    """Networked processes (`run.runtime = "network"`): where they are, and how long they are waited for."""

    superlink: str = Field("", description="host:port of a SuperLink that runs; empty: start one, and the nodes, here")
    certs: str | None = Field(None, description="folder made by `fedem deploy certs`; what starts here makes its own")
    insecure: bool = Field(False, description="plain HTTP and any node: for trying things out")
    join_timeout: float = Field(60.0, gt=0, description="seconds that the first round waits for nodes to come")
    reconnect: float = Field(60.0, ge=0, description="seconds that the server waits for a SuperLink that is away")
    max_message_mb: int = Field(
        0, ge=0, description="larger messages are refused; 0: what uploads of the largest shard can take, twice"
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
    sample_users: int = Field(
        10_000,
        ge=0,
        description="users that rounds are evaluated and settings tuned on, drawn by the seed, where a run has twice "
        "as many or more (not under `paper`); what is reported is measured on everybody. 0: everybody, always",
    )
    controls: bool = Field(True, description="compute random, popularity, item-kNN and EASE, with and without recency")
    control_gb: float = Field(3.0, gt=0, description="memory that a control may take; one that takes more is left out")
    control_minutes: float = Field(
        10.0, gt=0, description="time that item-kNN and EASE may take each, by an estimate for two cores; else left out"
    )
    local_only: bool = Field(True, description="train the same method without federation, as a control")
    trained: list[Annotated[str, Field(pattern=_NAME)]] = Field(
        [],
        description="centralised controls to train on the same split, with their presets: `mf-central`, `mlp-central`, "
        "`neumf-central`, `lightgcn-central`",
    )
    ease_lambda: float | None = Field(None, gt=0, description="λ, ridge of EASE; default: chosen on validation")
    test_history: Literal["training", "all"] = Field(
        "training",
        description="whether the validation item counts as history when the test item is scored; for methods that "
        "fold in and for the controls that do",
    )
    cache_dir: str | None = Field(None, description="where controls are kept; default: the user's cache folder")
