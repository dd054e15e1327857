"""Leave-one-out splits under the two evaluation protocols: pure functions of (interactions, seed).

``paper`` is what the literature's tables were measured with; ``strict`` counts each (user, item) pair once
and uses no order where a data set has no times. Rows are sorted by time and, at equal times, by file order.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from fedem_flwr.data.interactions import Interactions
from fedem_flwr.errors import InputError, suggest
from fedem_flwr.randomness import keyed_bits

Protocol = Literal["paper", "strict"]
IntArray = NDArray[np.int64]

EVALUATION_NEGATIVES = 99
MIN_ROWS = 3  # one row each for training, validation and test
_CANDIDATES = 128  # draws that hold 99 distinct ones where at least _SPARSE_FROM are possible
_SPARSE_FROM = 10 * EVALUATION_NEGATIVES
_ARRAYS = ("train_offsets", "train_items", "validation", "test", "negatives", "user_ids", "item_ids")
_SETTINGS = ("dataset", "protocol", "seed", "has_times", "users", "items", "interactions")
_SETTINGS_FILE = "split.json"


@dataclass(frozen=True, eq=False)
class Split:
    """One leave-one-out split; user and item codes are dense and numbered by first appearance.

    Attributes:
        dataset, protocol, seed: what the split is a function of.
        has_times: whether the data set has times; without them the order of training items must not be used.
        users, items, interactions: n, m and the number of rows kept, in all three parts.
        train_offsets, train_items: CSR (n + 1,), (nnz,), oldest first; ``paper`` keeps duplicate rows.
        validation, test: (n,) the held-out item of each user.
        negatives: (n, 99) distinct items the user never met, padded with -1 where fewer are left.
        user_ids, item_ids: (n,) and (m,) original labels.
    """

    dataset: str
    protocol: Protocol
    seed: int
    has_times: bool
    users: int
    items: int
    interactions: int
    train_offsets: IntArray
    train_items: IntArray
    validation: IntArray
    test: IntArray
    negatives: IntArray
    user_ids: NDArray[Any]
    item_ids: NDArray[Any]

    def train_csr(self) -> csr_matrix:
        """Binary (n, m) float32 matrix of the training pairs, duplicates counted once, columns sorted."""
        offsets, items = _sorted_unique_csr(_row_of(self.train_offsets), self.train_items, self.users, self.items)
        return csr_matrix((np.ones(len(items), np.float32), items, offsets), shape=(self.users, self.items))

    def forbidden(self, users: IntArray | None = None) -> tuple[IntArray, IntArray]:
        """What training negatives of some or all users may not be: CSR (k + 1,), (e,), sorted, unique inside a user.

        ``strict``: the user's training items. ``paper``: the user's items of all parts, which is the leak of
        that protocol: beyond the training items, only the held-out ones are never trained as negatives.
        """
        users = np.arange(self.users, dtype=np.int64) if users is None else users
        user, positions = user_rows(self.train_offsets, users)
        item = self.train_items[positions]
        if self.protocol == "paper":
            user = np.concatenate([user, np.arange(len(users)), np.arange(len(users))])
            item = np.concatenate([item, self.validation[users], self.test[users]])
        return _sorted_unique_csr(user, item, len(users), self.items)

    def save(self, directory: Path) -> None:
        """Write ``<array>.npy`` files and ``split.json``; a reader sees the whole split or none of it."""
        directory.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        try:
            new = work / "new"
            new.mkdir()
            for name in _ARRAYS:
                np.save(new / f"{name}.npy", getattr(self, name), allow_pickle=False)
            (new / _SETTINGS_FILE).write_text(json.dumps({name: getattr(self, name) for name in _SETTINGS}))
            if directory.exists():
                os.rename(directory, work / "old")  # a folder that is not empty cannot be renamed over
            os.rename(new, directory)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    @classmethod
    def load(cls, directory: Path, mmap: bool = True) -> Split:
        """Read a saved split; with ``mmap`` the arrays stay on disk until they are touched.

        Raises:
            InputError: a file is missing or damaged.
        """
        mode: Literal["r"] | None = "r" if mmap else None
        try:
            settings = json.loads((directory / _SETTINGS_FILE).read_text())
            arrays = {name: np.load(directory / f"{name}.npy", mmap_mode=mode) for name in _ARRAYS}
            split = cls(**{name: settings[name] for name in _SETTINGS}, **arrays)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"damaged split in {directory}: {error}; delete it and make it again") from error
        if not split._sizes_agree():
            raise InputError(f"damaged split in {directory}: sizes disagree; delete it and make it again")
        return split

    def _sizes_agree(self) -> bool:
        return (
            self.train_offsets.shape == (self.users + 1,)
            and self.train_items.shape == (int(self.train_offsets[-1]),)
            and self.validation.shape == self.test.shape == self.user_ids.shape == (self.users,)
            and self.negatives.shape == (self.users, EVALUATION_NEGATIVES)
            and self.item_ids.shape == (self.items,)
        )


def make_split(interactions: Interactions, protocol: Protocol, *, seed: int, min_interactions: int = 10) -> Split:
    """Leave one out: the last row of a user is the test item, the second last the validation item.

    Args:
        interactions: rows in file order; rows with rating <= 0 are dropped, none where there are no ratings.
        protocol: ``paper`` or ``strict``.
        seed: keys the evaluation negatives and, under ``strict`` without times, the held-out items.
        min_interactions: users with fewer rows (``strict``: fewer distinct items) are dropped.

    Raises:
        InputError: unknown protocol, ``min_interactions`` below 3, no user left, or fewer than 2 items.
    """
    if protocol not in get_args(Protocol):
        raise InputError(f"unknown protocol '{protocol}'{suggest(str(protocol), get_args(Protocol))}")
    if min_interactions < MIN_ROWS:
        raise InputError(f"min_interactions is {min_interactions}: a split needs >= {MIN_ROWS} rows a user")
    kept = interactions.take(_kept_rows(interactions, protocol, min_interactions))
    if not kept.rows:
        raise InputError(
            f"no user has >= {min_interactions} rows in '{kept.name}'; lower it (--set data.min_interactions=5)"
        )
    if kept.items < 2:
        raise InputError(f"'{kept.name}' has fewer than 2 items after the filter; use a larger data set")

    order = np.lexsort((_sort_key(kept, protocol, seed), kept.user))  # stable: ties stay in file order
    item, counts = kept.item[order], np.bincount(kept.user)
    ends = np.cumsum(counts)
    held_out = np.zeros(kept.rows, bool)
    held_out[ends - 1] = held_out[ends - 2] = True
    interacted = _sorted_unique_csr(kept.user, kept.item, kept.users, kept.items)
    return Split(
        dataset=kept.name,
        protocol=protocol,
        seed=seed,
        has_times=kept.time is not None,
        users=kept.users,
        items=kept.items,
        interactions=kept.rows,
        train_offsets=_offsets(counts - 2),
        train_items=item[~held_out],
        validation=item[ends - 2],
        test=item[ends - 1],
        negatives=draw_negatives(*interacted, kept.items, seed=seed),
        user_ids=np.asarray(kept.user_ids, np.str_),
        item_ids=np.asarray(kept.item_ids, np.str_),
    )


def user_rows(offsets: IntArray, users: IntArray) -> tuple[IntArray, IntArray]:
    """Slice a CSR structure for arbitrary users, in the order given, without a loop.

    Args:
        offsets: (n + 1,) row starts.
        users: (k,) user codes; repeats are allowed.

    Returns:
        row_index (e,): position in ``users`` of each entry; flat_positions (e,): its place in the CSR values.
    """
    starts = np.asarray(offsets[users], np.int64)
    counts = np.asarray(offsets[users + 1], np.int64) - starts
    ends = np.cumsum(counts)
    row_index = np.repeat(np.arange(len(users), dtype=np.int64), counts)
    return row_index, np.arange(counts.sum(), dtype=np.int64) + np.repeat(starts - (ends - counts), counts)


def draw_negatives(offsets: IntArray, items: IntArray, m: int, *, seed: int, chunk: int = 8192) -> IntArray:
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
    users = len(offsets) - 1
    negatives = np.full((users, EVALUATION_NEGATIVES), -1, np.int64)
    for start in range(0, users, chunk):
        block = np.arange(start, min(start + chunk, users), dtype=np.int64)
        row, flat = user_rows(offsets, block)
        available = m - np.bincount(row, minlength=len(block)).astype(np.int64)
        ranks = _distinct_ranks(block, available, seed)
        # The r-th item outside e_0 < e_1 < ... is r + #{j: e_j - j <= r}; a stride of m + 1 keeps rows apart.
        excluded = row * (m + 1) + items[flat] - (flat - offsets[block][row])
        wanted = np.arange(len(block))[:, None] * (m + 1) + ranks
        before = np.searchsorted(excluded, wanted.ravel(), side="right").reshape(ranks.shape)
        before -= (offsets[block] - offsets[start])[:, None]
        negatives[block] = np.where(ranks < 0, -1, ranks + before)
    return negatives


def _distinct_ranks(users: IntArray, available: IntArray, seed: int) -> IntArray:
    """(k, 99) distinct uniform ranks in [0, available), padded with -1; a row depends on (seed, user) only.

    In a large complement the first 99 distinct keyed ranks are taken; a small one is shuffled whole.
    """
    ranks = np.full((len(users), EVALUATION_NEGATIVES), -1, np.int64)
    large = np.flatnonzero(available >= _SPARSE_FROM)
    columns = torch.arange(_CANDIDATES)
    drawn = keyed_bits(seed, "split/negatives", torch.from_numpy(users[large])[:, None], columns)
    candidates = drawn.numpy() % available[large, None]  # (k, 128)
    packed = np.sort(candidates * _CANDIDATES + np.arange(_CANDIDATES), axis=1)
    fresh = np.empty(packed.shape, bool)
    np.put_along_axis(fresh, packed % _CANDIDATES, np.diff(packed // _CANDIDATES, prepend=-1) > 0, axis=1)
    fresh &= np.cumsum(fresh, axis=1) <= EVALUATION_NEGATIVES
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


def _kept_rows(interactions: Interactions, protocol: Protocol, min_interactions: int) -> IntArray:
    """Row numbers, in file order, that pass the rating, duplicate (``strict``) and minimum-count filters."""
    rows = np.arange(interactions.rows, dtype=np.int64)
    if interactions.rating is not None:
        rows = rows[interactions.rating > 0]
    if protocol == "strict":
        if interactions.time is not None:
            rows = rows[np.argsort(interactions.time[rows], kind="stable")]
        pair = interactions.user[rows] * np.int64(interactions.items) + interactions.item[rows]
        rows = np.sort(rows[np.unique(pair, return_index=True)[1]])  # the earliest row of each pair
    counts = np.bincount(interactions.user[rows], minlength=interactions.users)
    return rows[counts[interactions.user[rows]] >= min_interactions]


def _sort_key(kept: Interactions, protocol: Protocol, seed: int) -> NDArray[Any]:
    """(rows,) what a user's rows are sorted by: time, or what stands in for it.

    Without times ``paper`` takes the item's code, as the released program does, and ``strict`` a keyed
    shuffle, so that the held-out items are drawn at random.
    """
    if kept.time is not None:
        return kept.time
    if protocol == "paper":
        return kept.item
    user, item = torch.from_numpy(kept.user), torch.from_numpy(kept.item)
    return np.asarray(keyed_bits(seed, "split/held-out", user, item))


def _offsets(counts: IntArray) -> IntArray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def _row_of(offsets: IntArray) -> IntArray:
    return np.repeat(np.arange(len(offsets) - 1, dtype=np.int64), np.diff(offsets))


def _sorted_unique_csr(user: IntArray, item: IntArray, users: int, items: int) -> tuple[IntArray, IntArray]:
    """CSR (n + 1,), (e,) of the distinct pairs, items ascending inside a user."""
    user, item = np.divmod(np.unique(user * np.int64(items) + item), items)
    return _offsets(np.bincount(user, minlength=users)), item
