"""CoLR (Nguyen et al., 2024): FedMF whose clients train and upload a low-rank change of the table.

Private: p (`user`). Down: the table W and B (r, d), keyed by the round, with B Bᵀ = (d / r) I. Trained and up: A (m,
r), that starts at 0. Server: A = row means over the clients that touched the item, W ← W + A B, and a new B.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedem_flwr.contract import Gathered, Method, Part, Phase, State, Update
from fedem_flwr.contract.training import LocalTraining
from fedem_flwr.randomness import keyed_normal

RANK = 2


def basis(dim: int, seed: int, round_: int) -> Tensor:
    """(r · d,) B of a round."""
    drawn = keyed_normal(seed, "colr/basis", round_, torch.arange(RANK)[:, None], torch.arange(dim))
    left, _, right = torch.linalg.svd(drawn, full_matrices=False)
    return (left @ right * (dim / RANK) ** 0.5).flatten()


class CoLR(Method):
    """Score z = p · (W_i + A_i B)."""

    def parts(self) -> Mapping[str, Part]:
        """Only A goes up."""
        dim, std = self.config.model.dim, self.config.model.init_std
        return {
            "user": Part("user", dim, private=True, std=std),
            "items": Part("item", dim, std=std),
            "basis": Part("model", RANK * dim, start=lambda seed: basis(dim, seed, 1)),
            "factor": Part("item", RANK, up="sum", start=lambda _: torch.zeros(self.items, RANK)),
        }

    def score(self, parts: Mapping[str, Tensor]) -> Tensor:
        """See the class."""
        change = parts["factor"] @ parts["basis"].unflatten(1, (RANK, -1))
        return ((parts["items"] + change) @ parts["user"].unsqueeze(2)).squeeze(-1)

    def updates(self, round_: int) -> Sequence[Update]:
        """A row's step is the mean over its own samples."""
        local, scale = self.config.local, (RANK / self.config.model.dim) ** 0.5
        return [Update({"user": local.lr_user, "factor": local.lr_item * scale}, "frequency-sgd")]

    def sends(self) -> Sequence[str]:
        """A is 0 at the start of every round."""
        return ["items", "basis"]

    def table(self, state: State) -> Tensor:
        """W."""
        return state["items"]

    def phases(self) -> Sequence[Phase]:
        """One."""
        return [Phase("train", self.config.run.rounds, LowRank(self))]


class LowRank(LocalTraining):
    """Means of A, and a step of W in the row space of B."""

    def fold(self, state: State, gathered: Gathered) -> State:
        """See above."""
        factor, dim = super().fold(state, gathered)["factor"], state["items"].shape[1]
        table = state["items"] + factor @ state["basis"].view(RANK, dim)
        return {**state, "items": table, "basis": basis(dim, self.method.seed, gathered.round + 1)}
