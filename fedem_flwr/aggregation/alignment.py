"""Bringing an item table to similarities of items (FedCIA, SIGIR 2025), by factors: no m × m matrix is looked at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedem_flwr.pulse import beat


@dataclass(frozen=True)
class Alignment:
    """Gradient steps on ‖V Vᵀ − S‖, the Frobenius norm and not its square.

    Attributes:
        steps: how many. rate: of each. decay: weight decay of V.
    """

    steps: int
    rate: float
    decay: float = 0.0

    def __call__(self, tables: Tensor, factor: Tensor) -> Tensor:
        """Tables V (g, m, d) after the steps towards S = F Fᵀ, each on its own.

        With E = V Vᵀ − S the gradient is 2 E V / ‖E‖, and V stays in the span of what it was and of F. In an
        orthonormal basis of that, whose first vectors are those of F, S is diagonal: a step costs O((d + r) d²),
        whatever m is.

        Args:
            factor: (m, r) F, with orthogonal columns.
        """
        values = factor.square().sum(0)  # (r,) of S
        vectors = factor / values.sqrt().clamp(min=1e-12)
        inside = vectors.T @ tables  # (g, r, d)
        beyond, rest = torch.linalg.qr(tables - vectors @ inside)
        table = torch.cat([inside, rest], 1)  # V in the basis
        values = torch.cat([values, values.new_zeros(rest.shape[1])]).unsqueeze(1)
        whole = values.square().sum()  # ‖S‖²
        for _ in range(self.steps):
            beat()
            gram = table.mT @ table
            along = values * table  # S V
            norm = (
                gram.square().sum((1, 2)) - 2 * (table * along).sum((1, 2)) + whole
            )  # ‖E‖² = ‖VᵀV‖² − 2 tr VᵀSV + ‖S‖²
            scale = 2 * self.rate / norm.clamp(min=1e-12 * float(whole)).sqrt().view(-1, 1, 1)
            table = (1 - self.rate * self.decay) * table - scale * (table @ gram - along)
        split = len(values) - rest.shape[1]
        moved: Tensor = vectors @ table[:, :split] + beyond @ table[:, split:]
        return moved


def factor_of(similar: Tensor, rank: int) -> Tensor:
    """(m, r) F, its columns orthogonal, with F Fᵀ the nearest to a symmetric S (m, m) of rank r, and not negative."""
    values, vectors = torch.linalg.eigh(similar)
    factor: Tensor = vectors[:, -rank:] * values[-rank:].clamp(min=0).sqrt()
    return factor


def factor_of_table(table: Tensor, rank: int) -> Tensor:
    """(m, r) the same of S = V Vᵀ, for a table V (m, d)."""
    _, axes = torch.linalg.eigh(table.mT @ table)
    factor: Tensor = table @ axes[:, -rank:]
    return factor
