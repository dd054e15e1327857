"""Rows for splits, a split's slow twin, and a small split."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
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


_WRAP = (1 << 64) - 1


def _mixed(state: int) -> int:
    """SplitMix64's finaliser, in Python's own integers."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _WRAP
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _WRAP
    return state ^ (state >> 31)


def _chained(state: int, coordinates: Iterable[int]) -> int:
    for coordinate in coordinates:
        state = _mixed((state + (coordinate + 1) * 0x9E3779B97F4A7C15) & _WRAP)
    return state


def slow_draw(seed: int, user: str, item: str) -> int:
    """What orders a user's items at equal times under strict: the texts, character by character, then the seed."""
    texts = [_chained(0, ((place << 32) + ord(letter) for place, letter in enumerate(text))) for text in (user, item)]
    key = hashlib.blake2b(f"{seed}:split/held-out".encode(), digest_size=8).digest()
    return _chained(int.from_bytes(key, "little"), texts) >> 1


def slow_split(rows: list[Row], protocol: Protocol, minimum: int, times: bool, seed: int = 0) -> dict[str, list[str]]:
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
    histories: dict[str, list[str]] = {row[2]: [] for row in kept}

    def place(row: tuple[float, int, str, str]) -> tuple[float, int]:
        if protocol == "strict":
            return (row[0] if times else 0.0, slow_draw(seed, row[2], row[3]))
        return (row[0] if times else codes[row[3]], row[1])

    for row in sorted(kept, key=place):
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
