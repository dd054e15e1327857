"""Controls that are fitted to the training part: item-kNN, EASE, EASE with recency.

Settings are chosen by validation NDCG@10, for each list (whole catalogue, 99 negatives) by that list's own, so that
each of a control's figures is as strong as its grid makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from fedem_flwr.evaluation.cost import Cost, of_ease, of_neighbours
from fedem_flwr.evaluation.figures import Figures, figures_of, headline, ranked_by
from fedem_flwr.evaluation.linear import AgedItems, Ease, Linear, Neighbours
from fedem_flwr.evaluation.ranking import LISTS
from fedem_flwr.evaluation.tuning import (
    TUNING_USERS,
    Gains,
    Setting,
    best_settings,
    searched,
    tuning_users,
    validation_gains,
)
from fedem_flwr.protocol.rules import rules_of
from fedem_flwr.protocol.split import IntArray, Split

TestHistory = Literal["training", "all"]

RIDGES = (50.0, 150.0, 400.0, 1000.0, 3000.0)
HALF_LIVES = (float("inf"), 100.0, 30.0, 10.0, 5.0, 3.0)  # in newer items; in a tie the plainer one, first, is chosen
SHRINKAGES = (0.0, 10.0, 100.0)
NEIGHBOURS = (10, 20, 50, 100, 200)


def item_knn_control(
    split: Split,
    test_history: TestHistory = "training",
    sample: IntArray | None = None,
    choose: Split | None = None,
) -> Figures:
    """Item-based nearest neighbours, their number and the shrinkage chosen on validation.

    Args:
        sample: codes of the users that it is measured on; None: all.
        choose: what settings are chosen on; None: the split itself.
    """
    first = choose or split
    histories, users, ages_alike = AgedItems.of(first), tuning_users(first), HALF_LIVES[:1]
    neighbours = Neighbours.of(first.train_csr(), max(NEIGHBOURS), SHRINKAGES)
    grid = [(count, shrinkage) for shrinkage in SHRINKAGES for count in NEIGHBOURS]

    def gain(setting: tuple[int, float]) -> Gains:
        model, what = neighbours[setting[1]].model(setting[0]), "control item-kNN: trying settings"
        return validation_gains(first, users, histories, model, ages_alike, what)[0]

    gains = searched(grid, gain, staged=sample is not None)
    tested = neighbours if choose is None else Neighbours.of(split.train_csr(), max(NEIGHBOURS), SHRINKAGES)
    known = histories if choose is None else AgedItems.of(split)

    def figures(setting: tuple[int, float]) -> Figures:
        model = tested[setting[1]].model(setting[0])
        return _linear_figures(split, model, "item-kNN", sample, known, test_history)

    return _chosen(split, gains, figures, lambda setting: {"neighbours": setting[0], "shrinkage": setting[1]})


def ease_controls(
    split: Split,
    ease_lambda: float | None = None,
    test_history: TestHistory = "training",
    sample: IntArray | None = None,
    choose: Split | None = None,
) -> dict[str, Figures]:
    """EASE, λ chosen on validation; and with recency, λ and the half-life of a history's items chosen together.

    Args:
        split: X is its binary (n, m) training matrix.
        ease_lambda: λ, where it is not to be chosen.
        test_history: whether the test item is scored with the validation item in the history.
        sample: codes of the users that they are measured on; None: all.
        choose: what settings are chosen on; None: the split itself.

    Returns:
        ``"ease"``, and ``"ease_recent"`` where the order of a history may be used (`order_refused`).

    Raises:
        InputError: λ is not positive, or too small for the arithmetic.
    """
    first = choose or split
    ease, histories, users = Ease(first.train_csr()), AgedItems.of(first), tuning_users(first)
    half_lives = HALF_LIVES[:1] if order_refused(split) else HALF_LIVES
    gains: dict[tuple[float, float], Gains] = {}
    for ridge in RIDGES if ease_lambda is None else (ease_lambda,):
        what = f"control EASE: trying settings, λ {ridge:g}"
        found = validation_gains(first, users, histories, ease.model(ridge), half_lives, what)
        gains |= {(ridge, half_life): gain for half_life, gain in zip(half_lives, found, strict=True)}
    if choose is not None:
        ease, histories = Ease(split.train_csr()), AgedItems.of(split)
    plain = {setting: gain for setting, gain in gains.items() if setting[1] == HALF_LIVES[0]}

    def figures(setting: tuple[float, float]) -> Figures:
        return _linear_figures(split, ease.model(setting[0]), "EASE", sample, histories, test_history, setting[1])

    def named(setting: tuple[float, float]) -> dict[str, float | None]:
        ridge, half_life = setting
        return {"lambda": ridge, "half_life": half_life if np.isfinite(half_life) else None}

    controls = {"ease": _chosen(split, plain, figures, lambda setting: {"lambda": setting[0]})}
    if not order_refused(split):
        controls["ease_recent"] = _chosen(split, gains, figures, named)
    return controls


def _linear_figures(
    split: Split,
    model: Linear,
    name: str,
    sample: IntArray | None,
    histories: AgedItems,
    test_history: TestHistory,
    half_life: float = HALF_LIVES[0],
) -> Figures:
    longs = test_history == "all" and split.histories is None
    longer = AgedItems.of(split, validation=True) if longs else None
    ranked = ranked_by(
        split,
        lambda users: model(histories.rows(users, half_life)),
        None if longer is None else lambda users: model(longer.rows(users, half_life)),
    )
    return figures_of(split, ranked, name, sample)


def _chosen(
    split: Split,
    gains: Mapping[Setting, Gains],
    figures: Callable[[Setting], Figures],
    named: Callable[[Setting], Mapping[str, Any]],
) -> Figures:
    """Each list's figures under the setting that is best on that list's validation, and ``"settings"`` by list."""
    best = best_settings(gains)
    found = {setting: figures(setting) for setting in dict.fromkeys(best.values())}
    results = {way: found[setting][0] for way, setting in best.items()}
    per_user = {
        name: values
        for way, setting in best.items()
        for name, values in found[setting][1].items()
        if name.startswith(f"{way}/")
    }
    result = headline(split.protocol, *(results[way][way] for way in LISTS))
    if "validation" in split.parts:
        result["validation"] = headline(split.protocol, *(results[way]["validation"][way] for way in LISTS))
    result |= {key: value for key, value in results[LISTS[0]].items() if key == "users"}
    result["settings"] = {way: dict(named(setting)) for way, setting in best.items()}
    return result, per_user


def order_refused(split: Split) -> str | None:
    """Why the order of a history may not be used, or None where it may."""
    if not rules_of(split.protocol).distinct:
        return "the paper protocol's rows repeat, and stand in another order where a data set has no times"
    return None if split.has_times else "the data set has no times, so the order of its rows means nothing"


def knn_cost(split: Split) -> Cost:
    """What item-kNN takes."""
    counts = np.diff(split.train_offsets).astype(np.float64)
    return of_neighbours(split.items, float(counts @ counts), max(NEIGHBOURS), len(SHRINKAGES))


def ease_cost(split: Split, ease_lambda: float | None) -> Cost:
    """What both kinds of EASE take."""
    looked_up = len(split.train_items) * min(1.0, TUNING_USERS / max(1, split.users))
    solutions = len(RIDGES) if ease_lambda is None else 1
    return of_ease(Ease.size(split.users, split.items), solutions, looked_up, len(HALF_LIVES))
