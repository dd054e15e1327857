"""FedEM (elastic merging): Chen et al., "Breaking the Aggregation Bottleneck in Federated Recommendation", AAAI 2026.

Private: p_u, the adapter Θ_u, ρ. Up: the trained item table Q_u of each uploader. Server: weights by Eq. 13 from the
similarity of the tables and the shares p_v of the data, and G_u = Σ_v w_uv Q_v for every uploader u. Down: each
uploader its own G_u; the others get nothing and train their own table on.

Options that deviate from the paper, as the released program does: `aggregate.fraction` (a tenth uploads),
`aggregate.weights = "released"` (the objective's quadratic term is not scaled by 1 + α), `aggregate.similarity =
"pca"`, `aggregate.saturate`. With `merge.mode = "none"` nothing is sent down: every client trains alone.
"""

from __future__ import annotations

import numpy as np
import torch

from fedem_flwr.aggregation import aggregation_weights, average_weights, combine_tables, similarity
from fedem_flwr.config import Config
from fedem_flwr.errors import InputError
from fedem_flwr.methods.settings import keeps_own_tables
from fedem_flwr.nodes.host import as_tensor
from strategies.base import CohortStrategy
from strategies.uploads import Named, Spec

_SAMPLE = 60  # clients of the weight matrix that the report draws


class FedEM(CohortStrategy):
    """Similarity-weighted aggregation of one table a client."""

    upload = "tables"

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        if config.aggregate.weights == "rows" or not keeps_own_tables(config):
            raise InputError(
                f"aggregate.weights = '{config.aggregate.weights}' with merge.mode = '{config.merge.mode}' makes one "
                "table for all: use the strategy fedmf, or weights such as eq13"
            )
        self.receivers = np.empty(0, dtype=np.int64)  # (r,) who has a table waiting, ascending
        self.tables = np.empty((0, items, config.model.dim), dtype=np.float32)  # (r, m, d)
        self._uploads: list[Named] = []
        self._served: list[np.ndarray] = []
        self._weights: torch.Tensor | None = None

    @property
    def federated(self) -> bool:
        """Whether anything is aggregated at all."""
        return self.config.merge.mode != "none"

    def uploaders(self, round_: int) -> np.ndarray:
        """Nobody uploads where nothing is aggregated."""
        return super().uploaders(round_) if self.federated else np.empty(0, dtype=np.int64)

    def download(self, users: np.ndarray) -> Named:
        """The waiting tables of a node's users; all of them as they lie, where one node hosts everybody."""
        here = np.isin(self.receivers, users)
        if here.all():
            return {"receivers": self.receivers, "tables": self.tables}
        return {"receivers": self.receivers[here], "tables": self.tables[here]}

    def expected(self, uploaders: np.ndarray) -> dict[str, Spec]:
        """One table an uploader."""
        tables = (len(uploaders), self.items, self.config.model.dim)
        return {"users": Spec((len(uploaders),), "int64"), "tables": Spec(tables, bounded=True)}

    def problem(self, arrays: Named, uploaders: np.ndarray) -> str:
        """Also refuse tables of users that were not asked for."""
        fault = super().problem(arrays, uploaders)
        return fault or ("" if np.array_equal(arrays["users"], uploaders) else "holds tables of other users")

    def receive(self, arrays: Named, participants: np.ndarray) -> None:
        """Keep the tables for `combine`; who trained has used up the table that was waiting."""
        self._uploads.append(arrays)
        self._served.append(participants)

    def combine(self, round_: int) -> None:
        """Eq. 13, then G_u for every uploader. Tables of users who did not train stay waiting."""
        users = np.concatenate([self.receivers[:0], *(upload["users"] for upload in self._uploads)])
        waiting = ~np.isin(self.receivers, np.concatenate([*self._served, users]))
        if len(users):
            stacked = [as_tensor(upload["tables"]) for upload in self._uploads]
            tables = stacked[0] if len(stacked) == 1 else torch.cat(stacked)  # (K, m, d)
            self._weights = self.aggregation_weights_of(tables, users)
            combined = combine_tables(self._weights, tables, self.config.aggregate.block_items).numpy()
        else:
            combined = self.tables[:0]
        if waiting.any():
            users = np.concatenate([users, self.receivers[waiting]])
            combined = np.concatenate([combined, self.tables[waiting]])
        order = np.argsort(users)
        in_order = bool((order == np.arange(len(order))).all())
        self.receivers, self.tables = users[order], combined if in_order else combined[order]
        self._uploads, self._served = [], []

    def aggregation_weights_of(self, tables: torch.Tensor, users: np.ndarray) -> torch.Tensor:
        """(K, K) weights of the uploaders `users` over their tables (K, m, d)."""
        settings = self.config.aggregate
        shares = as_tensor(self.samples[users]).double()
        if settings.weights == "average":
            return average_weights(shares / shares.sum(), len(users))
        if settings.weights == "rows":
            raise AssertionError("refused when the strategy was made")
        alike = similarity(tables, settings.similarity, pca_sign=settings.pca_sign, saturate=settings.saturate)
        return aggregation_weights(settings.weights, shares, alike, settings.alpha)

    def state(self) -> Named:
        """The tables that wait for their clients."""
        return {"receivers": self.receivers, "tables": self.tables}

    def restore(self, state: Named) -> None:
        """See `state`."""
        self.receivers, self.tables = state["receivers"], state["tables"]

    def caveats(self) -> list[str]:
        """What the server learns of single users."""
        if not self.federated:
            return []
        return [
            "The server sees a table of each user: a single upload shows which items that user has met, and the rows "
            "that a few of its uploads have in common do so, too. privacy.secret_draws does not hide it. Sums over "
            "many users do (fedmf, fedials); secure aggregation is to come"
        ]

    def diagnostics(self) -> dict[str, object]:
        """The last round's weights: each client's own, how many are not zero, and a sample of the matrix."""
        if self._weights is None:
            return {}
        weights = self._weights
        return {
            "weights": {
                "own": weights.diagonal().tolist(),
                "nonzero": (weights > 0).sum(1).tolist(),
                "sample": weights[:_SAMPLE, :_SAMPLE].tolist(),
            }
        }
