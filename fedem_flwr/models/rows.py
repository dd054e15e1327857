"""Some rows of each of many tables, one table's after the other's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LANES = 64  # see `union`


def ragged(name: str) -> tuple[str, str, str]:
    """Names of the three arrays in which rows of a part lie in states, uploads and downloads."""
    return f"{name}-count", f"{name}-index", f"{name}-rows"


@dataclass(frozen=True)
class Rows:
    """Rows of k tables.

    Attributes:
        counts: (k,) int64, how many each table has.
        index: (N,) int32, their items, ascending inside a table. values: (N, width).
    """

    counts: Tensor
    index: Tensor
    values: Tensor

    @classmethod
    def none(cls, k: int, width: int) -> Rows:
        """No row of k tables."""
        return cls(torch.zeros(k, dtype=torch.int64), torch.zeros(0, dtype=torch.int32), torch.zeros(0, width))

    @classmethod
    def of(cls, arrays: Mapping[str, Tensor], name: str) -> Rows:
        """Those of a part, from a state or a message."""
        counts, index, values = (arrays[key] for key in ragged(name))
        return cls(counts.long(), index, values)

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """Those of several, one after the other; at least one."""
        return cls(*(torch.cat(found) for found in zip(*((p.counts, p.index, p.values) for p in parts), strict=True)))

    def named(self, name: str) -> dict[str, Tensor]:
        """What `of` reads."""
        return dict(zip(ragged(name), (self.counts, self.index, self.values), strict=True))

    def to(self, place: torch.device) -> Rows:
        """The same on a device."""
        return Rows(self.counts.to(place), self.index.to(place), self.values.to(place))

    @property
    def owner(self) -> Tensor:
        """(N,) the table of each row."""
        return torch.arange(len(self.counts), device=self.counts.device).repeat_interleave(self.counts)

    def _places(self, who: Tensor) -> Tensor:
        """Where the rows of tables `who` lie, in their order."""
        starts, counts = (self.counts.cumsum(0) - self.counts)[who], self.counts[who]
        shift = starts - (counts.cumsum(0) - counts)
        return torch.arange(int(counts.sum()), device=counts.device) + shift.repeat_interleave(counts)

    def at(self, who: Tensor) -> Rows:
        """Those of tables `who` (k',), in that order."""
        places = self._places(who)
        return Rows(self.counts[who], self.index[places], self.values[places])

    def replaced(self, who: Tensor, new: Rows) -> Rows:
        """With `new` in place of those of tables `who`; new memory."""
        counts, others = self.counts.clone(), torch.ones_like(self.counts, dtype=torch.bool)
        counts[who], others[who] = new.counts, False
        rest = others.nonzero().squeeze(1)
        total = int(counts.sum())
        found = Rows(counts, self.index.new_empty(total), self.values.new_empty(total, self.values.shape[1]))
        for where, source, places in (
            (found._places(rest), self, self._places(rest)),
            (found._places(who), new, torch.arange(len(new.index), device=counts.device)),
        ):
            found.index[where] = source.index[places]
            found.values[where] = source.values[places]
        return found

    def over(self, block: Tensor, index: Tensor, real: Tensor) -> Tensor:
        """Write these over a block (k, t, width) of rows of items (k, t), ascending, all of these among them."""
        items = 1 + int(index.max()) if index.numel() else 1
        keys = torch.arange(len(index), device=index.device).unsqueeze(1) * items + index
        flat = block[real]
        flat[torch.searchsorted(keys[real], self.owner * items + self.index)] = self.values
        block[real] = flat
        return block


def union(first: Rows, second: Rows, items: int) -> tuple[Tensor, Tensor]:
    """(k, t) int64 items in either of two tables, padded with 0, and which of them are real.

    t is a multiple of 64, so that vector units see no remainder, which they would round otherwise.
    """
    keys = torch.cat([rows.owner * items + rows.index for rows in (first, second)]).unique()
    counts = torch.bincount(keys // items, minlength=len(first.counts))
    width = -(-int(counts.max()) // LANES) * LANES if len(counts) else 0
    real = torch.arange(width, device=counts.device) < counts.unsqueeze(1)
    found = torch.zeros(real.shape, dtype=torch.int64, device=counts.device)
    found[real] = keys % items
    return found, real
