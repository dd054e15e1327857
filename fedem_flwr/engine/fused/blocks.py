"""Blocks of users on threads, each with room of its own, for any compiled round."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedem_flwr.engine.block import Trained
from fedem_flwr.engine.fused.draws import Items
from fedem_flwr.engine.fused.tables import flat
from fedem_flwr.engine.parallel import budget, in_parallel
from fedem_flwr.engine.samples import LANES as PADDED
from fedem_flwr.engine.samples import TrainingItems, blocks_of

if TYPE_CHECKING:
    from fedem_flwr.engine.cohort import Cohort
    from fedem_flwr.engine.downloads import Downloads

_BLOCK_FLOATS = 1 << 18  # rows that a thread is given at a time: few enough that all have something to do to the end


@dataclass(frozen=True, eq=False)
class CompiledRound(ABC):
    """One round of some users of a cohort.

    Attributes:
        cohort: whom.
        downloads: what they downloaded. round: from 1.
        reported: whether samples and rows are looked at afterwards. keep: also the rows before.
    """

    cohort: Cohort
    downloads: Downloads
    round: int
    reported: bool
    keep: bool

    @property
    @abstractmethod
    def floats_of_a_row(self) -> int:
        """Numbers of one item's trained rows."""

    @abstractmethod
    def block(self, who: Tensor, size: Tensor, merging: bool, rooms: dict[str, Any]) -> Trained:
        """Train users `who` (k,) with `size` (k,) samples.

        Args:
            merging: whether they train through a merge. rooms: of the thread, kept from block to block.
        """

    def train(self, who: Tensor, size: Tensor, merging: Tensor) -> Iterator[tuple[Tensor, Trained]]:
        """Blocks of users `who` (k,), largest first, as they are trained.

        Args:
            size: (k,) samples. merging: (k,) who trains through a merge.
        """
        device, touched = self.cohort.device, size.clamp(max=self.cohort.data.items)
        blocks = list(blocks_of(size, touched, merging.long(), self.floats_of_a_row, budget(_BLOCK_FLOATS, device)))
        blocks.sort(key=lambda block: (-int(size[block].max()), int(block[0])))
        rooms: SimpleQueue[dict[str, Any]] = SimpleQueue()
        for _ in range(torch.get_num_threads()):
            rooms.put({})

        def train_block(index: Tensor) -> Trained:
            room = rooms.get()
            try:
                return self.block(who[index], size[index], bool(merging[index[0]]), room)
            finally:
                rooms.put(room)

        return zip(blocks, in_parallel(train_block, blocks, device), strict=True)

    def reported_rows(self, size: Tensor) -> int:
        """How many rows of each user of a block are handed on."""
        return -(-int(size.clamp(max=self.cohort.data.items).max()) // PADDED) * PADDED if self.reported else 0


def items_of(data: TrainingItems) -> Items:
    """The arrays behind training items."""
    offsets, decoys = data.decoys or (torch.zeros_like(data.positive_offsets), data.positive_items[:0])
    return Items(
        flat(data.users),
        data.items,
        flat(data.positive_offsets),
        flat(data.positive_items),
        flat(data.forbidden_offsets),
        flat(data.forbidden_items),
        flat(offsets),
        flat(decoys),
    )
