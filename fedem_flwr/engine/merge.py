"""The merge of two item tables, one client at a time: FedEM (AAAI 2026), Eq. 9–10 and the variants of its Table 2.

The second table is what a client keeps of its own (`engine.merging`), or that of its group (`engine.group_tables`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fedem_flwr.models.adapter import Adapter

MergeMode = Literal["none", "replace", "static", "scalar", "elastic"]
Schedule = Literal["paper", "released"]
GateData = Literal["train", "heldout"]

ADAPTER = "adapter"  # the private part that holds Θ


@dataclass(frozen=True)
class Merge:
    """How own and downloaded rows become one: Q + ρ (G − Q).

    Attributes:
        mode: `replace` ρ = 1 (SR) · `static` one fixed ρ for all (SM) · `scalar` one learned ρ a client (DM) ·
            `elastic` one learned ρ an item and client (EM) · `none` nothing is downloaded.
        rho: the fixed ρ of `static`.
        adapter: shape of the private MLP, for `scalar` and `elastic`.
        schedule: where merging stands. `paper`: Θ is trained through the merge (Eq. 11), the merged table becomes the
            own one, which is trained (Eq. 12). `released`: the merged table becomes the own table, and every batch
            trains Θ, then p and Q, through a second merge.
        epochs: of Eq. 11 under the `paper` schedule.
        lr: Adam's rate for Θ (β).
        gate_data: what Θ is trained on: the round's samples (`train`), or positives that a client's other training
            leaves out (`heldout`), once a round and before the merge under either schedule.
        hold_out: how many such items a client has, at most half of its history.
    """

    mode: MergeMode
    rho: float = 0.5
    adapter: Adapter = field(default_factory=lambda: Adapter(1))
    schedule: Schedule = "paper"
    epochs: int = 1
    lr: float = 0.1
    gate_data: GateData = "train"
    hold_out: int = 2

    @property
    def learned(self) -> bool:
        """Whether there is an adapter to train."""
        return self.mode in ("scalar", "elastic")

    @property
    def held_out(self) -> int:
        """Items of a client that Θ alone is trained on."""
        return self.hold_out if self.learned and self.gate_data == "heldout" else 0

    @property
    def in_batches(self) -> bool:
        """Whether the steps of a batch go through merged rows."""
        return self.schedule == "released" and (self.learned or self.mode == "static")

    @property
    def fits_first(self) -> bool:
        """Whether Θ is trained (Eq. 11) before the merged table becomes the own one."""
        return self.learned and (self.schedule == "paper" or self.held_out > 0)

    @property
    def fits_in_batches(self) -> bool:
        """Whether every batch takes a step on Θ first."""
        return self.learned and not self.fits_first

    @property
    def in_training(self) -> bool:
        """Whether any step goes through merged rows."""
        return self.in_batches or self.fits_first

    def weights(self, theta: Tensor | None, local: Tensor, glob: Tensor) -> Tensor:
        """Merging weights ρ for rows (k, b, d) of both tables: (k, b), or (k, 1) where a client has only one.

        Args:
            theta: (k, P) adapter parameters; only the learned modes look at them.
            local, glob: own and downloaded rows. `scalar` looks at their mean over b, so it is given whole
                tables.
        """
        if self.mode == "elastic" and theta is not None:
            return self.adapter.forward(theta, local, glob).rho
        if self.mode == "scalar" and theta is not None:
            return self.adapter.forward(theta, *pooled(local, glob)).rho
        fixed = 1.0 if self.mode == "replace" else self.rho
        return torch.full((len(local), 1), fixed, device=local.device)

    def tables(self, theta: Tensor | None, local: Tensor, glob: Tensor) -> tuple[Tensor, Tensor]:
        """Merge whole tables (k, m, d), Eq. 10; returns them with ρ (k, m) or (k, 1)."""
        rho = self.weights(theta, local, glob)
        return merged(local, glob, rho.unsqueeze(-1)), rho


REPLACE = Merge("replace")


def merged(local: Tensor, glob: Tensor, rho: Tensor | float) -> Tensor:
    """Rows Q + ρ (G − Q), Eq. 10; ρ = 1 gives G to the last bit, ρ = 0 gives Q."""
    return torch.lerp(local, glob, rho)


def pooled(local: Tensor, glob: Tensor) -> tuple[Tensor, Tensor]:
    """The one row (k, 1, d) a client that `scalar` merging looks at: the mean over the items."""
    return local.mean(1, keepdim=True), glob.mean(1, keepdim=True)
