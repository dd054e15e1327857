"""Items are numbered as they appear in the rows that are kept."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fedem_flwr.data.interactions import first_appearance
from fedem_flwr.protocol.split import IntArray


@dataclass
class Numbering:
    """Item codes by first appearance over the kept rows of one block after the other.

    Attributes:
        codes: (catalogue,) the code of each item, -1 as long as it has none.
        seen: catalogue numbers, in the order of their codes, in pieces.
        count: how many items have a code.
    """

    codes: IntArray
    seen: list[IntArray] = field(default_factory=list)
    count: int = 0

    @classmethod
    def of(cls, items: int, keep: bool) -> Numbering:
        """Nobody numbered yet; or, to keep them, every item by its place in the catalogue."""
        if keep:
            return cls(np.arange(items), [np.arange(items)], items)
        return cls(np.full(items, -1, np.int64))

    def meet(self, item: IntArray) -> None:
        """Give codes to the items that have none yet."""
        unknown = item[self.codes[item] < 0]
        if len(unknown):
            fresh = first_appearance(unknown)[1]
            self.codes[fresh] = np.arange(self.count, self.count + len(fresh))
            self.count += len(fresh)
            self.seen.append(fresh)
