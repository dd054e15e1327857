"""FedMF: federated matrix factorisation with one item table for all (Ammad-ud-din et al. 2019; Chai et al. 2020).

Private: p_u. Up: a cohort's sums of trained rows (k = 1: the client's own rows). Server: the new table. Down: the
table.

`aggregate.weights = "average"`: whole tables weighted by p_v (FedAvg, what the FedEM paper compares with). `"rows"`:
each item row is averaged over the clients that trained it; rows that nobody trained stay. Averaging over everybody
shrinks the steps of rare items by the share of clients that never saw them, so `rows` is what learns under the strict
protocol.
"""

from __future__ import annotations

import numpy as np
import torch

from fedem_flwr.aggregation import average_rows
from fedem_flwr.config import Config
from fedem_flwr.errors import InputError
from fedem_flwr.models.mf import initial_table
from fedem_flwr.nodes.host import as_tensor
from strategies.base import CohortStrategy
from strategies.uploads import Named, Spec, norms, refuse_fraction

_EVERYBODY = np.empty(0, dtype=np.int64)


class FedMF(CohortStrategy):
    """One global item table."""

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        if config.aggregate.weights not in ("average", "rows"):
            raise InputError(
                f"strategy fedmf makes one table for all: aggregate.weights must be average or rows, "
                f"not '{config.aggregate.weights}'"
            )
        refuse_fraction(config)
        self.upload = "rows" if config.aggregate.weights == "rows" else "average"
        model = config.model
        self.table = initial_table(items, model.dim, model.init_std, config.run.seed)  # (m, d)
        self._sum = torch.zeros((items, model.dim), dtype=torch.float64)
        self._count = torch.zeros(items, dtype=torch.float64)  # clients, or samples where whole tables are averaged

    def download(self, users: np.ndarray) -> Named:
        """The one table, for everybody."""
        return {"receivers": _EVERYBODY, "tables": self.table[None].numpy()}

    def expected(self, uploaders: np.ndarray) -> dict[str, Spec]:
        """Row sums and their counts, or a mean table and its weight."""
        table = (self.items, self.config.model.dim)
        if self.upload == "rows":
            return {"rows": Spec(table), "counts": Spec((self.items,), "int32")}
        return {"table": Spec(table, bounded=True), "weight": Spec((1,), "int64")}

    def problem(self, arrays: Named, uploaders: np.ndarray) -> str:
        """Also refuse counts that this cohort cannot have, rows of nobody, and row sums whose mean is too large."""
        fault = super().problem(arrays, uploaders)
        if fault:
            return fault
        if self.upload == "rows":
            name, most = "counts", len(uploaders)
            if arrays["rows"][arrays["counts"] == 0].any():
                return "'rows' has rows that no user is behind"
            size = float(norms(arrays["rows"] / np.maximum(arrays["counts"], 1)[:, None]).max())
            if size > self.config.aggregate.max_norm:
                return f"'rows' has a mean of norm {size:.3g}, more than {self.config.aggregate.max_norm:.3g}"
        else:
            samples = int(self.samples[uploaders].sum())
            name, most = "weight", samples * (1 + self.config.local.negatives)
        if arrays[name].min(initial=0) < 0 or arrays[name].max(initial=0) > most:
            return f"'{name}' is not between 0 and {most}"
        return ""

    def receive(self, arrays: Named, participants: np.ndarray) -> None:
        """Add a cohort's sums to the round's."""
        values, weight = (as_tensor(arrays[name]).double() for name in self.expected(participants))
        self._sum += values if self.upload == "rows" else values * weight
        self._count += weight

    def combine(self, round_: int) -> None:
        """Divide; rows without a count stay as they were."""
        self.table = average_rows(self._sum, self._count, self.table)
        self._sum.zero_()
        self._count.zero_()

    def state(self) -> Named:
        """The table."""
        return {"table": self.table.numpy()}

    def restore(self, state: Named) -> None:
        """See `state`."""
        self.table = as_tensor(state["table"])
