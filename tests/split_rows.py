"""Rows for splits, a split's slow twin, and a small split."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from hypothesis import strategies as st

from fedem_flwr.data import Interactions
from fedem_flwr.data.interactions import first_appearance
from fedem_flwr.errors import InputError
from fedem_flwr.protocol.splits import Protocol, Split, make_split

Row = tuple[str, str, float, float]  # user, item, rating, time

PROTOCOLS: tuple[Protocol, ...] = ("paper", "strict")
FEWEST = 3  # fewest rows a user that still leave one to train on

rows_of_a_set = st.lists(
    st.tuples(
        st.sampled_from([f"u{i}" for i in range(4)]),
        st.sampled_from([f"i{i}" for i in range(9)]),
        st.sampled_from([0.0, 1.0, 4.5]),
        st.integers(0, 4).map(float),
    ),
    min_size=8,
    max_size=60,
)


def interactions_of(rows: list[Row], *, times: bool = True, ratings: bool = True) -> Interactions:
    user, user_ids = first_appearance(np.array([row[0] for row in rows]))
    item, item_ids = first_appearance(np.array([row[1] for row in rows]))
    return Interactions(
        name="made-up",
        user=user,
        item=item,
        rating=np.array([row[2] for row in rows]) if ratings else None,
        time=np.array([row[3] for row in rows]) if times else None,
        user_ids=user_ids,
        item_ids=item_ids,
    )


def slow_split(rows: list[Row], protocol: Protocol, minimum: int, times: bool) -> dict[str, list[str]]:
    """Items of each kept user, oldest first, so that [-2] is validation and [-1] is test."""
    kept = [(time, position, user, item) for position, (user, item, rating, time) in enumerate(rows) if rating > 0]
    if protocol == "strict":
        first: dict[tuple[str, str], tuple[float, int, str, str]] = {}
        for row in sorted(kept) if times else kept:
            first.setdefault(row[2:], row)
        kept = sorted(first.values(), key=lambda row: row[1])
    counts = Counter(row[2] for row in kept)
    kept = [row for row in kept if counts[row[2]] >= minimum]
    codes: dict[str, int] = {}
    for row in kept:
        codes.setdefault(row[3], len(codes))
    if not times:
        kept = [(codes[row[3]], *row[1:]) for row in kept]
    histories: dict[str, list[str]] = {row[2]: [] for row in kept}
    for row in sorted(kept, key=lambda row: row[:2]):
        histories[row[2]].append(row[3])
    return histories


def labelled(split: Split) -> dict[str, list[str]]:
    """The same form from a split."""
    histories = {}
    for user, label in enumerate(split.user_ids):
        start, stop = split.train_offsets[user], split.train_offsets[user + 1]
        codes = [*split.train_items[start:stop], split.validation[user], split.test[user]]
        histories[str(label)] = [str(split.item_ids[code]) for code in codes]
    return histories


def same(a: Split, b: Split, *, labels: bool = True) -> bool:
    names = [name for name in vars(a) if labels or name not in ("user_ids", "item_ids")]
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


def split_or_none(*args: Any, **keywords: Any) -> Split | None:
    try:
        return make_split(*args, min_interactions=FEWEST, **keywords)
    except InputError:
        return None


def small_split() -> Split:
    """400 rows of 12 users and 140 items, under the paper's protocol."""
    rng = np.random.default_rng(3)
    rows = [(f"u{u}", f"i{i}", 1.0, float(t)) for t, (u, i) in enumerate(rng.integers(0, (12, 140), (400, 2)))]
    return make_split(interactions_of(rows), "paper", seed=5)
