"""Implicit least squares on the device: users are solved from their history, and only sums over a cohort remain.

The objective is that of iALS (Hu, Koren and Volinsky 2008) with frequency-scaled ridges (Rendle et al. 2021):

    Σ_{(u,i) ∈ S} (p_u·q_i − 1)² + a Σ_u Σ_i (p_u·q_i)² + λ Σ_u (|S_u| + a m) |p_u|² + λ Σ_i (|S_i| + a n) |q_i|²

There are no sampled negatives. A user's own solution needs its history and the item table, nothing that was kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from fedem_flwr.engine.history import History, IntArray
from fedem_flwr.engine.parallel import in_parallel
from fedem_flwr.models.mf import scores

_ROUNDED = 1.01  # of sums of float32
_NEGLIGIBLE = 1e-6  # items whose recency weight is below this are not looked at


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    Attributes:
        weight: a, of all pairs of user and item.
        ridge: λ, scaled by frequency.
    """

    weight: float
    ridge: float


@dataclass(frozen=True)
class Recency:
    """How the fold-in weighs a history.

    Attributes:
        half_life: h; an item counts 0.5 ** (age / h), age = number of newer items. inf: all count the same.
        ridge: factor on λ.
    """

    half_life: float = math.inf
    ridge: float = 1.0

    @classmethod
    def of(cls, half_life: float, ridge: float) -> Recency:
        """From settings, where a half-life of 0 means that age does not count."""
        return cls(half_life or math.inf, ridge)

    @property
    def longest(self) -> int | None:
        """How many of the newest items have a weight that matters; None: all."""
        if math.isinf(self.half_life):
            return None
        return max(1, math.ceil(self.half_life * -math.log2(_NEGLIGIBLE)))


EVERYTHING = Recency()


@dataclass
class TableSums:
    """What a cohort's users say about an item table. Sums over users; float64.

    Attributes:
        gradient: (m, d) Σ_u (p_u·q_i − 1) p_u over the users with item i. counts: (m,) how many they are.
        gram: (d, d) P = Σ_u p_u p_uᵀ.
        error: Σ (p_u·q_i − 1)². samples: number of pairs.
    """

    gradient: Tensor
    counts: Tensor
    gram: Tensor
    error: float
    samples: int

    @classmethod
    def zeros(cls, items: int, dim: int, device: torch.device) -> TableSums:
        """Those of nobody."""

        def empty(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        return cls(empty(items, dim), empty(items), empty(dim, dim), 0.0, 0)


class FoldIn:
    """Solves users from their histories, given an item table.

    Args:
        table: (m, d).
        objective: a and λ.
    """

    def __init__(self, table: Tensor, objective: Objective) -> None:
        self.objective, self.dim = objective, table.shape[1]
        self.rows = torch.cat([table, table.new_zeros(1, self.dim)])  # padding is item m
        self.everywhere = objective.weight * table.T @ table  # a QᵀQ

    def users(self, items: Tensor, counts: Tensor, recency: Recency = EVERYTHING) -> tuple[Tensor, Tensor]:
        """Solve p = (a QᵀQ + Σ w q qᵀ + λ (Σ w + a m) I)⁻¹ Σ w q by Cholesky, for a block of users.

        Args:
            items: (k, p) right-aligned, padded with m. counts: (k,) how many are real.
            recency: the weights w.

        Returns:
            p (k, d), and the unweighted rows (k, p, d).

        Raises:
            FloatingPointError: the system is not positive definite; the table or the settings are not sane.
        """
        rows = self.rows[items]
        scaled, total = rows, counts.to(rows.dtype)
        right = None
        if not math.isinf(recency.half_life):
            age = torch.arange(items.shape[1] - 1, -1, -1, device=rows.device, dtype=rows.dtype)
            weight = torch.exp2(-age / recency.half_life)  # (p,)
            total = (weight * (items < len(self.rows) - 1)).sum(1)
            scaled = rows * weight.sqrt().unsqueeze(-1)
            right = (rows * weight.unsqueeze(-1)).sum(1)
        objective = self.objective
        ridge = recency.ridge * objective.ridge * (total + objective.weight * (len(self.rows) - 1))
        system = torch.baddbmm(self.everywhere, scaled.mT, scaled)  # (k, d, d)
        system.diagonal(dim1=1, dim2=2).add_(ridge.unsqueeze(1))
        factor, failed = torch.linalg.cholesky_ex(system)
        if bool(failed.any()):
            raise FloatingPointError(
                "a user's least-squares system is not positive definite: the item table is not sane"
            )
        right = rows.sum(1) if right is None else right
        return torch.cholesky_solve(right.unsqueeze(-1), factor).squeeze(-1), rows

    def of(self, history: History, who: IntArray, recency: Recency = EVERYTHING) -> Tensor:
        """(k', d) users at positions `who`, in that order."""
        device, blocks = self.rows.device, history.blocks(who, self.dim, recency.longest)
        if not blocks:
            return self.rows.new_empty((0, self.dim))
        solved = []
        for block in blocks:
            items, counts = history.padded(block, recency.longest)
            solved.append(self.users(items.to(device), counts.to(device), recency)[0])
        together = np.concatenate(blocks)  # they go by length
        sorter = np.argsort(together)
        place = sorter[np.searchsorted(together, who, sorter=sorter)]
        return torch.cat(solved)[torch.from_numpy(place).to(device)]


def table_sums(table: Tensor, history: History, who: IntArray, objective: Objective) -> TableSums:
    """Solve users `who` and sum up what the server needs for its step: the client's side of a round.

    Args:
        table: (m, d) the downloaded item table.
        history: the cohort's interactions.
        who: (k',) positions of the participants.
    """
    return sums_of(FoldIn(table, objective), history, who)


def sums_of(fold_in: FoldIn, history: History, who: IntArray) -> TableSums:
    """The same, given what solves users."""
    items, dim, device = len(fold_in.rows) - 1, fold_in.dim, fold_in.rows.device
    total = TableSums.zeros(items, dim, device)

    def add_up(block: IntArray) -> TableSums:
        padded, counts = history.padded(block)
        padded, counts = padded.to(device), counts.to(device)
        users, rows = fold_in.users(padded, counts)
        residual = scores(users, rows) - 1  # (k, p)
        real = padded < items
        error, samples = float((residual.square() * real).sum(dtype=torch.float64)), int(counts.sum())
        gradient = _spread(residual, padded, real, users, items)
        number = torch.bincount(padded[real], minlength=items)
        return TableSums(gradient, number, users.T @ users, error, samples)

    for sums in in_parallel(add_up, history.blocks(who, dim), device, "training"):
        total.gradient += sums.gradient
        total.counts += sums.counts
        total.gram += sums.gram
        total.error += sums.error
        total.samples += sums.samples
    return total


def _spread(value: Tensor, items: Tensor, real: Tensor, users: Tensor, m: int) -> Tensor:
    """(m, d) Σ over a block's pairs of value · p_u into the row of their item: a sparse product."""
    if users.device.type != "cpu":
        who = torch.arange(len(users), device=users.device).unsqueeze(1).expand_as(items)[real]
        out = users.new_zeros((m, users.shape[1]))
        return out.index_add_(0, items[real], value[real].unsqueeze(1) * users[who])
    offsets = np.append(0, np.cumsum(real.sum(1).numpy()))
    matrix = csr_matrix((value[real].numpy(), items[real].numpy(), offsets), shape=(len(users), m))
    return torch.from_numpy(matrix.T @ users.numpy())  # ten times as fast as index_add_ here


def most_of_users(counts: np.ndarray, items: int, objective: Objective) -> tuple[float, float, float]:
    """What users with so many interactions can add to sums, whatever their histories and the table are.

    A user's p is the least of Σ (p·q_i − 1)² + s |p|² + …, s = λ (c + a m), which is c at p = 0. So Σ r_i² + s |p|² ≤ c
    for its residuals r: |p|² ≤ c / s, and |r_i p| ≤ c / (2 √s).

    Args:
        counts: (k,) c of each user. items: m.

    Returns:
        The largest trace of their P; the largest row of their gradient that one of them can add; and all together.
    """
    ridge = objective.ridge * (counts + objective.weight * items)
    rows = counts / (2 * np.sqrt(ridge))
    return float((counts / ridge).sum()), float(rows.max(initial=0.0)), float(rows.sum())


def beyond_users(sums: Mapping[str, np.ndarray], counts: np.ndarray, items: int, objective: Objective) -> str:
    """What is wrong with sums that are said to be of these users, in words; empty if nothing is.

    Args:
        sums: in this order, by the names that are said: touched rows (t, d) of a gradient, the users behind each (t,),
            and P, one (d, d) or several.
        counts, items, objective: see `most_of_users`.
    """
    (of_rows, rows), (_, behind), (of_gram, gram) = sums.items()
    trace, one, together = most_of_users(counts, items, objective)
    if (size := float(np.trace(gram, axis1=-2, axis2=-1).max())) > trace * _ROUNDED:
        return f"'{of_gram}' has trace {size:.3g}, more than {trace:.3g}: these users have none such"
    length = np.linalg.norm(rows.astype(np.float64), axis=1)
    most = np.minimum(behind * one, together) * _ROUNDED
    if bool((length > most).any()):
        at = int((length - most).argmax())
        return f"'{of_rows}' has a row of norm {length[at]:.3g}, more than {most[at]:.3g}: these users have none such"
    return ""


@dataclass(frozen=True)
class FoldInScores:
    """Scores p · q of users folded in with recency; a component of `evaluation.scorers.HistoryScorer`."""

    fold_in: FoldIn
    recency: Recency

    def scores(self, history: History, who: IntArray) -> tuple[Tensor, None]:
        """(k', m)."""
        return self.fold_in.of(history, who, self.recency) @ self.fold_in.rows[:-1].T, None
