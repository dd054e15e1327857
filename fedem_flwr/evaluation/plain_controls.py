"""Ranks under scores that are the same for everybody, or random, without a score for each user and item."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.evaluation.ranking import Part
from fedem_flwr.protocol.split import IntArray, Split, sorted_unique_csr, user_rows
from fedem_flwr.randomness import keyed_integers

Ranks = dict[str, Tensor]


def excluded(split: Split, users: IntArray, which: Part) -> tuple[IntArray, IntArray, IntArray]:
    """What competes with nobody's held-out item in the whole catalogue: the user's own items.

    Returns:
        (k,) the targets; (k + 1,) offsets and (e,) items, each once a user and without the target.
    """
    here = split.rows(users)
    rows, flat = user_rows(split.train_offsets, here)
    items, targets = np.asarray(split.train_items[flat], np.int64), np.asarray(split.validation[here], np.int64)
    if which == "test":
        rows, items = np.append(rows, np.arange(len(users))), np.append(items, targets)
        targets = np.asarray(split.test[here], np.int64)
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
    return {"full": torch.from_numpy(full), "sampled99": torch.from_numpy(1 + ahead.sum(1))}


def drawn_ranks(split: Split, users: IntArray, which: Part) -> Ranks:
    """Ranks under random scores: themselves uniform over the candidates; keyed by the split's seed and the user."""
    _, offsets, _ = excluded(split, users, which)
    candidates = split.items - np.diff(offsets)  # the target is one
    negatives = np.asarray(split.negatives[split.rows(users)])
    sampled, who = 1 + (negatives >= 0).sum(1), torch.from_numpy(users)

    def drawn(way: str, count: IntArray) -> Tensor:
        return 1 + keyed_integers(torch.from_numpy(count), split.seed, f"control/random/{which}/{way}", who)

    return {"full": drawn("full", candidates), "sampled99": drawn("sampled99", sampled)}
