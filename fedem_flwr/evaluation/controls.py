"""Controls that stand beside every result, on the same split: random, popularity, item-kNN, EASE, EASE with recency.

A federated method that does not beat them has shown nothing. All are fitted on the training part alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.evaluation.control_cache import Measured, remembered, split_hash
from fedem_flwr.evaluation.cost import Limits
from fedem_flwr.evaluation.figures import Figures, figures_of, ranked_by
from fedem_flwr.evaluation.linear_controls import (
    TestHistory,
    ease_controls,
    ease_cost,
    item_knn_control,
    knn_cost,
    order_refused,
)
from fedem_flwr.evaluation.plain_controls import drawn_ranks, ranks_of_counts
from fedem_flwr.evaluation.ranking import Part
from fedem_flwr.protocol.split import IntArray, Split
from fedem_flwr.randomness import keyed_uniform

Control = Literal["random", "popularity", "popularity_recent", "item_knn", "ease", "ease_recent"]

MOST_SCORES = 1 << 27  # random ones; beyond, their ranks are drawn
DEFAULT_LIMITS = Limits()
_NARROW = 1024  # numbers that a user takes whose items' scores are not held
_FORMAT = 2  # of a cache entry; raise it when a control's figures change


def random_control(split: Split) -> Figures:
    """Uniform scores keyed by (the split's seed, user, item); where they would be very many, ranks are drawn."""
    if split.users * split.items > MOST_SCORES:

        def drawn(users: IntArray) -> Mapping[Part, Mapping[str, Tensor]]:
            return {which: drawn_ranks(split, users, which) for which in split.parts}

        return figures_of(split, drawn, "random", width=_NARROW)
    items = torch.arange(split.items)

    def score(users: IntArray) -> Tensor:
        return keyed_uniform(split.seed, "control/random", torch.from_numpy(users)[:, None], items)

    return figures_of(split, ranked_by(split, score), "random")


def popularity_control(split: Split, *, recent: bool = False) -> Figures:
    """Score an item by the number of users who have it in training; or of late, where a split knows."""
    if recent and split.histories is not None:
        counts = np.asarray(split.histories.recent, np.int64)
    else:
        counts = np.bincount(split.train_csr().indices, minlength=split.items)

    def ranked(users: IntArray) -> Mapping[Part, Mapping[str, Tensor]]:
        return {which: ranks_of_counts(split, users, counts, which) for which in split.parts}

    return figures_of(split, ranked, "popularity", width=_NARROW)


def measure_controls(
    split: Split,
    ease_lambda: float | None = None,
    test_history: TestHistory = "training",
    sample: IntArray | None = None,
    limits: Limits = DEFAULT_LIMITS,
    choose: Split | None = None,
) -> Measured:
    """All controls of a split by name (`Control`).

    Args:
        choose: what settings are chosen on; None: the split's own validation items.
        sample: codes of the users that item-kNN and EASE are measured on, who then say how many; None: all.
        limits: what either may take.

    Returns:
        Results in the form of `headline`, with the chosen ``"settings"`` of either list where there are any;
        ``{"skipped": why}`` for what would take too much, and for recency where order may not be used.
    """
    found: dict[str, Figures] = {"random": random_control(split), "popularity": popularity_control(split)}
    if split.histories is not None:
        found["popularity_recent"] = popularity_control(split, recent=True)
    skipped: dict[str, str | None] = {}
    if (why := limits.objection(knn_cost(split))) is None:
        found["item_knn"] = item_knn_control(split, test_history, sample, choose)
    else:
        skipped["item_knn"] = why
    if (why := limits.objection(ease_cost(split, ease_lambda))) is None:
        found |= ease_controls(split, ease_lambda, test_history, sample, choose)
        skipped["ease_recent"] = order_refused(split)
    else:
        skipped |= {"ease": why, "ease_recent": why}
    results = {name: result for name, (result, _) in found.items()}
    results |= {name: {"skipped": why} for name, why in skipped.items() if why is not None}
    return Measured(results, {name: per_user for name, (_, per_user) in found.items()})


def compute_controls(
    split: Split, ease_lambda: float | None = None, test_history: TestHistory = "training"
) -> dict[str, dict[str, Any]]:
    """The results of `measure_controls`."""
    return measure_controls(split, ease_lambda, test_history).results


def remembered_controls(
    split: Split,
    directory: Path,
    ease_lambda: float | None = None,
    test_history: TestHistory = "training",
    sample: IntArray | None = None,
    limits: Limits = DEFAULT_LIMITS,
    choose: Split | None = None,
) -> Measured:
    """`measure_controls`, remembered in ``directory`` under the content of the split and the settings."""
    settings = {"ease_lambda": ease_lambda, "test_history": test_history, "format": _FORMAT, **asdict(limits)}
    chosen = "" if sample is None else hashlib.sha256(np.asarray(sample, np.int64).tobytes()).hexdigest()
    settings |= {} if choose is None else {"choose": split_hash(choose)}
    entry = directory / f"controls-{split_hash(split, **settings, sample=chosen)}.bin"
    return remembered(entry, lambda: measure_controls(split, ease_lambda, test_history, sample, limits, choose))
