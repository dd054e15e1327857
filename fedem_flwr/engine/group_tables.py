"""Merging of a group's item table with the global one, after FedEM (AAAI 2026, Eq. 9–11); the merge is `engine.merge`.

Users choose the group whose centre their embedding points to. Everybody in it scores with T + ρ (Q − T): T (m, d) the
group's table, Q the global one. FedEM fits ρ on the samples that trained the tables, where a private table always wins.
Here ρ is fitted on items of the clients' own histories that no table was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.engine.held_out import HeldOut
from fedem_flwr.engine.history import IntArray
from fedem_flwr.engine.merge import merged
from fedem_flwr.models.adapter import Activations, Adapter
from fedem_flwr.pulse import beat

SCORES = 1 << 22  # scores held at a time: 16 MiB
_SPREAD = 2.5  # standard deviation of a user's scores in the softmax that Θ is fitted with
_TIE = 1e-6  # a client without held-out items goes with the others

Embed = Callable[[Tensor, IntArray], Tensor]  # (m, d) a table and positions (k',) to embeddings (k', d)


@dataclass(frozen=True)
class Tables:
    """What is merged.

    Attributes:
        glob: (m, d) Q. groups: (G, m, d) the tables T. centres: (G, d) of the groups, in the space of embeddings.
    """

    glob: Tensor
    groups: Tensor
    centres: Tensor

    def choose(self, users: Tensor) -> Tensor:
        """(k,) the group whose centre has the smallest angle to each embedding (k, d)."""
        return (users @ self.centres.T).argmax(1)

    def merged(self, group: int, rho: Tensor | float) -> Tensor:
        """(m, d) T + ρ (Q − T); ρ one for all items, or (m,). ρ = 1 gives Q to the last bit."""
        weight = rho.unsqueeze(-1) if isinstance(rho, Tensor) else rho
        return merged(self.groups[group], self.glob, weight)


@dataclass(frozen=True)
class Evidence:
    """What ρ is fitted on.

    Attributes:
        held: the cut histories of k users. group: (k,) their groups.
        embed: their embeddings, given a table; of what is left of the histories.
    """

    held: HeldOut
    group: Tensor
    embed: Embed

    def blocks(self, group: int) -> Iterator[IntArray]:
        """Positions of a group's users that have held-out items, as many at a time as `SCORES` allows."""
        inside = self.group.cpu().numpy() == group
        members = np.flatnonzero(inside & (self.held.counts() > 0))
        size = max(1, SCORES // self.held.rest.items)
        return (members[start : start + size] for start in range(0, len(members), size))

    def scores(self, table: Tensor, who: IntArray) -> tuple[Tensor, Tensor]:
        """Scores (k', m) with what is left of a history at −inf, and the embeddings (k', d)."""
        users = self.embed(table, who)
        scores = users @ table.T
        items, _ = self.held.rest.padded(who)
        known = items < scores.shape[1]
        rows = torch.arange(len(who)).unsqueeze(1).expand_as(items)
        scores[rows[known].to(scores.device), items[known].to(scores.device)] = -torch.inf
        return scores, users

    def targets(self, who: IntArray, device: torch.device) -> tuple[Tensor, Tensor]:
        """Held-out items (k', L), and which of them are real."""
        items = torch.from_numpy(self.held.items[who]).to(device)
        real = items < self.held.rest.items
        return items.where(real, 0), real


def crowded(group: Tensor, groups: int, smallest: int) -> Tensor:
    """Users of groups of fewer than `smallest` move to the largest, so that no sum is of so few; where all suffice."""
    sizes = torch.bincount(group, minlength=groups)
    few = sizes[group] < smallest
    return group.masked_fill(few, int(sizes.argmax())) if bool(few.any()) else group


def centre_sums(users: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Sums (G, d) of a group's embeddings, each of norm 1, and (G,) how many they are. float64."""
    unit = torch.nn.functional.normalize(users.double(), dim=1)
    total = unit.new_zeros((groups, users.shape[1])).index_add_(0, group, unit)
    return total, torch.bincount(group, minlength=groups)


def curves(evidence: Evidence, tables: Tables, rhos: Sequence[float]) -> Tensor:
    """(k, R) Σ over a user's held-out items of log2(1 + rank) in the catalogue, for each ρ. Ties rank ahead."""
    device = tables.glob.device
    found = torch.zeros((len(evidence.group), len(rhos)), dtype=torch.float64, device=device)
    for group in range(len(tables.groups)):
        for who in evidence.blocks(group):
            targets, real = evidence.targets(who, device)
            for column, rho in enumerate(rhos):
                beat()
                scores, _ = evidence.scores(tables.merged(group, rho), who)
                found[torch.from_numpy(who).to(device), column] = _log_ranks(scores, targets, real)
    return found


def _log_ranks(scores: Tensor, targets: Tensor, real: Tensor) -> Tensor:
    """(k,) Σ over the real targets of log2(1 + rank)."""
    total = torch.zeros(len(scores), dtype=torch.float64, device=scores.device)
    for target, counts in zip(targets.unbind(1), real.unbind(1), strict=True):
        rank = (scores >= scores.gather(1, target.unsqueeze(1))).sum(1)  # the target itself is one of them
        total += torch.log2(1 + rank.double()) * counts
    return total


def own_choice(curve: Tensor, mean: Tensor, evidence: float, rhos: Sequence[float]) -> Tensor:
    """(k,) each client's ρ: the best of its own curve (k, R) plus `evidence` times the clients' mean an item (R,)."""
    best = (curve + max(evidence, _TIE) * mean.to(curve)).argmin(1)
    return torch.tensor(rhos, dtype=torch.float32, device=curve.device)[best]


@dataclass(frozen=True)
class ItemWeights:
    """ρ_i from an adapter over rows, [T_i ; Q_i − T_i], that all clients share (Eq. 9).

    Attributes:
        adapter: its shape. theta: (P,) its parameters.
    """

    adapter: Adapter
    theta: Tensor

    def forward(self, tables: Tables) -> Activations:
        """ρ (G, m), and what the backward pass needs. Rows are scaled by the global table's standard deviation."""
        scale = 1 / tables.glob.std().clamp(min=1e-12)
        each = self.theta.expand(len(tables.groups), -1)
        return self.adapter.forward(each, tables.groups * scale, (tables.glob * scale).expand_as(tables.groups))

    def gradient(self, evidence: Evidence, tables: Tables) -> tuple[Tensor, float]:
        """Gradient (P,) of the held-out items' negative log-likelihood, and its sum; embeddings are held fixed.

        A softmax over the catalogue without what is left of the history.
        """
        seen, total = self.forward(tables), 0.0
        slope = torch.zeros_like(seen.rho)
        for group in range(len(tables.groups)):
            table = tables.merged(group, seen.rho[group])
            for who in evidence.blocks(group):
                beat()
                scores, users = evidence.scores(table, who)
                targets, real = evidence.targets(who, scores.device)
                known = scores.isinf()
                scale = _SPREAD / scores.masked_fill(known, 0).std(1, keepdim=True).clamp(min=1e-12)
                logs = torch.log_softmax(scores * scale, 1)
                total -= float((logs.gather(1, targets) * real).sum(dtype=torch.float64))
                error = logs.exp() * real.sum(1, keepdim=True)
                error.scatter_add_(1, targets, -real.to(error.dtype))
                at_rows = (error * scale).T @ users  # (m, d)
                slope[group] += (at_rows * (tables.glob - tables.groups[group])).sum(1)
        each = self.theta.expand(len(tables.groups), -1).contiguous()
        return self.adapter.backward(each, seen, slope, "theta").sum(0), total
