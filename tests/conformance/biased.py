"""FedMF with a bias for each item: what the documentation's example of a method of one's own looks like."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedem_flwr.contract import Method, Part


class Biased(Method):
    """Score z = p · q + b. Private: p. Up and down: the item rows and their biases."""

    def parts(self) -> Mapping[str, Part]:
        """Two tables with a row an item; each row is the mean over the clients that trained it."""
        dim, std = self.config.model.dim, self.config.model.init_std
        user = Part("user", dim, private=True, std=std)
        return {"user": user, "items": Part("item", dim, up="sum", std=std), "bias": Part("item", 1, up="sum", std=0.1)}

    def score(self, parts: Mapping[str, Tensor]) -> Tensor:
        """See the class."""
        return (parts["items"] @ parts["user"].unsqueeze(2) + parts["bias"]).squeeze(-1)
