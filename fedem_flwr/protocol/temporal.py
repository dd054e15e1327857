"""Splits by an instant: a model is trained on all rows before it, and asked for rows after it.

Two splits: one for choosing rounds and settings (trained up to the first instant, asked for what comes before the
second), and one for the test (trained up to the second). Either is a pure function of the rows that its own stage may
see, given the instants and the users that are kept: what comes later changes nothing in it, not even a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from fedem_flwr.data.interactions import Interactions, Source, first_appearance, gather
from fedem_flwr.errors import InputError, NotForTheseData
from fedem_flwr.protocol.account import Account
from fedem_flwr.protocol.histories import NEW_ITEM, NOT_ASKED, Histories
from fedem_flwr.protocol.instants import DEFAULT_INSTANTS, instants_of
from fedem_flwr.protocol.negatives import draw_negatives
from fedem_flwr.protocol.parts import Parts
from fedem_flwr.protocol.split import EVALUATION_NEGATIVES, IntArray, Split, offsets_of, sorted_unique_csr

SECOND: Final = "second"
"""Folder, inside a split's, of the split of the second training; and of that training, inside a run's."""
STRETCH: Final = 0.1  # the newest share of the training rows, of which popularity is counted apart
_PROTOCOL: Final = "temporal"
Target = Literal["last", "first"]


@dataclass(frozen=True, eq=False)
class Stages:
    """Both splits, and the instants that they are trained up to, in the data's own unit."""

    choose: Split
    test: Split
    instants: tuple[float, float]

    def save(self, directory: Path) -> Split:
        """Write them; the second into the folder of the first, which is returned, mapped from there."""
        self.choose.save(directory)
        self.test.save(directory / SECOND)
        return Split.load(directory)


@dataclass(frozen=True, eq=False)
class _Rows:
    """The rows that are kept, by user and then in each user's order; `place` is where each stood in the file."""

    data: Interactions
    user: IntArray
    item: IntArray
    time: NDArray[np.float64]
    place: IntArray

    def until(self, instant: float) -> _Rows:
        """Those before an instant."""
        return self.where(self.time < instant)

    def where(self, chosen: NDArray[np.bool_]) -> _Rows:
        """Some of them."""
        return replace(
            self, user=self.user[chosen], item=self.item[chosen], time=self.time[chosen], place=self.place[chosen]
        )

    def numbered(self, column: IntArray) -> tuple[IntArray, IntArray]:
        """Codes of a column's values by first appearance in the file, and the values that they stand for."""
        found = first_appearance(column[np.argsort(self.place, kind="stable")])[1]
        codes = np.full(max(self.data.users, self.data.items), -1, np.int64)
        codes[found] = np.arange(len(found))
        return codes, found


def stages_of(
    source: Source,
    *,
    seed: int,
    min_interactions: int = 10,
    min_rating: float | None = None,
    instants: Sequence[float | str] = DEFAULT_INSTANTS,
    target: Target = "last",
) -> Stages:
    """Split a data set by two instants; all of it is in memory.

    Each (user, item) pair counts once, at its first time, and rows at equal times are in a drawn order, as under
    ``strict``; then users with fewer than `min_interactions` rows in the whole data set are left out.

    Args:
        instants: see `instants_of`.
        target: which of a user's rows from the instant on is asked for.

    Raises:
        InputError: no times, as for `make_split`, nobody who is asked, or nothing to train on.
    """
    data = gather(source)
    if data.time is None:
        raise NotForTheseData(
            f"protocol 'temporal' cuts by time, and '{data.name}' has no times: use --protocol strict, or name their "
            "column (--set data.time_column=...)"
        )
    parts = Parts(data, _PROTOCOL, seed, min_interactions, min_rating=min_rating)
    kept = parts.kept_rows(data)
    if not len(kept):
        raise parts.nobody()
    rows = _Rows(data, data.user[kept], data.item[kept], data.time[kept], kept)
    ends = np.flatnonzero(np.append(rows.user[1:] != rows.user[:-1], True))
    first, second = instants_of(instants, rows.time[ends])
    choose = _stage(rows.until(second), first, "validation", seed, target)
    test = _stage(rows, second, "test", seed, target)
    account = _account(parts, source, rows, (choose[1], test[1]))
    return Stages(replace(choose[0], account=account), replace(test[0], account=account), (first, second))


def _stage(
    rows: _Rows, instant: float, part: Literal["validation", "test"], seed: int, target: Target
) -> tuple[Split, int]:
    """The split of one stage from the rows that it may see; and how many targets were drawn among equal times."""
    before = rows.until(instant)
    name = rows.data.name
    if not len(before.user):
        raise InputError(f"no row of '{name}' is before the instant {instant:g}: set temporal.instants later")
    item_code, item_of = before.numbered(before.item)
    user_code, user_of = rows.numbered(rows.user)
    if len(item_of) < 2:
        raise InputError(f"'{name}' has fewer than 2 items before the instant {instant:g}: set temporal.instants later")
    order = np.argsort(user_code[rows.user], kind="stable")  # each user's rows stay in their order
    user, item = user_code[rows.user][order], item_code[rows.item][order]
    time, n, m = rows.time[order], len(user_of), len(item_of)
    trained = time < instant
    at = _asked_rows(user, trained, n, target)
    asked = at >= 0
    if not asked.any():
        raise InputError(f"nobody in '{name}' has a row from the instant {instant:g} on: set temporal.instants earlier")
    wanted = item[np.maximum(at, 0)]
    targets = np.where(asked, np.where(wanted < 0, NEW_ITEM, wanted), NOT_ASKED)
    earlier = (np.arange(len(user)) < at[user]) & (item >= 0)
    offsets, items = offsets_of(np.bincount(user[earlier], minlength=n)), item[earlier]
    negatives = np.full((n, EVALUATION_NEGATIVES), -1, np.int64)
    met = sorted_unique_csr(
        np.append(user[earlier], np.flatnonzero(targets >= 0)), np.append(items, targets[targets >= 0]), n, m
    )
    negatives[asked] = draw_negatives(*met, m, seed=seed)[asked]
    train_offsets = offsets_of(np.bincount(user[trained], minlength=n))
    newest = np.argsort(time[trained], kind="stable")[-max(1, round(STRETCH * int(trained.sum()))) :]
    recent = np.bincount(item[trained][newest], minlength=m)
    tied = asked & (at > 0) & (user[at - 1] == np.arange(n)) & (time[at - 1] == time[at])
    nothing = np.full(n, NOT_ASKED, np.int64)
    fields: dict[str, Any] = {
        "dataset": name,
        "protocol": _PROTOCOL,
        "seed": seed,
        "has_times": True,
        "users": n,
        "items": m,
        "interactions": len(user),
    }
    split = Split(
        **fields,
        train_offsets=train_offsets,
        train_items=item[trained],
        validation=targets if part == "validation" else nothing,
        test=targets if part == "test" else nothing,
        negatives=negatives,
        user_ids=_labels(rows.data.user_ids[user_of]),
        item_ids=_labels(rows.data.item_ids[item_of]),
        histories=Histories(part=part, instant=instant, target=target, offsets=offsets, items=items, recent=recent),
    )
    return split, int(tied.sum())


def _labels(labels: NDArray[Any]) -> NDArray[np.str_]:
    """As wide as the longest of these: a long label that comes later would be seen in the width."""
    return np.array(labels.tolist(), np.str_)


def _asked_rows(user: IntArray, trained: NDArray[np.bool_], n: int, target: Target) -> IntArray:
    """(n,) the row that each user is asked for; -1: none."""
    at = np.full(n, -1, np.int64)
    later = np.flatnonzero(~trained)  # ascending, so that the last one written stays
    later = later if target == "last" else later[::-1]
    at[user[later]] = later
    return at


def _account(parts: Parts, source: Source, rows: _Rows, tied: tuple[int, int]) -> Account:
    parts.kept = len(rows.user)
    parts.times = [float(rows.time.min()), float(rows.time.max())]
    parts.tally["tied_validation"], parts.tally["tied_test"] = tied
    return replace(parts.account(), reading=getattr(source, "reading", None))
