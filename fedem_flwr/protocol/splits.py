"""Leave-one-out splits under the two evaluation protocols: pure functions of (interactions, seed).

``paper`` is what the literature's tables were measured with; ``strict`` counts each (user, item) pair once and uses no
order that is not in the times: rows at equal times, or without any, come in an order drawn by the seed and the data's
own labels, so that the order of the file's rows decides nothing. Under ``paper`` equal times stay in file order.

A data set goes through in blocks of users, so that a large one need not fit into memory: first its training rows and
held-out items, then, when the number of items is known, the evaluation negatives.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedem_flwr.data.interactions import Source
from fedem_flwr.protocol.account import Account
from fedem_flwr.protocol.files import appended, replaced_folder, stored_type, write_settings
from fedem_flwr.protocol.negatives import draw_negatives
from fedem_flwr.protocol.parts import MIN_ROWS, Parts, Progress
from fedem_flwr.protocol.rules import rules_of
from fedem_flwr.protocol.split import (
    ACCOUNT,
    EVALUATION_NEGATIVES,
    IntArray,
    Protocol,
    Split,
    user_rows,
)

__all__ = ["MIN_ROWS", "Protocol", "Split", "account_of", "draw_negatives", "make_split", "split_to", "user_rows"]


def make_split(
    source: Source,
    protocol: Protocol,
    *,
    seed: int,
    min_interactions: int = 10,
    keep_items: bool = False,
    min_rating: float | None = None,
) -> Split:
    """Leave one out: the last row of a user is the test item, the second last the validation item.

    Args:
        source: interactions in file order.
        protocol: ``paper`` or ``strict``.
        seed: keys the evaluation negatives and, under ``strict``, the order of rows at equal times or without times.
        min_interactions: users with fewer rows (``strict``: fewer distinct items) are dropped.
        keep_items: keep the source's item numbers, and its items without a row, instead of numbering anew.
        min_rating: rows with less are dropped; None: those with 0 or less, none where there are no ratings.

    Raises:
        InputError: unknown protocol, ``min_interactions`` below 3, a ``min_rating`` without ratings, no user left, or
            fewer than 2 items.
    """
    train: list[IntArray] = []
    parts = Parts(source, protocol, seed, min_interactions, keep_items, min_rating).collect(train.append, _silent)
    train_items = np.concatenate(train)
    negatives = np.concatenate(list(parts.negatives(train_items, _silent)))
    fields: dict[str, Any] = parts.settings() | parts.small_arrays()
    return Split(**fields, train_items=train_items, negatives=negatives, account=parts.account())


def split_to(
    directory: Path,
    source: Source,
    protocol: Protocol,
    *,
    seed: int,
    min_interactions: int = 10,
    keep_items: bool = False,
    min_rating: float | None = None,
    on_progress: Progress | None = None,
) -> Split:
    """`make_split` straight into a folder, in memory of the order of a block and of a few numbers a user.

    Args:
        directory: the split's folder; one that is there is replaced when the new one is complete.
        source, protocol, seed, min_interactions, keep_items, min_rating: as for `make_split`.
        on_progress: told of every block.

    Returns:
        The split, mapped from the folder.

    Raises:
        InputError: as for `make_split`.
    """
    progress = on_progress or _silent
    parts = Parts(source, protocol, seed, min_interactions, keep_items, min_rating)
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
        write_settings(new, parts.settings() | {ACCOUNT: parts.account().as_json()})
        del train_items  # a mapped file cannot be renamed everywhere
    return Split.load(directory)


def account_of(
    source: Source, protocol: Protocol, *, seed: int, min_interactions: int = 10, min_rating: float | None = None
) -> tuple[dict[str, int], Account | None]:
    """How many users, items and interactions a split would hold, and under ``strict`` its account, without making it.

    Raises:
        InputError: as for `make_split`.
    """
    parts = Parts(source, protocol, seed, min_interactions, min_rating=min_rating)
    return parts.survey(), parts.account() if rules_of(protocol).distinct else None


def _silent(done: int, total: int) -> None:
    """Nobody watches."""
