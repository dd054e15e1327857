"""Interaction histories of a cohort, oldest first, read in blocks: the only data of clients without state."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IntArray = NDArray[np.integer]
BLOCK_FLOATS = 1 << 22  # gathered item rows held at a time, in one worker: 16 MiB


@dataclass(frozen=True, eq=False)
class History:
    """Training items of k users.

    Attributes:
        users: (k,) the users' indices in the run; they key every draw.
        items: m, the catalogue's size.
        offsets: (k + 1,) starts in `values`, and the end of the last.
        values: items, oldest first within a user. It may be mapped from disk: only the asked users' part is read.
        newest: (k,) one item a user that is newer than all of `values`, or None. Where it is there, `padded` and `csr`
            include it.
    """

    users: IntArray
    items: int
    offsets: IntArray
    values: IntArray
    newest: IntArray | None = None

    def counts(self) -> IntArray:
        """(k,) items of each user."""
        return self._counts

    @cached_property
    def _counts(self) -> IntArray:
        found: IntArray = np.diff(self.offsets) + (self.newest is not None)
        found.flags.writeable = False
        return found

    def distinct(self) -> History:
        """The same with each item once a user, where it stood last."""
        owner = np.repeat(np.arange(len(self.users)), np.diff(self.offsets))
        newest_first = (owner * np.int64(self.items) + self.values)[::-1]
        kept = np.sort(len(self.values) - 1 - np.unique(newest_first, return_index=True)[1])
        offsets = np.append(0, np.cumsum(np.bincount(owner[kept], minlength=len(self.users))))
        return History(self.users, self.items, offsets, np.asarray(self.values[kept]), self.newest)

    def with_newest(self, newest: IntArray) -> History:
        """The same histories, each with one more, newest item."""
        return History(self.users, self.items, self.offsets, self.values, newest)

    def blocks(self, who: IntArray, width: int, longest: int | None = None) -> list[IntArray]:
        """Positions `who` in blocks of similar length, whose padded (k', p, width) arrays fit `BLOCK_FLOATS`.

        The blocks depend on the users alone, not on the number of threads.

        Args:
            longest: where histories are cut to their newest items, how many.
        """
        counts = np.maximum(self.counts()[who], 1)
        if longest is not None:
            counts = np.minimum(counts, longest)
        order = np.argsort(counts, kind="stable")
        size = counts[order]
        blocks, start = [], 0
        while start < len(order):
            # ascending: the padded length is that of the block's last user
            guess = start + max(1, BLOCK_FLOATS // (width * int(size[start])))
            end = min(guess, len(order))
            fits = np.arange(1, end - start + 1) * size[start:end] * width <= BLOCK_FLOATS
            end = start + max(1, int(fits.sum()))
            blocks.append(who[order[start:end]])
            start = end
        return blocks

    def padded(self, who: IntArray, longest: int | None = None) -> tuple[Tensor, Tensor]:
        """Items (k', p) of positions `who`, right-aligned: the newest in the last column, m where there is none.

        Returns:
            The items, and (k',) how many of them are real.
        """
        ends, counts = np.asarray(self.offsets[who + 1]), self.counts()[who]
        width = int(counts.max(initial=0))
        width = width if longest is None else min(width, longest)
        age = np.arange(width - 1, -1, -1)  # newer items than this
        flat = ends[:, None] - age - (self.newest is None)
        real = age < counts[:, None]
        last = max(0, len(self.values) - 1)
        taken = np.clip(flat, 0, last)
        items = self.values[taken] if len(self.values) else np.zeros(taken.shape, np.int64)
        if self.newest is not None and width:
            items[:, -1] = self.newest[who]
        padded = np.where(real, items, self.items).astype(np.int64)
        return torch.from_numpy(padded), torch.from_numpy(np.minimum(counts, width).astype(np.int64))
