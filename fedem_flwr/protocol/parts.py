"""How a split is made: a data set goes through in blocks of users; its rows are filtered, ordered and divided."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from fedem_flwr.data.interactions import Interactions, Source, first_appearance
from fedem_flwr.data.sorting import first_of_each, stable_order
from fedem_flwr.errors import InputError, suggest
from fedem_flwr.protocol.account import CHANCE_AT, Account
from fedem_flwr.protocol.negatives import negative_blocks
from fedem_flwr.protocol.numbering import Numbering
from fedem_flwr.protocol.order import Draw, chronological, tie_bits
from fedem_flwr.protocol.rules import rules_of
from fedem_flwr.protocol.split import EVALUATION_NEGATIVES, IntArray, Protocol, offsets_of
from fedem_flwr.randomness import label_bits

Progress = Callable[[int, int], None]
"""Called with (users done, users in all); a user is half done when split and done with its negatives."""

MIN_ROWS = 3  # one row each for training, validation and test


@dataclass
class Parts:
    """What of a split is small: a few numbers a user. The training items and negatives pass through."""

    source: Source
    protocol: Protocol
    seed: int
    min_interactions: int
    keep_items: bool = False
    min_rating: float | None = None
    counts: list[IntArray] = field(default_factory=list)
    validation: list[IntArray] = field(default_factory=list)
    test: list[IntArray] = field(default_factory=list)
    user_ids: list[NDArray[Any]] = field(default_factory=list)
    has_times: bool = False
    users: int = 0
    kept: int = 0
    most: int = 0  # rows of a user, before users with few of them go
    times: list[float] = field(default_factory=list)  # the first and the last of each block
    chances: list[NDArray[np.float64]] = field(default_factory=list)
    short: int = 0

    def __post_init__(self) -> None:
        if self.protocol not in get_args(Protocol):
            raise InputError(f"unknown protocol '{self.protocol}'{suggest(str(self.protocol), get_args(Protocol))}")
        if self.min_interactions < MIN_ROWS:
            raise InputError(f"min_interactions is {self.min_interactions}: a split needs >= {MIN_ROWS} rows a user")
        self.rules = rules_of(self.protocol)
        self.numbering = Numbering.of(self.source.items, self.keep_items)
        self.tally = dict.fromkeys(
            ("rows", "below_rating", "repeats", "of_few", "few", "tied_test", "tied_validation"), 0
        )

    def collect(self, append: Callable[[IntArray], None], progress: Progress) -> Parts:
        """Divide every block; its training items go to `append`.

        Raises:
            InputError: no user is left, or fewer than 2 items.
        """
        done = 0
        for block in self.source.blocks():
            self.has_times = block.time is not None
            rows = self.kept_rows(block)
            if len(rows):
                append(self._divide(block, rows))
            done += block.users
            progress(done // 2, self.source.users)
        name = self.source.name
        if not self.users:
            raise self.nobody()
        if self.numbering.count < 2:
            raise InputError(f"'{name}' has fewer than 2 items after the filter; use a larger data set")
        return self

    def nobody(self) -> InputError:
        """That no user is left, and why."""
        return InputError(f"no user has >= {self.min_interactions} rows in '{self.source.name}'{self._why_nobody()}")

    def _why_nobody(self) -> str:
        tally = self.tally
        if tally["rows"] and tally["below_rating"] == tally["rows"]:
            if self.min_rating is not None:
                return f": no rating is {self.min_rating:g} or more; lower data.min_rating"
            return ": all ratings are 0 or less; if that is no rating, --set data.rating_column=-"
        lost = [
            f"{tally[name]:,} of {tally['rows']:,} rows were {words}"
            for name, words in (("below_rating", "dropped for their rating"), ("repeats", "repeats"))
            if tally[name]
        ]
        remedy = f"lower it (--set data.min_interactions={self.most})" if self.most >= MIN_ROWS else "a split needs 3"
        return f"; {'; '.join([*lost, f'the most that one has is {self.most}'])}: {remedy}"

    def kept_rows(self, block: Interactions) -> IntArray:
        """Row numbers that pass the rating, repetition (not ``paper``) and minimum-count filters.

        In each user's order, the users by code; under ``paper`` in file order.
        """
        rows = self._positive(block)
        positive = len(rows)
        if self.rules.distinct:
            user = _in_any_order(block.user, rows)  # which is the file's yet
            time = None if block.time is None else _in_any_order(block.time, rows)
            rows = rows[chronological(user, block.users, time, self._draw(block, rows))]
            del user, time
            pair = block.user[rows]
            pair *= block.items
            pair += block.item[rows]
            first = first_of_each(pair, block.users * block.items)  # the earliest of each pair
            rows = rows[first] if len(first) < len(rows) else rows
        distinct = len(rows)
        counts = np.bincount(_in_any_order(block.user, rows), minlength=block.users)
        enough = counts >= self.min_interactions
        self.most = max(self.most, int(counts.max(initial=0)))
        if not enough.all():
            rows = rows[enough[block.user[rows]]]
        self.tally["rows"] += block.rows
        self.tally["below_rating"] += block.rows - positive
        self.tally["repeats"] += positive - distinct
        self.tally["of_few"] += distinct - len(rows)
        self.tally["few"] += int((~enough & (counts > 0)).sum())
        return rows

    def _positive(self, block: Interactions) -> IntArray:
        """Row numbers in file order that pass the rating filter."""
        if block.rating is not None:
            passed = block.rating > 0 if self.min_rating is None else block.rating >= self.min_rating
            return np.flatnonzero(passed)
        if self.min_rating is not None:
            raise InputError(f"'{block.name}' has no ratings for data.min_rating: name their column, or leave it out")
        return np.arange(block.rows, dtype=np.int64)

    def survey(self) -> dict[str, int]:
        """How many users, items and interactions a split would keep; under ``strict`` all of its account is taken too.

        Raises:
            InputError: no user is left.
        """
        met = np.zeros(self.source.items, bool)
        sizes: list[IntArray] = []
        for block in self.source.blocks():
            rows = self.kept_rows(block)
            counts = np.bincount(_in_any_order(block.user, rows), minlength=1)
            sizes.append(counts[counts > 0])
            met[_in_any_order(block.item, rows)] = True
            if self.rules.distinct and block.time is not None and len(rows):
                self.note_times(block.time[rows], np.cumsum(sizes[-1]))  # the rows are by user already
        size = np.concatenate(sizes)
        if not len(size):
            raise self.nobody()
        items = int(met.sum())
        if self.rules.distinct:  # each item once, so that the rows of a user are its items
            self.note_unseen(np.minimum(items - size, EVALUATION_NEGATIVES))
        self.kept = int(size.sum())
        return {"users": len(size), "items": items, "interactions": self.kept}

    @cached_property
    def _item_bits(self) -> IntArray:
        bits: IntArray = label_bits(np.asarray(self.source.item_ids, np.str_)).numpy()
        return bits

    def _draw(self, block: Interactions, rows: IntArray) -> Draw:
        """A draw for each of some rows, by the seed and the labels of user and item."""

        def draw(positions: IntArray) -> IntArray:
            import torch

            users, codes = first_appearance(block.user[rows[positions]])
            labels = label_bits(np.asarray(block.user_ids[codes], np.str_))[torch.from_numpy(users)]
            items = torch.from_numpy(self._item_bits[block.item[rows[positions]]])
            return tie_bits(self.seed, labels, items)

        return draw

    def _divide(self, block: Interactions, rows: IntArray) -> IntArray:
        """The block's training items, user by user; its other parts are noted."""
        in_file = np.sort(rows)  # users and items are numbered as they appear there
        kept_users = first_appearance(block.user[in_file])[1]
        self.numbering.meet(block.item[in_file])
        number = np.zeros(block.users, np.int64)
        number[kept_users] = np.arange(len(kept_users))
        user = number[block.user[rows]]
        if not self.rules.distinct:
            key = self.numbering.codes[block.item[rows]] if block.time is None else block.time[rows]
            rows = rows[chronological(user, len(kept_users), key, None)]
        elif (user[1:] < user[:-1]).any():
            rows = rows[stable_order(user, len(kept_users))]
        counts = np.bincount(user)
        ends = np.cumsum(counts)
        item = self.numbering.codes[block.item[rows]]
        if block.time is not None:
            self.note_times(block.time[rows], ends)
        held_out = np.zeros(len(item), bool)
        held_out[ends - 1] = held_out[ends - 2] = True
        self.counts.append(counts - 2)
        self.validation.append(item[ends - 2])
        self.test.append(item[ends - 1])
        self.user_ids.append(np.asarray(block.user_ids[kept_users], np.str_))
        self.users += len(counts)
        self.kept += len(item)
        return item[~held_out]

    def note_times(self, time: NDArray[Any], ends: IntArray) -> None:
        """Take down when rows are of, and which held-out ones have their time in common with others."""
        self.times += [float(time.min()), float(time.max())]
        tied = time[ends - 1] == time[ends - 2]
        self.tally["tied_test"] += int(tied.sum())
        self.tally["tied_validation"] += int((tied | (time[ends - 2] == time[ends - 3])).sum())

    def negatives(self, train_items: IntArray, progress: Progress) -> Iterator[IntArray]:
        """The evaluation negatives in blocks of users, once all blocks are collected."""
        small = self.small_arrays()
        held_out = np.stack([small["validation"], small["test"]], axis=1)
        done, total = 0, self.source.users
        for block in negative_blocks(small["train_offsets"], train_items, held_out, self.numbering.count, self.seed):
            self.note_unseen((block >= 0).sum(axis=1))
            yield block
            done += len(block)
            progress(total // 2 + (total - total // 2) * done // self.users, total)

    def note_unseen(self, negatives: IntArray) -> None:
        """Take down how many evaluation negatives some users have, at most 99."""
        self.short += int((negatives < EVALUATION_NEGATIVES).sum())
        self.chances.append(np.minimum(1.0, CHANCE_AT / (negatives + 1)))

    def account(self) -> Account:
        """What became of the rows; with the evaluation negatives, if they were drawn."""
        chance = float(np.concatenate(self.chances).mean()) if self.chances else None
        return Account(
            **self.tally,
            kept=self.kept,
            min_rating=self.min_rating,
            min_interactions=self.min_interactions,
            first_time=min(self.times, default=None),
            last_time=max(self.times, default=None),
            short=None if chance is None else self.short,
            chance=chance,
            reading=getattr(self.source, "reading", None),
        )

    def settings(self) -> dict[str, Any]:
        """What of the split is no array."""
        return {
            "dataset": self.source.name,
            "protocol": self.protocol,
            "seed": self.seed,
            "has_times": self.has_times,
            "users": self.users,
            "items": self.numbering.count,
            "interactions": self.kept,
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


def _in_any_order(column: NDArray[Any], rows: IntArray) -> NDArray[Any]:
    """Some different rows of a column; where they are all, the column as it is, whatever their order."""
    return column if len(rows) == len(column) else column[rows]
