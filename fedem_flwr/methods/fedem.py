"""FedEM (elastic merging): Chen et al., "Breaking the Aggregation Bottleneck in Federated Recommendation", AAAI 2026.

Private: p_u, the adapter Θ_u, ρ. Up: the trained item table Q_u of each uploader. Server: weights by Eq. 13 from the
similarity of the tables and the shares p_v of the data, and G_u = Σ_v w_uv Q_v for every uploader u. Down: each
uploader its own G_u; the others get nothing and train their own table on. Loss: binary cross-entropy.

Options that deviate from the paper, as the released program does: `aggregate.fraction` (a tenth uploads),
`aggregate.weights = "released"` (the objective's quadratic term is not scaled by 1 + α), `aggregate.similarity =
"pca"`, `aggregate.saturate`, `merge.schedule = "released"`; and beside both, `merge.gate_data = "heldout"`. With
`merge.mode = "none"` nothing is sent down: every client trains alone. `first_merge`: see `FedEMOptions`.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedem_flwr.aggregation import aggregation_weights, average_weights, combine_tables, similarity
from fedem_flwr.config import Config
from fedem_flwr.config.section import Section
from fedem_flwr.contract import Asked, Device, Gathered, Phase, State
from fedem_flwr.contract.factorisation import Factorisation
from fedem_flwr.contract.merging import Merged
from fedem_flwr.contract.training import LocalTraining
from fedem_flwr.engine.downloads import Download, Downloads
from fedem_flwr.engine.parts import Up
from fedem_flwr.errors import InputError

_SAMPLE = 60  # clients of the weight matrix that the report draws


class FedEMOptions(Section):
    """Of `FedEM`."""

    first_merge: bool = Field(
        False,
        description="merge in round 1, too, where there is no G yet: with a second random table, the same for all "
        "(the paper calls Q^g and Q^l random at t = 1)",
    )


class FedEM(Merged, Factorisation):
    """Similarity-weighted aggregation of one table a client."""

    Options = FedEMOptions
    STRATEGY = "fedem_flwr.strategies.tables:TablesStrategy"
    UP: ClassVar[Up] = "each"
    MERGES_ALONE = True
    TUNES = ("local.epochs", "local.lr_user", "local.lr_item", "merge.lr", "aggregate.alpha")

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        one_for_all = config.merge.mode == "replace" and config.aggregate.weights == "average"
        if config.aggregate.weights == "rows" or one_for_all:
            raise InputError(
                f"aggregate.weights = '{config.aggregate.weights}' with merge.mode = '{config.merge.mode}' makes one "
                "table for all: use the method fedmf, or weights such as eq13"
            )

    @property
    def federated(self) -> bool:
        """Whether anything is aggregated at all."""
        return self.config.merge.mode != "none"

    def phases(self) -> list[Phase]:
        """One."""
        return [Phase("train", self.config.run.rounds, SimilarTables(self))]

    def downloads(self, device: Device, asked: Asked) -> Downloads:
        """Also the random table of round 1, where that is asked for; what only evaluates has no phase."""
        found = super().downloads(device, asked)
        if not (self.options.first_merge and self.federated and asked.round == 1 and asked.phase):
            return found
        second = self.parts()["items"].initial("first-merge", self.items, self.seed).to(asked.place)
        return {**found, "items": Download.for_all(second, len(device.users))}

    def weights(self, tables: Tensor, samples: np.ndarray) -> Tensor:
        """(K, K) Eq. 13: weights of the uploaders over their tables (K, m, d), given their interactions (K,)."""
        settings = self.config.aggregate
        shares = torch.from_numpy(samples).double()
        if settings.weights == "average":
            return average_weights(shares / shares.sum(), len(tables))
        if settings.weights == "rows":
            raise AssertionError("refused when the method was made")
        alike = similarity(tables, settings.similarity, pca_sign=settings.pca_sign, saturate=settings.saturate)
        return aggregation_weights(settings.weights, shares, alike, settings.alpha)

    def caveats(self) -> list[str]:
        """What the server learns of single users."""
        if not self.federated:
            return []
        return [
            "The server sees a table of each user: a single upload shows which items that user has met, and the rows "
            "that a few of its uploads have in common do so, too. privacy.secret_draws does not hide it. Sums over "
            "many users do (fedmf, fedials); secure aggregation is to come"
        ]

    def diagnostics(self, state: State) -> dict[str, object]:
        """The last round's weights: each client's own, how many are not zero, and a sample of the matrix."""
        if "weights-own" not in state:
            return {}
        return {"weights": {name: state[f"weights-{name}"].tolist() for name in ("own", "nonzero", "sample")}}


class SimilarTables(LocalTraining):
    """Local training, and G_u for every uploader."""

    convex = True
    method: FedEM

    def fold(self, state: State, gathered: Gathered) -> State:
        """Eq. 13."""
        tables = gathered.each["items"]
        if not len(tables):
            return state
        weights = self.method.weights(tables, gathered.samples[gathered.uploaders])
        combined = combine_tables(weights, tables, self.method.config.aggregate.block_items)
        shown = {"own": weights.diagonal(), "nonzero": (weights > 0).sum(1), "sample": weights[:_SAMPLE, :_SAMPLE]}
        return {**state, "items": combined, **{f"weights-{name}": x.clone() for name, x in shown.items()}}
