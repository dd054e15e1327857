"""Leave-one-out splits under the two evaluation protocols: pure functions of (interactions, seed).

``paper`` is what the literature's tables were measured with; ``strict`` counts each (user, item) pair once
and uses no order where a data set has no times. Rows are sorted by time and, at equal times, by file order.

A data set goes through in blocks of users, so that a large one need not fit into memory: first its training rows and
held-out items, then, when the number of items is known, the evaluation negatives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from fedem_flwr.data.interactions import Interactions, Source, first_appearance
from fedem_flwr.data.sorting import first_of_each
from fedem_flwr.errors import InputError, suggest
from fedem_flwr.protocol.files import appended, replaced_folder, stored_type, write_settings
from fedem_flwr.protocol.negatives import draw_negatives, negative_blocks
from fedem_flwr.protocol.split import (
    EVALUATION_NEGATIVES,
    IntArray,
    Protocol,
    Split,
    offsets_of,
    user_rows,
)
from fedem_flwr.randomness import keyed_bits

__all__ = ["Protocol", "Split", "draw_negatives", "make_split", "split_to", "user_rows"]

Progress = Callable[[int, int], None]
"""Called with (users done, users in all); a user is half done when split and done with its negatives."""

MIN_ROWS = 3  # one row each for training, validation and test


def make_split(
    source: Source, protocol: Protocol, *, seed: int, min_interactions: int = 10, keep_items: bool = False
) -> Split:
    """Leave one out: the last row of a user is the test item, the second last the validation item.

    Args:
        source: interactions in file order; rows with rating <= 0 are dropped, none where there are no ratings.
        protocol: ``paper`` or ``strict``.
        seed: keys the evaluation negatives and, under ``strict`` without times, the held-out items.
        min_interactions: users with fewer rows (``strict``: fewer distinct items) are dropped.
        keep_items: keep the source's item numbers, and its items without a row, instead of numbering anew.

    Raises:
        InputError: unknown protocol, ``min_interactions`` below 3, no user left, or fewer than 2 items.
    """
    train: list[IntArray] = []
    parts = _Parts(source, protocol, seed, min_interactions, keep_items).collect(train.append, _silent)
    train_items = np.concatenate(train)
    negatives = np.concatenate(list(parts.negatives(train_items, _silent)))
    fields: dict[str, Any] = parts.settings() | parts.small_arrays()
    return Split(**fields, train_items=train_items, negatives=negatives)


def split_to(
    directory: Path,
    source: Source,
    protocol: Protocol,
    *,
    seed: int,
    min_interactions: int = 10,
    keep_items: bool = False,
    on_progress: Progress | None = None,
) -> Split:
    """`make_split` straight into a folder, in memory of the order of a block and of a few numbers a user.

    Args:
        directory: the split's folder; one that is there is replaced when the new one is complete.
        source, protocol, seed, min_interactions, keep_items: as for `make_split`.
        on_progress: told of every block.

    Returns:
        The split, mapped from the folder.

    Raises:
        InputError: as for `make_split`.
    """
    progress = on_progress or _silent
    parts = _Parts(source, protocol, seed, min_interactions, keep_items)
    stored = stored_type(source.items)
    with replaced_folder(directory) as new:
        with appended(new / "train_items.npy", stored) as append:
            parts.collect(append, progress)
        train_items = np.load(new / "train_items.npy", mmap_mode="r", allow_pickle=False)
        with appended(new / "negatives.npy", stored, (EVALUATION_NEGATIVES,)) as append:
            for block in parts.negatives(train_items, progress):
                append(block)
        for name, values in parts.small_arrays().items():
            np.save(new / f"{name}.npy", values, allow_pickle=False)
        write_settings(new, parts.settings())
        del train_items  # a mapped file cannot be renamed everywhere
    return Split.load(directory)


def _silent(done: int, total: int) -> None:
    """Nobody watches."""


@dataclass
class _Numbering:
    """Item codes by first appearance over the kept rows of one block after the other.

    Attributes:
        codes: (catalogue,) the code of each item, -1 as long as it has none.
        seen: catalogue numbers, in the order of their codes, in pieces.
        count: how many items have a code.
    """

    codes: IntArray
    seen: list[IntArray] = field(default_factory=list)
    count: int = 0

    @classmethod
    def of(cls, items: int, keep: bool) -> _Numbering:
        if keep:
            return cls(np.arange(items), [np.arange(items)], items)
        return cls(np.full(items, -1, np.int64))

    def __call__(self, item: IntArray) -> IntArray:
        codes = self.codes[item]
        unknown = item[codes < 0]
        if not len(unknown):
            return codes
        fresh = first_appearance(unknown)[1]
        self.codes[fresh] = np.arange(self.count, self.count + len(fresh))
        self.count += len(fresh)
        self.seen.append(fresh)
        return self.codes[item]


@dataclass
class _Parts:
    """What of a split is small: a few numbers a user. The training items and negatives pass through."""

    source: Source
    protocol: Protocol
    seed: int
    min_interactions: int
    keep_items: bool
    counts: list[IntArray] = field(default_factory=list)
    validation: list[IntArray] = field(default_factory=list)
    test: list[IntArray] = field(default_factory=list)
    user_ids: list[NDArray[Any]] = field(default_factory=list)
    has_times: bool = False
    users: int = 0

    def __post_init__(self) -> None:
        if self.protocol not in get_args(Protocol):
            raise InputError(f"unknown protocol '{self.protocol}'{suggest(str(self.protocol), get_args(Protocol))}")
        if self.min_interactions < MIN_ROWS:
            raise InputError(f"min_interactions is {self.min_interactions}: a split needs >= {MIN_ROWS} rows a user")
        self.numbering = _Numbering.of(self.source.items, self.keep_items)

    def collect(self, append: Callable[[IntArray], None], progress: Progress) -> _Parts:
        """Divide every block; its training items go to `append`.

        Raises:
            InputError: no user is left, or fewer than 2 items.
        """
        done = 0
        for block in self.source.blocks():
            self.has_times = block.time is not None
            rows = _kept_rows(block, self.protocol, self.min_interactions)
            if len(rows):
                append(self._divide(block, rows))
            done += block.users
            progress(done // 2, self.source.users)
        name = self.source.name
        if not self.users:
            least = self.min_interactions
            raise InputError(f"no user has >= {least} rows in '{name}'; lower it (--set data.min_interactions=5)")
        if self.numbering.count < 2:
            raise InputError(f"'{name}' has fewer than 2 items after the filter; use a larger data set")
        return self

    def _divide(self, block: Interactions, rows: IntArray) -> IntArray:
        """The block's training items, user by user; its other parts are noted."""
        user, kept_users = first_appearance(block.user[rows])
        item = self.numbering(block.item[rows])
        key = _sort_key(self.protocol, self.seed, block.time, rows, user + self.users, item)
        same, later = user[1:] == user[:-1], user[1:] > user[:-1]
        if not (later | (same & (key[1:] >= key[:-1]))).all():
            item = item[np.lexsort((key, user))]  # stable: ties stay in file order
        counts = np.bincount(user)
        ends = np.cumsum(counts)
        held_out = np.zeros(len(item), bool)
        held_out[ends - 1] = held_out[ends - 2] = True
        self.counts.append(counts - 2)
        self.validation.append(item[ends - 2])
        self.test.append(item[ends - 1])
        self.user_ids.append(np.asarray(block.user_ids[kept_users], np.str_))
        self.users += len(counts)
        return item[~held_out]

    def negatives(self, train_items: IntArray, progress: Progress) -> Iterator[IntArray]:
        """The evaluation negatives in blocks of users, once all blocks are collected."""
        small = self.small_arrays()
        held_out = np.stack([small["validation"], small["test"]], axis=1)
        done, total = 0, self.source.users
        for block in negative_blocks(small["train_offsets"], train_items, held_out, self.numbering.count, self.seed):
            yield block
            done += len(block)
            progress(total // 2 + (total - total // 2) * done // self.users, total)

    def settings(self) -> dict[str, Any]:
        """What of the split is no array."""
        return {
            "dataset": self.source.name,
            "protocol": self.protocol,
            "seed": self.seed,
            "has_times": self.has_times,
            "users": self.users,
            "items": self.numbering.count,
            "interactions": int(sum(counts.sum() for counts in self.counts)) + 2 * self.users,
        }

    def small_arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays with a row a user or an item, but for the negatives."""
        return {
            "train_offsets": offsets_of(np.concatenate(self.counts)),
            "validation": np.concatenate(self.validation),
            "test": np.concatenate(self.test),
            "user_ids": np.concatenate(self.user_ids),
            "item_ids": np.asarray(self.source.item_ids[np.concatenate(self.numbering.seen)], np.str_),
        }


def _kept_rows(block: Interactions, protocol: Protocol, min_interactions: int) -> IntArray:
    """Row numbers, in file order, that pass the rating, duplicate (``strict``) and minimum-count filters."""
    rows = np.arange(block.rows, dtype=np.int64)
    if block.rating is not None:
        rows = rows[block.rating > 0]
    if protocol == "strict":
        first = _first_of_pairs(block, rows)
        if len(first) < len(rows):  # the earliest row of each pair: only now does it matter how the rows are sorted
            if block.time is not None:
                first = _first_of_pairs(block, rows[np.argsort(block.time[rows], kind="stable")])
            rows = np.sort(first)
    counts = np.bincount(block.user[rows], minlength=block.users)
    return rows[counts[block.user[rows]] >= min_interactions]


def _first_of_pairs(block: Interactions, rows: IntArray) -> IntArray:
    """Of some row numbers, the first of each (user, item) pair."""
    pair = block.user[rows] * np.int64(block.items) + block.item[rows]
    return rows[first_of_each(pair, block.users * block.items)]


def _sort_key(
    protocol: Protocol, seed: int, time: NDArray[Any] | None, rows: IntArray, user: IntArray, item: IntArray
) -> NDArray[Any]:
    """(rows,) what a user's rows are sorted by: time, or what stands in for it.

    Without times ``paper`` takes the item's code, as the released program does, and ``strict`` a keyed
    shuffle, so that the held-out items are drawn at random.
    """
    if time is not None:
        return np.asarray(time[rows])
    if protocol == "paper":
        return item
    return np.asarray(keyed_bits(seed, "split/held-out", torch.from_numpy(user), torch.from_numpy(item)))
