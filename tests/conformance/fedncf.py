"""FedNCF (Perifanis and Efraimidis, 2022), small: a scoring network that everybody shares.

Private: p (`user`). Up and down: the item rows, means over the clients that trained them, and the network, a mean over
samples. The network is one hidden layer of width d over [p; q].
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedem_flwr.contract import Method, Part


class FedNCF(Method):
    """Score z = v · relu(W [p; q])."""

    def parts(self) -> Mapping[str, Part]:
        """W (d, 2 d) and v (d,) lie in one flat part."""
        dim, std = self.config.model.dim, self.config.model.init_std
        network = Part("model", (2 * dim + 1) * dim, up="sum", mean="samples", std=std)
        user = Part("user", dim, private=True, std=std)
        return {"user": user, "items": Part("item", dim, up="sum", std=std), "network": network}

    def score(self, parts: Mapping[str, Tensor]) -> Tensor:
        """See the class."""
        dim, items = self.config.model.dim, parts["items"]
        weights, last = parts["network"].split([2 * dim * dim, dim], 1)
        seen = torch.cat([parts["user"].unsqueeze(1).expand(-1, items.shape[1], -1), items], 2)  # (k, t, 2 d)
        return (torch.relu(seen @ weights.unflatten(1, (2 * dim, dim))) @ last.unsqueeze(2)).squeeze(-1)
