"""A leave-one-out split, in memory or mapped from its folder, and what is read from it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fedem_flwr.errors import InputError
from fedem_flwr.protocol.account import Account
from fedem_flwr.protocol.files import SETTINGS_FILE, replaced_folder, stored_type, write_settings
from fedem_flwr.protocol.histories import NOT_ASKED, Histories
from fedem_flwr.protocol.rules import Protocol, rules_of

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

__all__ = ["Protocol", "Split", "SplitFacts"]
IntArray = NDArray[np.int64]

EVALUATION_NEGATIVES: Final = 99
NARROW: Final = ("train_items", "negatives")
"""The large arrays: on disk as int32."""
_ARRAYS: Final = ("train_offsets", "train_items", "validation", "test", "negatives", "user_ids", "item_ids")
SPLIT_SETTINGS: Final = ("dataset", "protocol", "seed", "has_times", "users", "items", "interactions")
ACCOUNT: Final = "account"
_ASKED: Final = "asked"


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitFacts:
    """What everybody may know of a split: all that a server needs to carry out rounds over it.

    Attributes:
        dataset, protocol, seed: what the split is a function of.
        has_times: whether the data set has times; without them the order of training items must not be used.
        users, items, interactions: n, m and the number of rows kept, in all three parts.
    """

    dataset: str
    protocol: Protocol
    seed: int
    has_times: bool
    users: int
    items: int
    interactions: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Split(SplitFacts):
    """One split, or a part of its users; user and item codes are dense, numbered by first appearance.

    Arrays with a row a user hold the users `first`, `first` + 1, ...: all n of a whole split. `rows` gives the places.

    Attributes:
        first: the code of the first user that is here.
        train_offsets, train_items: CSR (n + 1,), (nnz,), oldest first; ``paper`` keeps duplicate rows.
        validation, test: (n,) the held-out item of each user; with `histories`, also `NEW_ITEM` and `NOT_ASKED`.
        negatives: (n, 99) distinct items the user never met, padded with -1 where fewer are left.
        user_ids, item_ids: (n,) and (m,) original labels.
        account: what became of the data set's rows; None in a part, and in splits of earlier versions.
        histories: what users are scored from, under ``temporal``; else None: their training items.

    What is on disk holds ``train_items`` and ``negatives`` as int32, and so does a split that was loaded.
    """

    first: int = 0
    train_offsets: IntArray
    train_items: IntArray
    validation: IntArray
    test: IntArray
    negatives: IntArray
    user_ids: NDArray[Any]
    item_ids: NDArray[Any]
    account: Account | None = None
    histories: Histories | None = None

    @property
    def parts(self) -> tuple[Literal["validation", "test"], ...]:
        """The held-out parts that there are."""
        return ("validation", "test") if self.histories is None else (self.histories.part,)

    def asked(self, users: IntArray) -> IntArray | None:
        """Positions of those of some users who have a target; None: all have."""
        if self.histories is None:
            return None
        targets = self.validation if self.histories.part == "validation" else self.test
        found: IntArray = np.flatnonzero(np.asarray(targets)[self.rows(users)] != NOT_ASKED)
        return found

    @property
    def everybody(self) -> IntArray:
        """Codes of the users here who have a target."""
        asked = self.asked(self.codes)
        return self.codes if asked is None else self.codes[asked]

    def trained_on(self, users: IntArray) -> IntArray:
        """(k,) training rows of some users."""
        here = self.rows(users)
        return np.asarray(self.train_offsets[here + 1]) - np.asarray(self.train_offsets[here])

    def known(self) -> tuple[IntArray, IntArray]:
        """CSR of what the users here are scored from, oldest first."""
        if self.histories is not None:
            return self.histories.offsets, self.histories.items
        return self.train_offsets, self.train_items

    @property
    def codes(self) -> IntArray:
        """The users that are here."""
        return np.arange(self.first, self.first + len(self.validation), dtype=np.int64)

    def rows(self, users: IntArray) -> IntArray:
        """Where users stand in the arrays with a row a user."""
        return users - self.first if self.first else users

    def part(self, first: int, end: int) -> Split:
        """The users `first` to `end` - 1 alone: views of the arrays, and the catalogue's labels."""
        here = slice(first - self.first, end - self.first)
        ends = self.train_offsets[here.start : here.stop + 1]
        return replace(
            self,
            first=first,
            train_offsets=ends - ends[0],
            train_items=self.train_items[ends[0] : ends[-1]],
            validation=self.validation[here],
            test=self.test[here],
            negatives=self.negatives[here],
            user_ids=self.user_ids[here],
            account=None,
            histories=None if self.histories is None else self.histories.rows(here.start, here.stop),
        )

    def train_csr(self) -> csr_matrix:
        """Binary (n, m) float32 matrix of the training pairs, duplicates counted once, columns sorted."""
        from scipy.sparse import csr_matrix

        user = self.first + row_of(self.train_offsets)
        offsets, items = sorted_unique_csr(user, self.train_items, self.users, self.items)
        return csr_matrix((np.ones(len(items), np.float32), items, offsets), shape=(self.users, self.items))

    def forbidden(self, users: IntArray | None = None) -> tuple[IntArray, IntArray]:
        """What training negatives of some users, or all that are here, may not be.

        CSR (k + 1,), (e,), sorted, unique inside a user.

        The user's training items. ``paper``: the user's items of all parts, which is the leak of that protocol: beyond
        the training items, only the held-out ones are never trained as negatives.
        """
        users = self.codes if users is None else users
        rows = self.rows(users)
        user, positions = user_rows(self.train_offsets, rows)
        item = self.train_items[positions]
        if rules_of(self.protocol).leaks:
            user = np.concatenate([user, np.arange(len(users)), np.arange(len(users))])
            item = np.concatenate([item, self.validation[rows], self.test[rows]])
        return sorted_unique_csr(user, item, len(users), self.items)

    def save(self, directory: Path) -> None:
        """Write ``<array>.npy`` files and ``split.json``; a reader sees the whole split or none of it."""
        small = stored_type(self.items)
        with replaced_folder(directory) as new:
            more = {} if self.histories is None else self.histories.arrays()
            for name, values in ({name: getattr(self, name) for name in _ARRAYS} | more).items():
                stored = values.astype(small, copy=False) if name in NARROW else values
                np.save(new / f"{name}.npy", stored, allow_pickle=False)
            settings = {name: getattr(self, name) for name in SPLIT_SETTINGS}
            settings |= {"first": self.first} if self.first else {}
            settings |= {} if self.histories is None else {_ASKED: self.histories.facts}
            settings |= {} if self.account is None else {ACCOUNT: self.account.as_json()}
            write_settings(new, settings)

    @classmethod
    def load(cls, directory: Path, mmap: bool = True) -> Split:
        """Read a saved split; with ``mmap`` the arrays stay on disk until they are touched.

        Raises:
            InputError: a file is missing or damaged.
        """
        mode: Literal["r"] | None = "r" if mmap else None
        try:
            settings = json.loads((directory / SETTINGS_FILE).read_text())
            arrays = {name: np.load(directory / f"{name}.npy", mmap_mode=mode, allow_pickle=False) for name in _ARRAYS}
            facts = {name: settings[name] for name in SPLIT_SETTINGS}
            account = Account.of_json(settings[ACCOUNT]) if settings.get(ACCOUNT) else None
            asked = Histories.load(directory, settings[_ASKED], mode) if _ASKED in settings else None
            first = settings.get("first", 0)
            split = cls(**facts, first=first, account=account, histories=asked, **arrays)
            agree = split._sizes_agree()
        except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
            raise InputError(f"damaged split in {directory}: {error}; delete it and make it again") from error
        if not agree:
            raise InputError(f"damaged split in {directory}: sizes disagree; delete it and make it again")
        return split

    def check(self, place: Path, *, negatives: bool = True) -> None:
        """Find out whether the codes are of users and items that there are; for a split of anybody's making.

        Args:
            place: where it was read from.
            negatives: look at those, too, which are most of a split.

        Raises:
            InputError: they are not.
        """
        counts = (self.users, self.items, self.interactions, self.seed)
        facts = all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts)
        facts = facts and isinstance(self.dataset, str) and self.protocol in get_args(Protocol)
        least, asked = 0 if self.histories is None else NOT_ASKED, self.histories
        codes = [(self.train_items, 0), (self.validation, least), (self.test, least)]
        codes += [(self.negatives, -1)] * negatives + ([] if asked is None else [(asked.items, 0)])
        named = all(ids.dtype.kind == "U" for ids in (self.user_ids, self.item_ids))
        if not (facts and named and _ascends(self.train_offsets) and all(_within(*code, self.items) for code in codes)):
            raise InputError(f"damaged split in {place}: it holds what no data set has; delete it and make it again")

    def _sizes_agree(self) -> bool:
        here = len(self.validation)  # all n users, or those of a part
        return (
            isinstance(self.first, int)
            and 0 <= self.first <= self.first + here <= self.users
            and self.train_offsets.shape == (here + 1,)
            and self.train_items.shape == (int(self.train_offsets[-1]),)
            and self.validation.shape == self.test.shape == self.user_ids.shape == (here,)
            and self.negatives.shape == (here, EVALUATION_NEGATIVES)
            and self.item_ids.shape == (self.items,)
            and (self.histories is None or self.histories.agree(here, self.items))
        )


def _ascends(offsets: IntArray) -> bool:
    """Whether these can be row starts."""
    return offsets.dtype.kind == "i" and int(offsets[0]) == 0 and bool((np.diff(offsets) >= 0).all())


def _within(codes: IntArray, low: int, items: int) -> bool:
    """Whether all codes are of items, from `low` on."""
    return codes.dtype.kind == "i" and (not codes.size or (int(codes.min()) >= low and int(codes.max()) < items))


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


def offsets_of(counts: IntArray) -> IntArray:
    """(n + 1,) CSR row starts of rows with these lengths."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def row_of(offsets: IntArray) -> IntArray:
    """(e,) the row that each entry of a CSR structure is in."""
    return np.repeat(np.arange(len(offsets) - 1, dtype=np.int64), np.diff(offsets))


def sorted_unique_csr(user: IntArray, item: IntArray, users: int, items: int) -> tuple[IntArray, IntArray]:
    """CSR (n + 1,), (e,) of the distinct pairs, items ascending inside a user."""
    pair = np.sort(user * np.int64(items) + item)
    pair = pair[np.concatenate([np.ones(len(pair[:1]), bool), pair[1:] != pair[:-1]])]
    user = pair // items
    return offsets_of(np.bincount(user, minlength=users)), pair - user * items
