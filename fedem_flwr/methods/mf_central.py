"""Matrix factorisation on all data in one place: a control, and no federated method.

Score: z = p · q. Loss: binary cross-entropy of each positive and its fresh negatives. One Adam over everything, an
epoch a round.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedem_flwr.contract import Part
from fedem_flwr.contract.central import Central
from fedem_flwr.models.mf import scores


class MFCentral(Central):
    """z = p · q."""

    TUNES = ("local.lr_user", "local.lr_item", "local.ridge")

    def trained(self) -> Mapping[str, Part]:
        """p and q."""
        dim = self.config.model.dim
        return {"user": self.vectors(dim), "items": self.rows(dim)}

    def score(self, parts: Mapping[str, Tensor]) -> Tensor:
        """See the class."""
        return scores(parts["user"], parts["items"])
