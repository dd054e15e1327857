"""CoLR (Nguyen et al., WWW 2024): FedMF whose clients train and upload a low-rank change of the item table.

Private: p. Down: the table W (m, d); B (r, d) is keyed by seed and round, so no byte of it is sent. Trained and up: A
(m, r), 0 at the start of a round, as sums of touched rows. Server: A = row means over the clients that touched the
item; W ← W + A B; a new B. Score: z = p · (W_i + A_i B). Loss: cross-entropy + γ mean(‖p‖² + ‖W_i + A_i B‖²) over a
batch. Steps are free of frequency: an item's step is the mean over its own samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedem_flwr.config import Config
from fedem_flwr.config.section import Search, Section
from fedem_flwr.contract import Asked, Device, Gathered, Layers, Method, Part, Phase, State, Update
from fedem_flwr.contract.training import LocalTraining
from fedem_flwr.engine.downloads import Download, Downloads
from fedem_flwr.errors import InputError
from fedem_flwr.models.mf import scores
from fedem_flwr.randomness import keyed_normal


class CoLROptions(Section):
    """Of `CoLR`."""

    rank: int = Field(4, ge=1, description="r, of the change that a round makes; at most d")
    ridge: Annotated[float, Search(1e-6, 1e-1, log=True)] = Field(
        5e-4, ge=0, description="γ, of the squared norms of a batch's vectors and rows"
    )


class CoLR(Method):
    """One item table, of which a round changes r directions."""

    Options = CoLROptions

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        self.rank, self.dim = self.options.rank, config.model.dim
        if self.rank > self.dim:
            raise InputError(f"method.options.rank = {self.rank}: it is at most model.dim = {self.dim}")

    def parts(self) -> Mapping[str, Part]:
        """Only A goes up; W and B are what it is trained beside."""
        std = self.config.model.init_std
        return {
            "user": Part("user", self.dim, private=True, std=std),
            "items": Part("item", self.dim, std=std),
            "basis": Part("model", self.rank * self.dim, start=lambda _: self.basis(1).flatten()),
            "factor": Part("item", self.rank, up="sum", start=lambda _: torch.zeros(self.items, self.rank)),
        }

    def basis(self, round_: int) -> Tensor:
        """(r, d) B of a round, with B Bᵀ = (d / r) I."""
        drawn = keyed_normal(self.seed, "colr/basis", round_, torch.arange(self.rank)[:, None], torch.arange(self.dim))
        left, _, right = torch.linalg.svd(drawn, full_matrices=False)
        basis: Tensor = left @ right * (self.dim / self.rank) ** 0.5
        return basis

    def score(self, parts: Mapping[str, Tensor]) -> Tensor:
        """p · W_i + (B p) · A_i, so that no table of changes is made."""
        basis = parts["basis"].unflatten(1, (self.rank, self.dim))
        within = torch.bmm(parts["user"].unsqueeze(1), basis.transpose(1, 2)).squeeze(1)  # (k, r)
        return scores(parts["user"], parts["items"]) + scores(within, parts["factor"])

    def penalty(self, parts: Mapping[str, Tensor], valid: Tensor, round_: int) -> Tensor:
        """γ times the batch's mean of ‖p‖² + ‖W_i + A_i B‖²."""
        basis = parts["basis"].unflatten(1, (self.rank, self.dim))
        rows = torch.baddbmm(parts["items"], parts["factor"], basis).square().sum(-1)  # (k, b)
        mean = (rows * valid).sum(1) / valid.sum(1).clamp(min=1)
        ridge: float = self.options.ridge
        return ridge * (parts["user"].square().sum(1) + mean)

    def updates(self, round_: int) -> Sequence[Update]:
        """The gradient of A is scaled by √(r / d), so that the table's step is η √(d / r) on B's row space."""
        local = self.config.local
        return [
            Update({"user": local.lr_user, "factor": local.lr_item * (self.rank / self.dim) ** 0.5}, "frequency-sgd")
        ]

    def products(self, round_: int) -> Layers | None:
        """Itself, where no subclass trains otherwise."""
        own = Layers("user", ("factor",), base="items", basis="basis", ridge=self.options.ridge)
        return own if self.trains_as(CoLR) else None

    def sends(self) -> Sequence[str]:
        """W."""
        return ["items"]

    def table(self, state: State) -> Tensor:
        """W."""
        return state["items"]

    def start(self) -> State:
        """W."""
        return {"items": self.parts()["items"].initial("items", self.items, self.seed)}

    def downloads(self, device: Device, asked: Asked) -> Downloads:
        """W, and the round's B, which each device draws for itself."""
        basis = self.basis(max(1, asked.round)).flatten().to(asked.place)
        return {**super().downloads(device, asked), "basis": Download.for_all(basis, len(device.users))}

    def phases(self) -> Sequence[Phase]:
        """One."""
        return [Phase("train", self.config.run.rounds, LowRank(self))]


class LowRank(LocalTraining):
    """Sums of A, and a step of W in the row space of B."""

    method: CoLR

    def fold(self, state: State, gathered: Gathered) -> State:
        """W + A B."""
        none = {"factor": torch.zeros(self.method.items, self.method.rank)}
        factor = super().fold(none, gathered)["factor"]
        return {**state, "items": state["items"] + factor @ self.method.basis(gathered.round)}
