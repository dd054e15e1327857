"""FedRAP (Li et al., ICLR 2024): two item tables a client, a private and a shared one, added up.

Private: D, the personal table, and (w, b). Up: C, the trained shared table. Server: its mean over users. Down: C. Loss:
cross-entropy − λ mean (D − C)² + μ mean |C| over a batch's rows; both weights grow with the round, as tanh(t / 10).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pydantic import Field
from torch import Tensor

from fedem_flwr.config.sections import Section
from fedem_flwr.contract import Method, Part, Update


class FedRapOptions(Section):
    """Of `FedRap`."""

    apart: float = Field(0.1, ge=0, description="λ, reward for tables that differ")
    sparse: float = Field(0.1, ge=0, description="μ, of the l1 norm of C")
    lr_head: float = Field(0.01, gt=0, description="η of the head")
    lr: float = Field(10.0, gt=0, description="η of both tables")


class FedRap(Method):
    """Score z = w · (D + C) + b."""

    Options = FedRapOptions

    def parts(self) -> Mapping[str, Part]:
        """Two item parts."""
        dim, std = self.config.model.dim, self.config.model.init_std
        head = Part("model", dim + 1, private=True, std=std)
        return {
            "head": head,
            "own": Part("item", dim, private=True, std=std),
            "shared": Part("item", dim, up="sum", mean="users", std=std),
        }

    def score(self, parts: Mapping[str, Tensor]) -> Tensor:
        """See the class."""
        head = parts["head"]
        return ((parts["own"] + parts["shared"]) @ head[:, :-1, None]).squeeze(-1) + head[:, -1:]

    def penalty(self, parts: Mapping[str, Tensor], valid: Tensor, round_: int) -> Tensor:
        """See above; duplicates of a row count as often as they occur."""
        apart, size = (parts["own"] - parts["shared"]).square(), parts["shared"].abs()
        grown = math.tanh(round_ / 10) * (self.options.sparse * size - self.options.apart * apart).mean(2)  # (k, b)
        return (grown * valid).sum(1) / valid.sum(1).clamp(min=1)

    def updates(self, round_: int) -> Sequence[Update]:
        """One backward pass, two rates; they shrink from round to round."""
        shrunk = 0.97 ** (round_ - 1)
        rate = self.options.lr * shrunk
        return [Update({"head": self.options.lr_head * shrunk, "own": rate, "shared": rate}, "sgd")]
