"""FedRAP: Li et al., "Federated Recommendation with Additive Personalization", ICLR 2024.

Private: D (`own`), the personal item table, and the user's vector or head (`user`). Up: a cohort's sum of the trained
shared tables C. Server: their mean over the clients. Down: C. Loss: cross-entropy − λ mean (D − C)² + μ mean |C| over
the rows of a batch: tables that differ are rewarded, without a bound, and a sparse C. Gradient steps whose rates shrink
after each batch and after each round, with weight decay of everything, which in rows that no sample touches is a factor
a round. Users are scored with the averaged C and their own D.

Options where paper and released program differ: `curriculum` (the paper lets λ and μ grow as tanh(t / 10); the program
computes that, and its loss does not read it) and `head` (the paper scores with a user vector, the program with a linear
layer). The paper's noise on uploads is a stage that is not here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedem_flwr.config.section import Search, Section
from fedem_flwr.contract import Layers, Method, Part, Pull, Update, weights_of
from fedem_flwr.engine.block import Batch
from fedem_flwr.engine.gradients import Gradients
from fedem_flwr.models.mf import loss_and_residual, scores
from fedem_flwr.models.mlp import Mlp, head_scores


class FedRAPOptions(Section):
    """Of `FedRAP`."""

    apart: float = Field(0.1, ge=0, description="λ, reward for tables that differ")
    sparse: float = Field(0.1, ge=0, description="μ, of the l1 norm of C")
    curriculum: Literal["tanh", "constant"] = Field("tanh", description="how λ and μ depend on the round: tanh(t / 10)")
    head: bool = Field(False, description="score with a private linear layer (program) in place of a vector (paper)")
    lr_user: Annotated[float, Search(0.1, 1000, log=True)] = Field(
        0.5, gt=0, description="η of the user's vector or head"
    )
    lr_tables: Annotated[float, Search(1, 10000, log=True)] = Field(200.0, gt=0, description="η of both tables")
    decay: Annotated[float, Search(1e-6, 1e-2, log=True)] = Field(1e-4, ge=0, description="weight decay of everything")
    fading: float = Field(0.95, gt=0, le=1, description="factor on the rates after each batch of a round")
    fading_rounds: float = Field(0.97, gt=0, le=1, description="factor on the rates after each round")


class FedRAP(Method):
    """Score z = u · (D + C), or w · (D + C) + b."""

    Options = FedRAPOptions
    TUNES = ("local.epochs",)

    def parts(self) -> Mapping[str, Part]:
        """Two item parts."""
        dim, std, head = self.config.model.dim, self.config.model.init_std, Mlp((self.config.model.dim, 1))
        vector = Part("user", dim, private=True, std=std)
        layer = weights_of(head, "head", private=True)
        return {
            "user": layer if self.options.head else vector,
            "own": Part("item", dim, private=True, std=std),
            "shared": Part("item", dim, up="sum", mean="users", std=std),
        }

    def score(self, parts: Mapping[str, Tensor]) -> Tensor:
        """See the class."""
        rows = parts["own"] + parts["shared"]
        return head_scores(parts["user"], rows) if self.options.head else scores(parts["user"], rows)

    def penalty(self, parts: Mapping[str, Tensor], valid: Tensor, round_: int) -> Tensor:
        """See above; a row that occurs twice counts twice."""
        apart, size = (parts["own"] - parts["shared"]).square(), parts["shared"].abs()
        each = (self.options.sparse * size - self.options.apart * apart).mean(2)  # (k, b)
        found: Tensor = self.grown(round_) * (each * valid).sum(1) / valid.sum(1).clamp(min=1)
        return found

    def grown(self, round_: int) -> float:
        """What the round makes of λ and μ."""
        return math.tanh(round_ / 10) if self.options.curriculum == "tanh" else 1.0

    def gradients(self, batch: Batch, names: Sequence[str]) -> tuple[Tensor, Gradients]:
        """Written out, a row with how often it occurs in the batch: two outer products, no sample is gathered."""
        parts, grown = batch.block.parts, self.grown(batch.block.round) / self.config.model.dim
        user, own, shared, often = parts["user"], parts["own"], parts["shared"], batch.weight / batch.size  # (k, t)
        loss, residual = loss_and_residual(self.score(parts), batch.block.samples.sign, batch.weight)
        residual = residual / batch.size
        of_score = residual.unsqueeze(-1) * user[:, None, : own.shape[-1]]  # (k, t, d), without a head's b
        apart = (own - shared).mul_(often.unsqueeze(-1)).mul_(2 * self.options.apart * grown)
        size = shared.sign().mul_(often.unsqueeze(-1)).mul_(self.options.sparse * grown)
        to_user = torch.bmm(residual.unsqueeze(1), own + shared).squeeze(1)
        to_user = torch.cat([to_user, residual.sum(1, keepdim=True)], 1) if self.options.head else to_user
        return loss, {"user": to_user, "own": of_score - apart, "shared": size.add_(of_score).add_(apart)}

    def updates(self, round_: int) -> Sequence[Update]:
        """One backward pass, two rates."""
        options = self.options
        shrunk = options.fading_rounds ** (round_ - 1)
        tables = options.lr_tables * shrunk
        rates = {"user": options.lr_user * shrunk, "own": tables, "shared": tables}
        return [Update(rates, "sgd", dict.fromkeys(rates, Pull(options.decay)), options.fading)]

    def products(self, round_: int) -> Layers | None:
        """Itself, where no subclass trains otherwise."""
        apart, sparse = (self.grown(round_) * x for x in (self.options.apart, self.options.sparse))
        return Layers("user", ("own", "shared"), apart=apart, sparse=sparse) if self.trains_as(FedRAP) else None
