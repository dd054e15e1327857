"""FedEM's rounds: local training, and a table for each uploader out of all of theirs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.aggregation import aggregation_weights, average_weights, combine_tables, similarity
from fedem_flwr.aggregation.near import Near, combine_near
from fedem_flwr.aggregation.touched import combine_touched
from fedem_flwr.aggregation.weights import row_weights
from fedem_flwr.contract import Gathered, State
from fedem_flwr.contract.training import LocalTraining
from fedem_flwr.engine.device import resolve_device
from fedem_flwr.models.rows import Rows

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
        if self.method.touched:
            return self.of_rows(state, gathered)
        tables = gathered.each["items"]
        if not len(tables):
            return state
        samples = self.held(gathered)
        if self.aggregate.neighbours:
            near = self.near(tables, samples)
            return {**state, "items": near.tables, "weights-own": near.own, "weights-bound": near.bound}
        weights = self.weights(tables, samples)
        combined = combine_tables(weights, tables, self.aggregate.block_items)
        shown = {"own": weights.diagonal(), "nonzero": (weights > 0).sum(1), "sample": weights[:_SAMPLE, :_SAMPLE]}
        kept = {f"weights-{name}": x.clone().cpu() for name, x in shown.items()}
        return {**state, "items": combined, **kept}

    def held(self, gathered: Gathered) -> np.ndarray:
        """(K,) what p_v of the uploaders is proportional to."""
        samples = gathered.samples[gathered.uploaders]
        return np.ones_like(samples) if self.aggregate.shares == "users" else samples

    def of_rows(self, state: State, gathered: Gathered) -> State:
        """The same of touched rows; see `aggregation.touched`."""
        rows, settings = Rows.of(gathered.each, "items"), self.aggregate
        if not len(rows.counts):
            return state
        shares = torch.from_numpy(self.held(gathered)).double()
        if settings.weights == "rows":
            raise AssertionError("refused when the method was made")
        rule, shares = settings.weights, shares / shares.sum()

        def weigh(alike: Tensor) -> Tensor:
            close = alike if settings.saturate is None else alike.masked_fill(alike > settings.saturate, 1.0)
            return row_weights(rule, shares, close, settings.alpha)

        found = combine_touched(state["items"], rows, weigh, sample=_SAMPLE)
        shown = {"weights-own": found.own, "weights-nonzero": found.nonzero, "weights-sample": found.sample}
        return {**state, "items": found.base, **found.rows.named("items"), **shown}

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
