"""FedEM's rounds: local training, and a table for each uploader out of all of theirs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.aggregation import aggregation_weights, average_weights, combine_tables, similarity
from fedem_flwr.aggregation.near import Near, combine_near
from fedem_flwr.contract import Gathered, State
from fedem_flwr.contract.training import LocalTraining
from fedem_flwr.engine.device import resolve_device

if TYPE_CHECKING:
    from fedem_flwr.config.sections import AggregateConfig
    from fedem_flwr.methods.fedem import FedEM

log = logging.getLogger("fedem.aggregation")
_SAMPLE = 60  # clients of the weight matrix that the report draws


class SimilarTables(LocalTraining):
    """Local training, and G_u for every uploader."""

    convex = True
    method: FedEM

    @property
    def aggregate(self) -> AggregateConfig:
        """How."""
        return self.method.config.aggregate

    def fold(self, state: State, gathered: Gathered) -> State:
        """Eq. 13."""
        tables = gathered.each["items"]
        if not len(tables):
            return state
        samples = gathered.samples[gathered.uploaders]
        if self.aggregate.neighbours:
            near = self.near(tables, samples)
            return {**state, "items": near.tables, "weights-own": near.own, "weights-bound": near.bound}
        weights = self.weights(tables, samples)
        combined = combine_tables(weights, tables, self.aggregate.block_items)
        shown = {"own": weights.diagonal(), "nonzero": (weights > 0).sum(1), "sample": weights[:_SAMPLE, :_SAMPLE]}
        kept = {f"weights-{name}": x.clone().cpu() for name, x in shown.items()}
        return {**state, "items": combined, **kept}

    def weights(self, tables: Tensor, samples: np.ndarray) -> Tensor:
        """(K, K) Eq. 13: weights of the uploaders over their tables (K, m, d), given their interactions (K,).

        They are on the run's device; tables come there block by block.
        """
        settings, place = self.aggregate, resolve_device(self.method.config.run.device)
        shares = torch.from_numpy(samples).double().to(place)
        if settings.weights == "average":
            return average_weights(shares / shares.sum(), len(tables))
        if settings.weights == "rows":
            raise AssertionError("refused when the method was made")
        kind, sign = settings.similarity, settings.pca_sign
        alike = similarity(tables, kind, pca_sign=sign, saturate=settings.saturate, place=place)
        return aggregation_weights(settings.weights, shares, alike, settings.alpha)

    def near(self, tables: Tensor, samples: np.ndarray) -> Near:
        """The same, and the tables, from so many neighbours of each uploader."""
        settings, shares = self.aggregate, torch.from_numpy(samples).double()
        how = {"neighbours": settings.neighbours, "block_items": settings.block_items}
        found = combine_near(tables, shares / shares.sum(), settings.alpha, **how)
        log.info(
            "tables of %d clients by %d neighbours: weights within %.2g (median) and %.2g (largest) of Eq. 13's, "
            "tables within %.2g of their norm; %d clients whose weights reach 0 by all",
            *(len(tables), settings.neighbours, found.bound.median(), found.bound.max()),
            *(found.bound.max() * found.spread / tables.norm() * len(tables) ** 0.5, len(found.exact)),
        )
        return found
