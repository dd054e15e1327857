"""FedNCF: Perifanis and Efraimidis, "Federated Neural Collaborative Filtering", Knowledge-Based Systems 2022.

Private: p (`user`). Up: a cohort's sums of trained item rows, and of the scoring network. Server: the paper's split
aggregation, item rows over the clients that trained them, the network weighted by the clients' samples. Down: table and
network. Loss: binary cross-entropy, and weight decay of the network in Adam. Users are scored with what comes down.

`aggregate.weights = "average"` averages whole tables, too, as the program does that later papers compare with. The
paper's secure aggregation is not here: nodes send sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor

from fedem_flwr.config import Config
from fedem_flwr.config.section import Search, Section, Widths
from fedem_flwr.contract import Layers, Method, Part, Pull, Update, weights_of
from fedem_flwr.engine.block import Batch
from fedem_flwr.engine.gradients import Gradients, by_rows
from fedem_flwr.errors import InputError
from fedem_flwr.models.mlp import Mlp


class FedNCFOptions(Section):
    """Of `FedNCF`."""

    hidden: Widths = Field((16, 8), description="hidden widths, behind 2d inputs")
    lr: Annotated[float, Search(1e-4, 1, log=True)] = Field(0.01, gt=0, description="Adam's rate for the network")
    decay: float = Field(1e-3, ge=0, description="weight decay of the network")


class FedNCF(Method):
    """Score z = MLP([p; q])."""

    Options = FedNCFOptions

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        if config.aggregate.weights not in ("average", "rows"):
            raise InputError(
                "method fedncf makes one table for all: aggregate.weights must be average or rows, "
                f"not '{config.aggregate.weights}'"
            )

    @property
    def network(self) -> Mlp:
        """Its shape."""
        return Mlp((2 * self.config.model.dim, *self.options.hidden, 1))

    def parts(self) -> Mapping[str, Part]:
        """See the class."""
        dim, std = self.config.model.dim, self.config.model.init_std
        rows, shares = self.config.aggregate.weights == "rows", self.config.aggregate.shares
        return {
            "user": Part("user", dim, private=True, std=std),
            "items": Part("item", dim, up="sum", mean="rows" if rows else shares, std=std),
            "network": weights_of(self.network, "network", up="sum", mean=shares),
        }

    def score(self, parts: Mapping[str, Tensor]) -> Tensor:
        """See the class."""
        return self.network.scores(parts["network"], parts["user"], parts["items"])

    def gradients(self, batch: Batch, names: Sequence[str]) -> tuple[Tensor, Gradients]:
        """See `by_rows`."""
        return by_rows(self, batch, names)

    def updates(self, round_: int) -> Sequence[Update]:
        """One Adam step on everything."""
        local = self.config.local
        rates = {"user": local.lr_user, "items": local.lr_item, "network": self.options.lr}
        return [Update(rates, pulls={"network": Pull(self.options.decay)})]

    def products(self, round_: int) -> Layers | None:
        """Itself, where no subclass trains otherwise."""
        own = Layers("network", ("items",), "user", self.options.hidden)
        return own if self.trains_as(FedNCF) else None
