"""Ranks of held-out items and the metrics made of them, on CPU or CUDA.

Comparisons are written so that doubt counts against the recommender: an item is ahead of the target unless
its score is strictly lower, so ties and NaN scores rank ahead, and a target without a finite score is a miss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.protocol.split import IntArray, Split, user_rows

CUTOFFS = (5, 10, 20)
METRICS = (*(f"{kind}@{cutoff}" for cutoff in CUTOFFS for kind in ("hr", "ndcg")), "mrr")

LISTS = ("full", "sampled99")

Part = Literal["validation", "test"]
PARTS: tuple[Part, ...] = ("validation", "test")

# Each user's terms are rounded to multiples of 2**-32: float64 sums of up to two million of them are then
# exact, so that merged sums do not depend on how users are spread over nodes.
_QUANTA = 2.0**32

NEW = -2
"""In a rank's place: the target is an item that the model has never met."""
UNSERVED = -3
"""In a rank's place: nothing can be scored for this user."""


@dataclass(frozen=True)
class MetricSums:
    """Metric sums over users, which merge exactly: what a client uploads instead of its users' ranks.

    Attributes:
        count: number of users.
        nonfinite: how many of them had a target score that was not finite (counted as misses).
        sums: metric name (`METRICS`) to its sum over users.
    """

    count: int
    nonfinite: int
    sums: dict[str, float]

    @classmethod
    def empty(cls) -> MetricSums:
        """The sums over no users: the neutral element of ``+``."""
        return cls(0, 0, dict.fromkeys(METRICS, 0.0))

    @classmethod
    def from_ranks(cls, ranks: Tensor) -> MetricSums:
        """Sum the metrics of (k,) ranks from 1, where 0, `NEW` and `UNSERVED` are misses.

        HR@c = 1 and NDCG@c = 1 / log2(rank + 1) for ranks up to c, else 0; MRR = 1 / rank at any rank.
        """
        return cls.of_each(ranks[None])[0]

    @classmethod
    def of_each(cls, ranks: Tensor) -> list[MetricSums]:
        """The same of every row of (r, k) ranks, at the price of one where k is small."""
        rows, count = ranks.shape
        if not ranks.numel():
            return [cls.empty()] * rows
        found = ranks > 0
        rank = ranks.clamp(min=1).to(torch.float64)
        quanta = torch.stack([1 / torch.log2(rank + 1), 1 / rank]).mul_(_QUANTA).round_()  # (2, r, k)
        inside = found & (ranks <= ranks.new_tensor(CUTOFFS)[:, None, None])  # (cutoffs, r, k)
        hits, gains = inside.sum(-1).tolist(), ((quanta[0] * inside).sum(-1) / _QUANTA).tolist()  # (cutoffs, r)
        reciprocal, lost = ((quanta[1] * found).sum(-1) / _QUANTA).tolist(), (ranks == 0).sum(-1).tolist()  # (r,)
        made = []
        for row in range(rows):
            sums = {"mrr": reciprocal[row]}
            for place, cutoff in enumerate(CUTOFFS):
                sums |= {f"hr@{cutoff}": float(hits[place][row]), f"ndcg@{cutoff}": gains[place][row]}
            made.append(cls(count, lost[row], {name: sums[name] for name in METRICS}))
        return made

    def __add__(self, other: MetricSums) -> MetricSums:
        sums = {name: self.sums[name] + other.sums[name] for name in METRICS}
        return MetricSums(self.count + other.count, self.nonfinite + other.nonfinite, sums)

    def means(self) -> dict[str, float]:
        """Each metric's mean over users; NaN where there are none."""
        return {name: self.sums[name] / self.count if self.count else float("nan") for name in METRICS}


def full_ranks(scores: Tensor, targets: Tensor, excluded_rows: Tensor, excluded_items: Tensor) -> Tensor:
    """Rank one target a row among the whole catalogue without the excluded items.

    Args:
        scores: (k, m) floats.
        targets: (k,) int64 item codes; an excluded target is ranked all the same.
        excluded_rows: (e,) int64 rows of ``scores``.
        excluded_items: (e,) int64 item codes left out of those rows; pairs may repeat.

    Returns:
        (k,) int64: 1 + the number of other items whose score is not below the target's; 0 where the target's
        score is not finite. Memory beside ``scores``: 5 bytes a cell.
    """
    column = targets[:, None]
    target_scores = scores.gather(1, column)  # (k, 1)
    ahead = (scores < target_scores).logical_not_()  # (k, m)
    ahead[excluded_rows, excluded_items] = False
    ahead.scatter_(1, column, False)
    ranks = 1 + ahead.sum(1, dtype=torch.int32).to(torch.int64)
    return ranks.where(torch.isfinite(target_scores[:, 0]), 0)


def sampled_ranks(scores: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """Rank one target a row among its sampled negatives.

    Args:
        scores: (k, m) floats.
        targets: (k,) int64 item codes.
        negatives: (k, 99) int64 item codes; -1 is padding and competes with nobody.

    Returns:
        (k,) int64 ranks as in `full_ranks`.
    """
    target_scores = scores.gather(1, targets[:, None])  # (k, 1)
    competitors = scores.gather(1, negatives.clamp(min=0))  # (k, 99)
    ahead = ~(competitors < target_scores) & (negatives >= 0)
    return (1 + ahead.sum(1)).where(torch.isfinite(target_scores[:, 0]), 0)


class Targets:
    """What some users are asked for and what that is ranked among, made once for any scores of theirs.

    Args:
        split: gives the targets, exclusions and negatives.
        users: (k,) user codes, one for each row of scores.
        device: of the scores.
        which: the held-out item to rank.
    """

    def __init__(self, split: Split, users: IntArray, device: torch.device, *, which: Part) -> None:
        self._split, self._users, self._device = split, users, device
        targets, rows, excluded = targets_of(split, users, which)
        self._wanted, self._rows, self._excluded = map(self._tensor, (np.maximum(targets, 0), rows, excluded))
        self._new = None if split.histories is None else self._tensor(targets) < 0

    @cached_property
    def _negatives(self) -> Tensor:
        return self._tensor(self._split.negatives[self._split.rows(self._users)])

    def _tensor(self, values: IntArray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.int64)).to(self._device)  # int32 in a loaded split

    def ranks(self, scores: Tensor, lists: Sequence[str] = LISTS) -> dict[str, Tensor]:
        """(k,) ranks by (k, m) scores, see `held_out_ranks`; of the lists that are wanted, by name."""
        found: dict[str, Tensor] = {}
        if "full" in lists:
            found["full"] = full_ranks(scores, self._wanted, self._rows, self._excluded)
        if "sampled99" in lists:
            found["sampled99"] = sampled_ranks(scores, self._wanted, self._negatives)
        if self._new is None:
            return found
        unserved, new = scores.isnan().all(1), self._new
        return {way: ranks.masked_fill(unserved, UNSERVED).masked_fill(new, NEW) for way, ranks in found.items()}


def held_out_ranks(split: Split, users: IntArray, scores: Tensor, *, which: Part) -> dict[str, Tensor]:
    """Rank each user's held-out item both ways.

    The whole catalogue leaves out what the user is scored from and, for ``test``, the validation item, but never
    the target itself, which under ``paper`` may also stand in the training rows. Where a split has histories, users
    have one target, `NEW` stands for those that are new items, and `UNSERVED` where a user's scores are all NaN.

    Args:
        split, users, which: see `Targets`.
        scores: (k, m) floats, on any device.

    Returns:
        ``{"full": ..., "sampled99": ...}``: (k,) ranks as in `full_ranks`.
    """
    return Targets(split, users, scores.device, which=which).ranks(scores)


def targets_of(split: Split, users: IntArray, which: Part) -> tuple[IntArray, IntArray, IntArray]:
    """What users (k,) are asked for, and what it is not ranked among.

    Returns:
        (k,) targets, `NEW_ITEM` where they are none of the catalogue's; (e,) rows and (e,) items left out of them.
    """
    here = split.rows(users)
    offsets, items = split.known()
    rows, flat = user_rows(offsets, here)
    excluded = items[flat]
    targets = (split.validation if which == "validation" else split.test)[here]
    if which == "test" and split.histories is None:
        rows, excluded = np.append(rows, np.arange(len(users))), np.append(excluded, split.validation[here])
    return targets, rows, excluded


def evaluate_scores(split: Split, users: IntArray, scores: Tensor, *, which: Part) -> dict[str, MetricSums]:
    """The sums over users of `held_out_ranks`, which has the arguments: ``{"full": ..., "sampled99": ...}``."""
    ranks = held_out_ranks(split, users, scores, which=which)
    return {way: MetricSums.from_ranks(found) for way, found in ranks.items()}


def user_terms(ranks: Tensor) -> dict[str, Tensor]:
    """Each user's ``hr@10`` and ``ndcg@10``, (k,) float32, of (k,) ranks as in `full_ranks`."""
    inside = (ranks > 0) & (ranks <= 10)
    gain = 1 / torch.log2(ranks.clamp(min=1).to(torch.float64) + 1)
    return {"hr@10": inside.to(torch.float32), "ndcg@10": (gain * inside).to(torch.float32)}
