"""Neural collaborative filtering (He et al., WWW 2017) on all data in one place: a control, and no federated method.

`mlp`: a network over [p; q]. `neumf`: a product of vectors and such a network beside each other, of vectors of their
own, into one output layer; both trained together from the start, without the paper's pre-training of each. Loss: binary
cross-entropy of each positive and its fresh negatives. One Adam over everything, an epoch a round.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

from pydantic import Field
from torch import Tensor

from fedem_flwr.config import Config
from fedem_flwr.config.section import Section, Widths
from fedem_flwr.contract import Part
from fedem_flwr.contract.central import Central
from fedem_flwr.models.mlp import Mlp
from fedem_flwr.models.neumf import NeuMF, beside


class NCFCentralOptions(Section):
    """Of `NCFCentral`."""

    network: Literal["mlp", "neumf"] = Field("neumf", description="the network alone, or with the product beside it")
    hidden: Widths = Field((64, 32, 16), min_length=1, description="widths of the network, behind [p; q] of width 2 d")


class NCFCentral(Central):
    """A network scores a user and an item."""

    Options = NCFCentralOptions
    TUNES = ("local.lr_user", "local.lr_item", "local.ridge")

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        dim, hidden = config.model.dim, self.options.hidden
        self.mlp, self.neumf = Mlp((2 * dim, *hidden, 1)), NeuMF(dim, dim, hidden)

    @property
    def _product(self) -> bool:
        return bool(self.options.network == "neumf")

    def trained(self) -> Mapping[str, Part]:
        """Vectors and rows for the network, and where there is a product, for it."""
        dim = self.config.model.dim
        found = {"user-wide": self.vectors(dim), "items-wide": self.rows(dim)}
        if not self._product:
            return {**found, "network": self.weights(self.mlp.size, partial(self.mlp.initial, name="network"))}
        found |= {"user": self.vectors(dim), "items": self.rows(dim)}
        return {**found, "network": self.weights(self.neumf.size, self.neumf.initial)}

    @property
    def floats_of_a_score(self) -> int:
        """The network's layers."""
        widths: tuple[int, ...] = self.options.hidden
        return sum(widths)

    def score(self, parts: Mapping[str, Tensor]) -> Tensor:
        """See the class."""
        network, user, items = (parts[name] for name in ("network", "user-wide", "items-wide"))
        if not self._product:
            return beside(self.mlp, network, user, items).squeeze(-1)
        return self.neumf.logits(network, parts["user"], user, parts["items"], items)
