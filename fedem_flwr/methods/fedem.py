"""FedEM (elastic merging): Chen et al., "Breaking the Aggregation Bottleneck in Federated Recommendation", AAAI 2026.

Private: p_u, the adapter Θ_u, ρ. Up: the trained item table Q_u of each uploader. Server: weights by Eq. 13 from the
similarity of the tables and the shares p_v of the data, and G_u = Σ_v w_uv Q_v for every uploader u. Down: each
uploader its own G_u; the others get nothing and train their own table on. Loss: binary cross-entropy.

Options that deviate from the paper, as the released program does: `aggregate.fraction` (a tenth uploads),
`aggregate.weights = "released"` (the objective's quadratic term is not scaled by 1 + α), `aggregate.similarity =
"pca"`, `aggregate.saturate`, `merge.schedule = "released"`; and beside both, `merge.gate_data = "heldout"`, and
`aggregate.neighbours`, by which weights are near those of Eq. 13. With `merge.mode = "none"` nothing is sent down:
every client trains alone.
"""

from __future__ import annotations

import logging
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.aggregation import aggregation_weights, average_weights, combine_tables, similarity
from fedem_flwr.aggregation.near import Near, combine_near
from fedem_flwr.config import Config
from fedem_flwr.contract import Gathered, Phase, State
from fedem_flwr.contract.factorisation import Factorisation
from fedem_flwr.contract.merging import Merged
from fedem_flwr.contract.training import LocalTraining
from fedem_flwr.engine.parts import Up
from fedem_flwr.errors import InputError

log = logging.getLogger("fedem.aggregation")
_SAMPLE = 60  # clients of the weight matrix that the report draws


class FedEM(Merged, Factorisation):
    """Similarity-weighted aggregation of one table a client."""

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
        aggregate = config.aggregate
        plain = (aggregate.weights, aggregate.similarity, aggregate.saturate) == ("eq13", "frobenius", None)
        if aggregate.neighbours and not plain:
            raise InputError(
                f"aggregate.neighbours = {aggregate.neighbours} is for aggregate.weights = 'eq13' with similarity = "
                "'frobenius' and no saturate: set it to 0, or these"
            )

    @property
    def federated(self) -> bool:
        """Whether anything is aggregated at all."""
        return self.config.merge.mode != "none"

    def phases(self) -> list[Phase]:
        """One."""
        return [Phase("train", self.config.run.rounds, SimilarTables(self))]

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

    def near(self, tables: Tensor, samples: np.ndarray) -> Near:
        """The same, and the tables, from so many neighbours of each uploader."""
        aggregate, shares = self.config.aggregate, torch.from_numpy(samples).double()
        how = {"neighbours": aggregate.neighbours, "block_items": aggregate.block_items}
        found = combine_near(tables, shares / shares.sum(), aggregate.alpha, **how)
        log.info(
            "tables of %d clients by %d neighbours: weights within %.2g (median) and %.2g (largest) of Eq. 13's, "
            "tables within %.2g of their norm; %d clients whose weights reach 0 by all",
            *(len(tables), aggregate.neighbours, found.bound.median(), found.bound.max()),
            *(found.bound.max() * found.spread / tables.norm() * len(tables) ** 0.5, len(found.exact)),
        )
        return found

    def caveats(self) -> list[str]:
        """What the server learns of single users, and what is not exact."""
        if not self.federated:
            return []
        near = [
            f"aggregate.neighbours = {self.config.aggregate.neighbours}: weights are near those of Eq. 13; how near at "
            "most is logged each round, and in summary.json for the last (weights, bound)"
        ]
        return [
            "The server sees a table of each user: a single upload shows which items that user has met, and the rows "
            "that a few of its uploads have in common do so, too. privacy.secret_draws does not hide it. Sums over "
            "many users do (fedmf, fedials); secure aggregation is to come",
            *(near if self.config.aggregate.neighbours else []),
        ]

    def diagnostics(self, state: State) -> dict[str, object]:
        """The last round's weights: each client's own; how many are not zero, and a sample, or the bound of `Near`."""
        shown = [name for name in ("own", "nonzero", "sample", "bound") if f"weights-{name}" in state]
        return {"weights": {name: state[f"weights-{name}"].tolist() for name in shown}} if shown else {}


class SimilarTables(LocalTraining):
    """Local training, and G_u for every uploader."""

    convex = True
    method: FedEM

    def fold(self, state: State, gathered: Gathered) -> State:
        """Eq. 13."""
        tables = gathered.each["items"]
        if not len(tables):
            return state
        samples = gathered.samples[gathered.uploaders]
        if self.method.config.aggregate.neighbours:
            near = self.method.near(tables, samples)
            return {**state, "items": near.tables, "weights-own": near.own, "weights-bound": near.bound}
        weights = self.method.weights(tables, samples)
        combined = combine_tables(weights, tables, self.method.config.aggregate.block_items)
        shown = {"own": weights.diagonal(), "nonzero": (weights > 0).sum(1), "sample": weights[:_SAMPLE, :_SAMPLE]}
        return {**state, "items": combined, **{f"weights-{name}": x.clone() for name, x in shown.items()}}
