"""Worlds on which the controls' answers are known."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedem_flwr.data import Interactions
from fedem_flwr.protocol.split import Split
from fedem_flwr.protocol.splits import make_split


def checkerboard(users: int = 40, items: int = 60, seed: int = 0) -> Split:
    """Two taste groups: even users take even items, odd users odd ones."""
    rng = np.random.default_rng(seed)
    taken = [rng.permutation(np.arange(user % 2, items, 2))[:14] for user in range(users)]
    rows = np.concatenate(taken)
    codes, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return make_split(
        Interactions(
            name="checkerboard",
            user=np.repeat(np.arange(users), 14),
            item=np.argsort(order)[inverse].astype(np.int64),
            rating=None,
            time=np.arange(len(rows), dtype=np.float64),
            user_ids=np.array([f"u{user}" for user in range(users)]),
            item_ids=np.array([f"i{code}" for code in codes[order]]),
        ),
        "strict",
        seed=seed,
    )


NAMES = ("random", "popularity", "item_knn", "ease", "ease_recent")
WAYS = ("full", "sampled99")


def drifting(users: int = 60, items: int = 80, seed: int = 1) -> Split:
    """Users who move on: a user's items are near a place in the catalogue that wanders with time."""
    rng = np.random.default_rng(seed)
    taken = []
    for _ in range(users):
        place, seen = float(rng.integers(items)), []
        while len(seen) < 16:
            place += rng.normal(0, 4)
            item = round(place) % items
            if item not in seen:
                seen.append(item)
        taken.append(seen)
    rows = np.concatenate(taken)
    codes, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return make_split(
        Interactions(
            name="drifting",
            user=np.repeat(np.arange(users), 16),
            item=np.argsort(order)[inverse].astype(np.int64),
            rating=None,
            time=np.arange(len(rows), dtype=np.float64),
            user_ids=np.array([f"u{user}" for user in range(users)]),
            item_ids=np.array([f"i{code}" for code in codes[order]]),
        ),
        "strict",
        seed=seed,
    )


def dense_ease(matrix: NDArray[Any], ridge: float) -> NDArray[Any]:
    """B as its paper writes it."""
    inverse = np.linalg.inv(matrix.T @ matrix + ridge * np.eye(matrix.shape[1]))
    return np.eye(matrix.shape[1]) - inverse / np.diag(inverse)
