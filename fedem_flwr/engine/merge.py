"""Merging a client's own item table with the one it downloaded.

FedEM (AAAI 2026), Eq. 9–10 and the variants of its Table 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedem_flwr.models.adapter import Adapter

MergeMode = Literal["none", "replace", "static", "scalar", "elastic"]


@dataclass(frozen=True)
class GlobalTables:
    """The tables that a cohort downloaded: one a receiver, or one for all.

    Attributes:
        tables: (r, m, d).
        slot: (k,) which of the r tables belongs to each user of the cohort; −1 where the user got none.
    """

    tables: Tensor
    slot: Tensor

    @property
    def received(self) -> Tensor:
        """(k,) bool: who got a table."""
        return self.slot >= 0

    def rows(self, who: Tensor, items: Tensor) -> Tensor:
        """(k', t, d) rows `items` (k', t) of the tables of users `who` (k',)."""
        return self.tables[self.slot[who].unsqueeze(1), items]

    def of(self, who: Tensor) -> Tensor:
        """(k', m, d) whole tables of users `who`; a view where one table serves all."""
        if len(self.tables) == 1:
            return self.tables.expand(len(who), -1, -1)
        return self.tables[self.slot[who]]


@dataclass(frozen=True)
class Merge:
    """How own and downloaded rows become one: Q + ρ (G − Q).

    Attributes:
        mode: `replace` ρ = 1 (SR) · `static` one fixed ρ for all (SM) · `scalar` one learned ρ a client (DM) ·
            `elastic` one learned ρ an item and client (EM) · `none` nothing is downloaded.
        rho: the fixed ρ of `static`.
        adapter: shape of the private MLP, for `scalar` and `elastic`.
    """

    mode: MergeMode
    rho: float
    adapter: Adapter

    @property
    def learned(self) -> bool:
        """Whether ρ comes from an adapter."""
        return self.mode in ("scalar", "elastic")

    def weights(self, theta: Tensor | None, local: Tensor, glob: Tensor) -> Tensor:
        """ρ (k, b), or (k, 1) where one ρ serves a client's whole table: Eq. 9.

        Args:
            theta: (k, P) adapter parameters; needed by the learned modes.
            local, glob: (k, b, d) own and downloaded rows. `scalar` looks at their mean over b, so it is given whole
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
        return torch.lerp(local, glob, rho.unsqueeze(-1)), rho


def pooled(local: Tensor, glob: Tensor) -> tuple[Tensor, Tensor]:
    """The one row (k, 1, d) a client that `scalar` merging looks at: the mean over the items."""
    return local.mean(1, keepdim=True), glob.mean(1, keepdim=True)
