"""Some of a scorer's users: a sample, or those who are asked for something."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.evaluation.ranking import Part
from fedem_flwr.protocol.split import IntArray, Split

if TYPE_CHECKING:
    from fedem_flwr.evaluation.cohort import Scorer


class OfSome:
    """Some of a scorer's users, scored as it scores them.

    Args:
        who: (k',) their positions.
    """

    def __init__(self, scorer: Scorer, who: IntArray) -> None:
        self._scorer, self._who = scorer, who
        self.users, self.device, self.by_part = scorer.users, scorer.device, scorer.by_part

    def counts(self) -> np.ndarray:
        """(k,) training interactions of each user; also of those that are not scored."""
        return self._scorer.counts()

    def blocks(self) -> list[Tensor]:
        """Positions of these users, in chunks no larger than the scorer's own."""
        largest = max((len(block) for block in self._scorer.blocks()), default=1)
        return list(torch.from_numpy(self._who).to(self.device).split(max(1, largest))) if len(self._who) else []

    def scores(self, who: Tensor, part: Part) -> tuple[Tensor, Tensor | None]:
        """See `evaluation.cohort.Scorer`."""
        return self._scorer.scores(who, part)


def asked_only(scorer: Scorer, split: Split) -> Scorer:
    """A scorer without the users who have no target in a split; itself, where all have one."""
    asked = split.asked(scorer.users)
    return scorer if asked is None else OfSome(scorer, asked)
