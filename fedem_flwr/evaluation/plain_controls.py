"""Ranks under scores that are the same for everybody, or random, without a score for each user and item."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.evaluation.ranking import NEW, Part, targets_of
from fedem_flwr.protocol.split import IntArray, Split, sorted_unique_csr
from fedem_flwr.randomness import keyed_integers

Ranks = dict[str, Tensor]


def excluded(split: Split, users: IntArray, which: Part) -> tuple[IntArray, IntArray, IntArray]:
    """What competes with nobody's held-out item in the whole catalogue: the user's own items.

    Returns:
        (k,) the targets; (k + 1,) offsets and (e,) items, each once a user and without the target.
    """
    targets, rows, items = (np.asarray(each, np.int64) for each in targets_of(split, users, which))
    others = items != targets[rows]
    offsets, left = sorted_unique_csr(rows[others], items[others], len(users), split.items)
    return targets, np.asarray(offsets), np.asarray(left)


def ranks_of_counts(split: Split, users: IntArray, counts: IntArray, which: Part) -> Ranks:
    """The ranks of `ranking.held_out_ranks` where an item's score is its count, for everybody.

    Args:
        users: (k,) codes. counts: (m,) whole numbers.
    """
    targets, offsets, own = excluded(split, users, which)
    row = np.repeat(np.arange(len(users)), np.diff(offsets))
    mine = np.bincount(row[counts[own] >= counts[targets][row]], minlength=len(users))
    behind = np.searchsorted(np.sort(counts), counts[targets])  # items with a lower count
    negatives = np.asarray(split.negatives[split.rows(users)])
    ahead = (counts[np.maximum(negatives, 0)] >= counts[targets][:, None]) & (negatives >= 0)
    full = len(counts) - behind - mine  # the target itself makes up for the 1 that ranks begin with
    ranks = {"full": full, "sampled99": 1 + ahead.sum(1)}
    return {way: torch.from_numpy(np.where(targets < 0, NEW, found)) for way, found in ranks.items()}


def drawn_ranks(split: Split, users: IntArray, which: Part) -> Ranks:
    """Ranks under random scores: themselves uniform over the candidates; keyed by the split's seed and the user."""
    targets, offsets, _ = excluded(split, users, which)
    candidates = split.items - np.diff(offsets)  # the target is one
    negatives = np.asarray(split.negatives[split.rows(users)])
    sampled, who = 1 + (negatives >= 0).sum(1), torch.from_numpy(users)

    def drawn(way: str, count: IntArray) -> Tensor:
        ranks = 1 + keyed_integers(torch.from_numpy(count), split.seed, f"control/random/{which}/{way}", who)
        return ranks.masked_fill(torch.from_numpy(targets < 0), NEW)

    return {"full": drawn("full", candidates), "sampled99": drawn("sampled99", sampled)}
