"""Interactions: the rows of a data set as integer codes, in the order of the file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedem_flwr.data.reading import Reading

Int64Array = NDArray[np.int64]
Float64Array = NDArray[np.float64]
StrArray = NDArray[np.str_]


class Source(Protocol):
    """A data set that comes in blocks of users, so that it need not fit into memory; `Interactions` is one block.

    No user is in two blocks, and the blocks follow one another as the rows of the whole data set do.
    """

    @property
    def name(self) -> str:
        """The data set's name, for reports."""

    @property
    def users(self) -> int:
        """Number of users in all blocks (n)."""

    @property
    def items(self) -> int:
        """Number of items in the catalogue; some may be in no row."""

    @property
    def item_ids(self) -> StrArray:
        """(items,) labels of the catalogue."""

    def blocks(self) -> Iterator[Interactions]:
        """Some users each, numbered inside the block; the item codes are the catalogue's, the same in every block."""


@dataclass(frozen=True, eq=False)
class Interactions:
    """A data set's rows: who met what, and where known how much and when. Nothing is filtered or sorted here.

    Attributes:
        name: the data set's name, for reports.
        user: (rows,) int64 user codes, 0 .. users-1 by first appearance.
        item: (rows,) int64 item codes, 0 .. items-1 by first appearance.
        rating: (rows,) float64, or None where the data set has no ratings.
        time: (rows,) float64 in the data set's own unit (seconds, milliseconds), or None.
        user_ids: (users,) str, the original labels in the order of the codes.
        item_ids: (items,) str, the same for items.
        reading: how the file that they are from was read.
    """

    name: str
    user: Int64Array
    item: Int64Array
    rating: Float64Array | None
    time: Float64Array | None
    user_ids: StrArray
    item_ids: StrArray
    reading: Reading | None = None

    def __post_init__(self) -> None:
        for column in (self.item, self.rating, self.time):
            if column is not None and column.shape != self.user.shape:
                raise ValueError(f"columns differ in length: {column.shape} and {self.user.shape}")

    @property
    def users(self) -> int:
        """Number of distinct users (n)."""
        return len(self.user_ids)

    @property
    def items(self) -> int:
        """Number of distinct items (m)."""
        return len(self.item_ids)

    @property
    def rows(self) -> int:
        """Number of rows, duplicates included."""
        return len(self.user)

    def blocks(self) -> Iterator[Interactions]:
        """The data set as one block: this makes it a `Source`."""
        yield self

    def take(self, rows: Int64Array | NDArray[np.bool_]) -> Interactions:
        """The chosen rows in the order given, with users and items renumbered by first appearance.

        Args:
            rows: (r,) row numbers, or a (rows,) mask.
        """
        user, kept_users = first_appearance(self.user[rows])
        item, kept_items = first_appearance(self.item[rows])
        return Interactions(
            name=self.name,
            user=user,
            item=item,
            rating=None if self.rating is None else self.rating[rows],
            time=None if self.time is None else self.time[rows],
            user_ids=self.user_ids[kept_users],
            item_ids=self.item_ids[kept_items],
            reading=self.reading,
        )


def gather(source: Source) -> Interactions:
    """All rows of a source in memory, with items numbered by first appearance."""
    blocks = list(source.blocks())
    before = np.cumsum([0, *(block.users for block in blocks)])
    codes, appeared = first_appearance(np.concatenate([block.item for block in blocks]))
    ratings = [block.rating for block in blocks if block.rating is not None]
    times = [block.time for block in blocks if block.time is not None]
    return Interactions(
        name=source.name,
        user=np.concatenate([block.user + first for block, first in zip(blocks, before, strict=False)]),
        item=codes,
        rating=np.concatenate(ratings) if ratings else None,
        time=np.concatenate(times) if times else None,
        user_ids=np.concatenate([block.user_ids for block in blocks]),
        item_ids=source.item_ids[appeared],
    )


def first_appearance(values: NDArray[Any]) -> tuple[Int64Array, NDArray[Any]]:
    """Number the distinct values in the order they first appear.

    Args:
        values: (rows,) integers or labels.

    Returns:
        (rows,) int64 codes and the (distinct,) values that they stand for: ``distinct[codes] == values``.
    """
    import pandas as pd  # a node that has its shard never needs it

    codes, distinct = pd.factorize(values)
    return np.asarray(codes, dtype=np.int64), np.asarray(distinct)
