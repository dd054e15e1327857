"""Splits derived from a split, as controls."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
import torch

from fedem_flwr.protocol.split import Split, row_of
from fedem_flwr.randomness import keyed_bits

_BLOCK_USERS: Final = 4096


def shuffle_order(split: Split, seed: int) -> Split:
    """The same split with each user's training rows in a random order, keyed by (seed, user).

    What a method gains from the order of the rows is lost on it; everything else is as before. The training items of
    the result are in memory.
    """
    shuffled = np.empty(split.train_items.shape, split.train_items.dtype)
    for first in range(0, split.users, _BLOCK_USERS):
        offsets = split.train_offsets[first : first + _BLOCK_USERS + 1]
        begin, end = int(offsets[0]), int(offsets[-1])
        user = row_of(offsets)
        position = np.arange(begin, end) - offsets[user]
        bits = keyed_bits(seed, "split/order", torch.from_numpy(user + first), torch.from_numpy(position)).numpy()
        shuffled[begin:end] = split.train_items[begin:end][np.lexsort((bits, user))]
    return replace(split, train_items=shuffled)
