"""The server's step on an item table from second-order sums: a Newton-like step whose fixed point is iALS's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Newton:
    """Settings of the step.

    Attributes:
        weight, ridge: a and λ of the objective.
        kappa: κ, how much the curvature of a row grows with the share of users that have it.
        rate: η.
    """

    weight: float
    ridge: float
    kappa: float
    rate: float


def newton_step(
    table: Tensor,
    gradient: Tensor,
    counts: Tensor,
    gram: Tensor,
    users: float,
    step: Newton,
    towards: tuple[Tensor, float] | None = None,
) -> Tensor:
    """Take the step q_i ← q_i − η H_i⁻¹ G_i for every row.

        G_i = g_i + a P q_i + λ (c_i + a n) q_i,   H_i = (a + κ c_i / n) P + λ (c_i + a n) I.

    One eigendecomposition of P makes every H_i diagonal. G = 0 is the stationary point of the iALS objective in Q.

    Args:
        table: (m, d) float64.
        gradient: (m, d) g, counts: (m,) c, gram: (d, d) P: sums, scaled to all `users` (n).
        towards: another table (m, d) and μ, of a further ridge μ (c_i + a n) |q_i − other_i|².

    Returns:
        (m, d) the new table.
    """
    ridge = step.ridge * (counts + step.weight * users)  # (m,)
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    slope = gradient + step.weight * table @ gram + ridge.unsqueeze(1) * table
    if towards is not None:
        other, pull = towards[0], towards[1] * (counts + step.weight * users)
        slope, ridge = slope + pull.unsqueeze(1) * (table - other), ridge + pull
    curvature = (step.weight + step.kappa * counts / users).unsqueeze(1) * values.clamp(min=0) + ridge.unsqueeze(1)
    new: Tensor = table - step.rate * ((slope @ vectors) / curvature) @ vectors.T
    return new


def nearest_gram(matrix: Tensor) -> Tensor:
    """The nearest symmetric, positive semidefinite matrix (d, d) in the Frobenius norm (Higham 1988); of each, if many.

    Args:
        matrix: (..., d, d).
    """
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    found: Tensor = (vectors * values.clamp(min=0).unsqueeze(-2)) @ vectors.mT
    return found


def objective(table: Tensor, users: Tensor, pairs: tuple[Tensor, Tensor], weight: float, ridge: float) -> float:
    """The iALS objective itself, for tests and diagnostics.

    Args:
        table: (m, d). users: (n, d). pairs: (nnz,) user and item codes.
    """
    user, item = pairs
    m, n = len(table), len(users)
    of_user, of_item = (torch.bincount(codes, minlength=size).to(table) for codes, size in ((user, n), (item, m)))
    fit = ((users[user] * table[item]).sum(1) - 1).square().sum()
    everywhere = weight * ((users.T @ users) * (table.T @ table)).sum()
    ridges = (of_user + weight * m) @ users.square().sum(1) + (of_item + weight * n) @ table.square().sum(1)
    return float(fit + everywhere + ridge * ridges)
