"""Blocks of users on threads, each with room of its own, for any compiled round."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from fedem_flwr.engine.block import Trained
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.fused.arrays import flat
from fedem_flwr.engine.fused.draws import Items
from fedem_flwr.engine.fused.space import Rules
from fedem_flwr.engine.merging import GATE
from fedem_flwr.engine.parallel import budget, in_parallel
from fedem_flwr.engine.samples import LANES as PADDED
from fedem_flwr.engine.samples import TrainingItems, blocks_of

if TYPE_CHECKING:
    from fedem_flwr.engine.cohort import Cohort
    from fedem_flwr.engine.downloads import Downloads

Kind = Literal["adapter", "merged", "plain"]  # Θ alone through merged rows; everything through them; rows as they lie
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

    def trained(self, who: Tensor, merging: bool, run: Callable[[TrainingItems, Draws, Kind], None]) -> None:
        """The round of users `who` (k,) in its phases: Θ where it comes first (Eq. 11), the merge (Eq. 10), the rest.

        Args:
            merging: whether they train through a merge. run: a phase, on these samples and with these draws.
        """
        cohort, learner = self.cohort, self.cohort.learner
        own = Draws(learner.seed, cohort.data.secret)
        if merging and learner.merge.fits_first:
            gate = cohort.merging.gate
            if gate is None:
                run(cohort.data, own, "adapter")
            else:
                run(gate, Draws(learner.seed, gate.secret, GATE), "adapter")
            cohort.overwrite(who, self.downloads)
        run(cohort.data, own, "merged" if merging and learner.merge.in_batches else "plain")

    def rules(self, kind: Kind) -> Rules:
        """What a phase does, whatever the method."""
        local, merge, adapter = self.cohort.learner.local, self.cohort.learner.merge, kind == "adapter"
        return Rules(
            epochs=merge.epochs if adapter else local.epochs,
            first_epoch=local.epochs if adapter else 0,
            batch_size=local.batch_size,
            negatives=local.negatives,
            early_stop=float(local.early_stop),
            lr_theta=float(merge.lr),
            rho=float(merge.rho),
            adapts=adapter or (kind == "merged" and merge.fits_in_batches),
            trains=not adapter,
        )

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
