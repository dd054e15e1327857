"""FedMF: federated matrix factorisation with one item table for all (Ammad-ud-din et al. 2019; Chai et al. 2020).

Private: p_u. Up: a cohort's sums of trained rows (k = 1: the client's own rows). Server: the new table. Down: the
table. Loss: binary cross-entropy.

`aggregate.weights = "average"`: whole tables weighted by p_v (FedAvg, what the FedEM paper compares with), or alike
(`aggregate.shares = "users"`: 1/n, as in FCF). `"rows"`:
each item row is averaged over the clients that trained it; rows that nobody trained stay. Averaging over everybody
shrinks the steps of rare items by the share of clients that never saw them, so `rows` is what learns under the strict
protocol.
"""

from __future__ import annotations

from fedem_flwr.config import Config
from fedem_flwr.contract.factorisation import Factorisation
from fedem_flwr.engine.parts import Mean
from fedem_flwr.errors import InputError


class FedMF(Factorisation):
    """One global item table."""

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        if config.aggregate.weights not in ("average", "rows"):
            raise InputError(
                f"method fedmf makes one table for all: aggregate.weights must be average or rows, "
                f"not '{config.aggregate.weights}'"
            )

    @property
    def mean(self) -> Mean:
        """See `aggregate.weights`."""
        return "rows" if self.config.aggregate.weights == "rows" else self.config.aggregate.shares
