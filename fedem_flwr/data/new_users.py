"""Users left out of training altogether: chosen by a keyed draw, and put into the items' numbering of a split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedem_flwr.data.interactions import Interactions, Source, StrArray, first_appearance, gather
from fedem_flwr.errors import InputError
from fedem_flwr.randomness import keyed_bits


@dataclass(frozen=True, eq=False)
class ChosenUsers:
    """A source without the users that were not chosen; the items keep their codes.

    Attributes:
        source: where the rows come from.
        chosen: (n,) whether a user of the source is in this one.
    """

    source: Source
    chosen: NDArray[np.bool_]

    @property
    def name(self) -> str:
        """The source's name."""
        return self.source.name

    @property
    def users(self) -> int:
        """Number of users chosen."""
        return int(self.chosen.sum())

    @property
    def items(self) -> int:
        """Number of items in the source's catalogue."""
        return self.source.items

    @property
    def item_ids(self) -> StrArray:
        """(items,) the source's labels."""
        return self.source.item_ids

    def blocks(self) -> Iterator[Interactions]:
        """The source's blocks with the chosen users' rows."""
        first = 0
        for block in self.source.blocks():
            chosen = self.chosen[first : first + block.users]
            first += block.users
            rows = chosen[block.user]
            yield Interactions(
                name=block.name,
                user=(np.cumsum(chosen) - 1)[block.user[rows]],
                item=block.item[rows],
                rating=None if block.rating is None else block.rating[rows],
                time=None if block.time is None else block.time[rows],
                user_ids=block.user_ids[chosen],
                item_ids=block.item_ids,
            )


def hold_out_users(source: Source, fraction: float, seed: int) -> tuple[ChosenUsers, ChosenUsers]:
    """Divide a data set into (users to train on, new users); who is new depends on (seed, user number) alone.

    Args:
        source: before any filter, `Interactions` for instance.
        fraction: share of its users that are new, in [0, 1); rounded to whole users.
        seed: keys the draw.

    Raises:
        InputError: a fraction outside [0, 1), or one that leaves nobody on one side.
    """
    count = round(fraction * source.users) if 0 <= fraction < 1 else -1
    if count < 0:
        raise InputError(f"the share of new users is {fraction}; it must be at least 0 and below 1")
    if count == source.users or (fraction > 0 and not count):
        side = "to train on" if count else "new"
        raise InputError(f"a share of {fraction} of the {source.users} users of '{source.name}' leaves nobody {side}")
    new = np.zeros(source.users, bool)
    new[keyed_bits(seed, "data/new-users", torch.arange(source.users)).argsort()[:count].numpy()] = True
    return ChosenUsers(source, ~new), ChosenUsers(source, new)


@dataclass(frozen=True, eq=False)
class KnownRows:
    """Rows in another data set's numbering of items, and what had no place in it.

    Attributes:
        interactions: the rows left; the item codes and labels are the other set's, users who kept a row are numbered
            by first appearance.
        dropped_rows: rows of items that the other set does not have.
        dropped_items: how many items these were.
        dropped_users: users without a row left.
    """

    interactions: Interactions
    dropped_rows: int
    dropped_items: int
    dropped_users: int


def with_known_items(source: Source, item_ids: StrArray) -> KnownRows:
    """Put a source's rows, in memory, into a given numbering of the items.

    A split of the result that keeps this numbering is ``make_split(known.interactions, ..., keep_items=True)``.

    Args:
        source: the new users, for instance.
        item_ids: (m,) labels in the order of their codes: a split's ``item_ids``.
    """
    rows = gather(source)
    import pandas as pd

    codes = pd.Index(item_ids).get_indexer(pd.Index(rows.item_ids)).astype(np.int64)
    item = codes[rows.item] if rows.rows else rows.item
    known = item >= 0
    user, kept_users = first_appearance(rows.user[known])
    interactions = Interactions(
        name=rows.name,
        user=user,
        item=item[known],
        rating=None if rows.rating is None else rows.rating[known],
        time=None if rows.time is None else rows.time[known],
        user_ids=rows.user_ids[kept_users],
        item_ids=np.asarray(item_ids),
    )
    return KnownRows(
        interactions=interactions,
        dropped_rows=int((~known).sum()),
        dropped_items=int((codes < 0).sum()),
        dropped_users=rows.users - interactions.users,
    )
