"""What a cohort downloaded of a shared part: one value for all, or one a receiver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Download:
    """The values of one part.

    Attributes:
        values: (r, m, d) tables, or (r, width) vectors.
        slot: (k,) which of the r values belongs to each user of the cohort; −1 where the user got none.
    """

    values: Tensor
    slot: Tensor

    @classmethod
    def for_all(cls, value: Tensor, k: int) -> Download:
        """One value (...) for each of k users."""
        return cls(value.unsqueeze(0), torch.zeros(k, dtype=torch.int64, device=value.device))

    @property
    def received(self) -> Tensor:
        """(k,) bool: who got a value."""
        return self.slot >= 0

    def rows(self, who: Tensor, items: Tensor) -> Tensor:
        """(k', t, d) rows `items` (k', t) of the tables of users `who` (k')."""
        return self.values[self.slot[who].unsqueeze(1), items]

    def of(self, who: Tensor) -> Tensor:
        """(k', ...) whole values of users `who`; a view with stride 0 where one serves all."""
        if len(self.values) == 1:
            return alike(self.values[0], len(who))
        return self.values[self.slot[who]]

    def write_over(self, own: Tensor, who: Tensor) -> None:
        """Overwrite users' own values (k', ...) with what they received, in place."""
        got = self.received[who]
        own[got] = self.of(who[got])


Downloads = Mapping[str, Download]


def alike(value: Tensor, k: int) -> Tensor:
    """A value (...) seen as (k, ...) without a copy: its leading stride is 0, also for k = 1."""
    return value.as_strided((k, *value.shape), (0, *value.stride()))


def rows_of(tables: Tensor, items: Tensor) -> Tensor:
    """(k, t, width) rows of items (k, t) of tables (k, m, width)."""
    return tables[torch.arange(len(tables), device=tables.device).unsqueeze(1), items]
