"""The server's side of groups of similar users: their centres, and a table each that is pulled to the global one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedem_flwr.aggregation.newton import Newton, newton_step


def moved_centres(centres: Tensor, sums: Tensor, members: Tensor) -> Tensor:
    """(G, d) centres of norm 1 from sums of embeddings (spherical k-means); a group without members keeps its own."""
    new = torch.nn.functional.normalize(sums, dim=1).to(centres)
    return torch.where((members > 0).unsqueeze(1), new, centres)


@dataclass(frozen=True)
class GroupSums:
    """What each group's users say about its table; float64. See `training.ials.TableSums`.

    Attributes:
        gradient: (G, m, d). counts: (G, m). grams: (G, d, d). members: (G,).
    """

    gradient: Tensor
    counts: Tensor
    grams: Tensor
    members: Tensor

    @classmethod
    def zeros(cls, groups: int, items: int, dim: int) -> GroupSums:
        """Those of nobody."""

        def empty(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64)

        return cls(empty(groups, items, dim), empty(groups, items), empty(groups, dim, dim), empty(groups))

    def scaled(self, factor: float) -> GroupSums:
        """To all users."""
        return GroupSums(self.gradient * factor, self.counts * factor, self.grams * factor, self.members * factor)

    def remembering(self, old: GroupSums, counts: float, grams: float) -> GroupSums:
        """Running means with the sums of earlier rounds, apart from the gradient: the share of this round's."""
        return replace(
            self,
            counts=torch.lerp(old.counts, self.counts, counts),
            members=torch.lerp(old.members, self.members, counts),
            grams=torch.lerp(old.grams, self.grams, grams),
        )


def newton_groups(tables: Tensor, glob: Tensor, sums: GroupSums, step: Newton, pull: float) -> Tensor:
    """One step of every group's table (G, m, d) with a ridge μ = `pull` towards the global one (m, d)."""
    each = zip(tables, sums.gradient, sums.counts, sums.grams, sums.members.tolist(), strict=True)
    new = [
        newton_step(table, gradient, counts, gram, max(1.0, members), step, (glob, pull))
        for table, gradient, counts, gram, members in each
    ]
    return torch.stack(new)


def average_groups(tables: Tensor, glob: Tensor, sums: Tensor, counts: Tensor, pull: float) -> Tensor:
    """Each row of a group's table becomes the mean over its clients that trained it and `pull` times the global row.

    Rows that none of them trained stay.

    Args:
        tables: (G, m, d). glob: (m, d). sums: (G, m, d) of trained rows. counts: (G, m) clients behind them.
    """
    shrunk = (sums + pull * glob) / (counts + pull).clamp(min=1e-12).unsqueeze(-1)
    return torch.where((counts > 0).unsqueeze(-1), shrunk.to(tables), tables)
