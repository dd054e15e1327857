"""What a kernel is told beside a client's numbers: widths, tiles, rates of Adam's steps. None depends on the cohort."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedem_flwr.engine.merge import Merge
from fedem_flwr.engine.optimizer import BETA_1, BETA_2

_LEAST, _MOST = 16, 256  # rows of a tile: what a matrix product takes at least, and what registers hold
NUMBERS, THROUGH_MERGE = 2048, 1024  # of a tile of rows: so many that registers hold nearly all of a program


def widened(count: int) -> int:
    """The power of two, at least 16, that so many numbers are padded to."""
    return max(_LEAST, 1 << max(0, count - 1).bit_length())


def tile_of(dim: int, batch: int, numbers: int = NUMBERS) -> int:
    """Rows (d,) that a program looks at together, at most so many numbers, given the samples of a batch (0: all)."""
    return min(widened(batch or _MOST), max(_LEAST, numbers // widened(dim)), _MOST)


@dataclass(frozen=True)
class Shape:
    """Of an adapter with two hidden layers; without one, of nothing.

    Attributes:
        h1, h2: widths. wide1, wide2: what they are padded to.
    """

    h1: int = 1
    h2: int = 1
    wide1: int = _LEAST
    wide2: int = _LEAST

    @classmethod
    def of(cls, merge: Merge) -> Shape:
        """That of a merge."""
        if not merge.learned:
            return cls()
        h1, h2 = merge.adapter.hidden
        return cls(h1, h2, widened(h1), widened(h2))


def scales_of(steps: int, device: torch.device) -> Tensor:
    """(steps + 1, 2) what step t of Adam multiplies the first moment with, at a rate of 1, and the second's root."""
    t = torch.arange(steps + 1, dtype=torch.float64, device=device).clamp(min=1)
    return torch.stack([1 / (1 - BETA_1**t), (1 - BETA_2**t).rsqrt()], 1).float()


def sent(index: Tensor, device: torch.device) -> Tensor:
    """Numbers brought to the device, for which nobody waits."""
    return index if device.type == "cpu" else index.pin_memory().to(device, non_blocking=True)
