"""Evaluation negatives: 99 items a user never met, drawn from (seed, user) alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import torch

from fedem_flwr.protocol.split import EVALUATION_NEGATIVES, IntArray, row_of, sorted_unique_csr
from fedem_flwr.randomness import keyed_bits

_CHUNK: Final = 512  # users at once: what is in work fits into the processor's cache
_CANDIDATES: Final = 128  # draws that hold 99 distinct ones where at least _SPARSE_FROM are possible
_POSITION_BITS: Final = 7  # that number a candidate
_SPARSE_FROM: Final = 10 * EVALUATION_NEGATIVES


def draw_negatives(offsets: IntArray, items: IntArray, m: int, *, seed: int, chunk: int = _CHUNK) -> IntArray:
    """Draw 99 evaluation negatives a user, uniformly without replacement, keyed by (seed, user).

    Args:
        offsets: (n + 1,) CSR row starts of what each user interacted with.
        items: (e,) its items, sorted and unique inside a user.
        m: number of items of the catalogue.
        seed: the split's.
        chunk: users per block; memory is about 4 KB times this.

    Returns:
        (n, 99) item codes, padded at the end with -1 where fewer than 99 items are left.
    """
    users = np.arange(len(offsets) - 1, dtype=np.int64)
    negatives = np.empty((len(users), EVALUATION_NEGATIVES), np.int64)
    for start in range(0, len(users), chunk):
        part = offsets[start : start + chunk + 1]
        block = users[start : start + chunk]
        negatives[block] = _outside(block, part - part[0], items[part[0] : part[-1]], m, seed)
    return negatives


def negative_blocks(offsets: IntArray, items: IntArray, held_out: IntArray, m: int, seed: int) -> Iterator[IntArray]:
    """The same for users given by their training items, in any order and with repeats, and held-out items.

    Args:
        offsets: (n + 1,) CSR row starts of the training items.
        items: (nnz,) training items; may be mapped from a file, as each user's are read once.
        held_out: (n, h) further items of each user.
        m: number of items of the catalogue.
        seed: the split's.

    Yields:
        (k, 99) item codes of the next k users.
    """
    for start in range(0, len(held_out), _CHUNK):
        part = offsets[start : start + _CHUNK + 1]
        further = held_out[start : start + _CHUNK]
        local = np.arange(len(further), dtype=np.int64)
        user = np.concatenate([row_of(part), np.repeat(local, further.shape[1])])
        item = np.concatenate([items[part[0] : part[-1]], further.ravel()])
        yield _outside(start + local, *sorted_unique_csr(user, item, len(local), m), m, seed)


def _outside(users: IntArray, offsets: IntArray, items: IntArray, m: int, seed: int) -> IntArray:
    """(k, 99) negatives of some users, given what they interacted with: CSR, sorted, unique inside a user."""
    row = row_of(offsets)
    ranks = _distinct_ranks(users, m - np.diff(offsets), seed)
    # The r-th item outside e_0 < e_1 < ... is r + #{j: e_j - j <= r}; a stride of m + 1 keeps rows apart.
    excluded = row * (m + 1) + items - (np.arange(len(items)) - offsets[row])
    wanted = np.arange(len(users))[:, None] * (m + 1) + ranks
    before = np.searchsorted(excluded, wanted.ravel(), side="right").reshape(ranks.shape) - offsets[:-1, None]
    return np.where(ranks < 0, -1, ranks + before)


def _distinct_ranks(users: IntArray, available: IntArray, seed: int) -> IntArray:
    """(k, 99) distinct uniform ranks in [0, available), padded with -1; a row depends on (seed, user) only.

    In a large complement the first 99 distinct keyed ranks are taken; a small one is shuffled whole.
    """
    ranks = np.full((len(users), EVALUATION_NEGATIVES), -1, np.int64)
    large = np.flatnonzero(available >= _SPARSE_FROM)
    columns = torch.arange(_CANDIDATES)
    drawn = keyed_bits(seed, "split/negatives", torch.from_numpy(users[large])[:, None], columns)
    candidates = (drawn.numpy().view(np.uint64) % available[large, None].view(np.uint64)).view(np.int64)  # (k, 128)
    packed = np.sort((candidates << _POSITION_BITS) | columns.numpy(), axis=1)
    ordered = packed >> _POSITION_BITS
    first = np.ones(packed.shape, bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    fresh = np.empty(packed.shape, bool)
    np.put_along_axis(fresh, packed & ((1 << _POSITION_BITS) - 1), first, axis=1)
    fresh &= np.cumsum(fresh, axis=1, dtype=np.uint8) <= EVALUATION_NEGATIVES
    enough = fresh.sum(axis=1) == EVALUATION_NEGATIVES
    ranks[large[enough]] = candidates[enough][fresh[enough]].reshape(-1, EVALUATION_NEGATIVES)
    # A complement that is small, or (never seen) a row with more than 29 repeats: shuffle it whole.
    rest = np.setdiff1d(np.arange(len(users)), large[enough])
    block = 1 + 2**22 // (1 + int(available[rest].max(initial=0)))
    for start in range(0, len(rest), block):
        part = rest[start : start + block]
        ranks[part] = _shuffled_ranks(users[part], available[part], seed)
    return ranks


def _shuffled_ranks(users: IntArray, available: IntArray, seed: int) -> IntArray:
    """The same for any complement, by ordering all its ranks by a keyed draw: O(available) a user."""
    columns = torch.arange(int(available.max()))
    keys = keyed_bits(seed, "split/negatives/shuffle", torch.from_numpy(users)[:, None], columns).numpy()
    keys[columns.numpy() >= available[:, None]] = np.iinfo(np.int64).max  # beyond the row's complement: last
    order = np.argsort(keys, axis=1, kind="stable")[:, :EVALUATION_NEGATIVES].astype(np.int64)
    ranks = np.full((len(users), EVALUATION_NEGATIVES), -1, np.int64)
    ranks[:, : order.shape[1]] = np.where(np.arange(order.shape[1]) < available[:, None], order, -1)
    return ranks
