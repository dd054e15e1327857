"""Controls that stand beside every result, on the same split: random, popularity, item-kNN, EASE, EASE with recency.

A federated method that does not beat them has shown nothing. All are fitted on the training part alone. Settings are
chosen by validation NDCG@10, for each list (whole catalogue, 99 negatives) by that list's own, so that each of a
control's figures is as strong as its grid makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedem_flwr.evaluation.control_cache import Measured, UserMetrics, remembered, split_hash
from fedem_flwr.evaluation.linear import AgedItems, Ease, Linear, Neighbours, blocks
from fedem_flwr.evaluation.ranking import MetricSums, Part, held_out_ranks, user_terms
from fedem_flwr.evaluation.tuning import LISTS, Gains, Setting, best_settings, tuning_users, validation_gains
from fedem_flwr.protocol.split import IntArray, Split
from fedem_flwr.randomness import keyed_uniform

Control = Literal["random", "popularity", "item_knn", "ease", "ease_recent"]
TestHistory = Literal["training", "all"]
Scorer = Callable[[IntArray], Tensor]  # (k,) users -> (k, m) scores
Figures = tuple[dict[str, Any], UserMetrics]  # of a control: means, and the test metrics of each user

EASE_LIMIT = 25_000  # EASE holds square tables of that many rows: 2.5 GB each in float32 at this size
RIDGES = (50.0, 150.0, 400.0, 1000.0, 3000.0)
HALF_LIVES = (float("inf"), 100.0, 30.0, 10.0, 5.0, 3.0)  # in newer items; in a tie the plainer one, first, is chosen
SHRINKAGES = (0.0, 10.0, 100.0)
NEIGHBOURS = (10, 20, 50, 100, 200)
_FORMAT = 2  # of a cache entry; raise it when a control's figures change


def headline(protocol: str, full_means: Mapping[str, float], sampled_means: Mapping[str, float]) -> dict[str, Any]:
    """Put the figures of a protocol's headline first: 99 negatives under ``paper``, else the whole catalogue.

    Args:
        protocol: of the split that the figures were measured on.
        full_means: metric name to mean, target ranked in the whole catalogue.
        sampled_means: the same among 99 negatives.

    Returns:
        The headline's metrics by name, then ``"sampled99"`` and ``"full"`` with either set in whole.
    """
    first = sampled_means if protocol == "paper" else full_means
    return {**first, "sampled99": dict(sampled_means), "full": dict(full_means)}


def _figures(split: Split, score: Scorer, score_test: Scorer | None = None) -> Figures:
    """Evaluate fixed scores on both held-out items, in blocks of users so that memory is bounded.

    Args:
        split: gives the held-out items.
        score: scores of the validation item's list.
        score_test: of the test item's; the same where it is None.

    Returns:
        The test figures in the form of `headline`, with those of the validation item as ``"validation"``; and the test
        metrics of each user by list and name, such as "full/ndcg@10".
    """
    parts: tuple[Part, ...] = ("validation", "test")
    sums = {which: dict.fromkeys(LISTS, MetricSums.empty()) for which in parts}
    terms: dict[str, list[NDArray[np.float32]]] = {}
    for block in blocks(split.users, split.items):
        users = np.arange(block.start, block.stop, dtype=np.int64)
        scores = score(users)  # (k, m)
        for which in parts:
            if which == "test" and score_test is not None:
                scores = score_test(users)
            for way, ranks in held_out_ranks(split, users, scores, which=which).items():
                sums[which][way] += MetricSums.from_ranks(ranks)
                for name, values in user_terms(ranks).items() if which == "test" else ():
                    terms.setdefault(f"{way}/{name}", []).append(values.numpy())
    forms = {which: headline(split.protocol, *(ways[way].means() for way in LISTS)) for which, ways in sums.items()}
    per_user = {name: np.concatenate(values) for name, values in terms.items()}
    return {**forms["test"], "validation": forms["validation"]}, per_user


def random_control(split: Split) -> Figures:
    """Uniform scores keyed by (the split's seed, user, item)."""
    items = torch.arange(split.items)

    def score(users: IntArray) -> Tensor:
        return keyed_uniform(split.seed, "control/random", torch.from_numpy(users)[:, None], items)

    return _figures(split, score)


def popularity_control(split: Split) -> Figures:
    """Score an item by the number of users who have it in training."""
    counts = np.bincount(split.train_csr().indices, minlength=split.items)
    popularity = torch.from_numpy(counts.astype(np.float32))
    return _figures(split, lambda users: popularity.expand(len(users), -1))


def item_knn_control(split: Split, test_history: TestHistory = "training") -> Figures:
    """Item-based nearest neighbours, their number and the shrinkage chosen on validation."""
    histories, users, ages_alike = AgedItems.of(split), tuning_users(split), HALF_LIVES[:1]
    neighbours = Neighbours.of(split.train_csr(), max(NEIGHBOURS), SHRINKAGES)
    gains: dict[tuple[int, float], Gains] = {}
    for shrinkage in SHRINKAGES:
        for count in NEIGHBOURS:
            model = neighbours[shrinkage].model(count)
            (gains[count, shrinkage],) = validation_gains(split, users, histories, model, ages_alike)

    def figures(setting: tuple[int, float]) -> Figures:
        return _linear_figures(split, neighbours[setting[1]].model(setting[0]), histories, test_history)

    return _chosen(split, gains, figures, lambda setting: {"neighbours": setting[0], "shrinkage": setting[1]})


def ease_controls(
    split: Split, ease_lambda: float | None = None, test_history: TestHistory = "training"
) -> dict[str, Figures]:
    """EASE, λ chosen on validation; and with recency, λ and the half-life of a history's items chosen together.

    Args:
        split: X is its binary (n, m) training matrix.
        ease_lambda: λ, where it is not to be chosen.
        test_history: whether the test item is scored with the validation item in the history.

    Returns:
        ``"ease"``, and ``"ease_recent"`` where the order of a history may be used (`order_refused`).

    Raises:
        InputError: λ is not positive, or too small for the arithmetic.
    """
    ease, histories, users = Ease(split.train_csr()), AgedItems.of(split), tuning_users(split)
    half_lives = HALF_LIVES[:1] if order_refused(split) else HALF_LIVES
    gains: dict[tuple[float, float], Gains] = {}
    for ridge in RIDGES if ease_lambda is None else (ease_lambda,):
        found = validation_gains(split, users, histories, ease.model(ridge), half_lives)
        gains |= {(ridge, half_life): gain for half_life, gain in zip(half_lives, found, strict=True)}
    plain = {setting: gain for setting, gain in gains.items() if setting[1] == HALF_LIVES[0]}

    def figures(setting: tuple[float, float]) -> Figures:
        return _linear_figures(split, ease.model(setting[0]), histories, test_history, setting[1])

    def named(setting: tuple[float, float]) -> dict[str, float | None]:
        ridge, half_life = setting
        return {"lambda": ridge, "half_life": half_life if np.isfinite(half_life) else None}

    controls = {"ease": _chosen(split, plain, figures, lambda setting: {"lambda": setting[0]})}
    if not order_refused(split):
        controls["ease_recent"] = _chosen(split, gains, figures, named)
    return controls


def _linear_figures(
    split: Split, model: Linear, histories: AgedItems, test_history: TestHistory, half_life: float = HALF_LIVES[0]
) -> Figures:
    longer = AgedItems.of(split, validation=True) if test_history == "all" else None
    return _figures(
        split,
        lambda users: model(histories.rows(users, half_life)),
        None if longer is None else lambda users: model(longer.rows(users, half_life)),
    )


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
    result["validation"] = headline(split.protocol, *(results[way]["validation"][way] for way in LISTS))
    result["settings"] = {way: dict(named(setting)) for way, setting in best.items()}
    return result, per_user


def order_refused(split: Split) -> str | None:
    """Why the order of a history may not be used, or None where it may."""
    if split.protocol == "paper":
        return "the paper protocol's rows repeat, and stand in another order where a data set has no times"
    return None if split.has_times else "the data set has no times, so the order of its rows means nothing"


def measure_controls(
    split: Split, ease_lambda: float | None = None, test_history: TestHistory = "training"
) -> Measured:
    """All controls of a split by name (`Control`).

    Returns:
        Results in the form of `headline`, with the chosen ``"settings"`` of either list where there are any;
        ``{"skipped": why}`` for EASE above `EASE_LIMIT`, and for recency where order may not be used.
    """
    found: dict[str, Figures] = {
        "random": random_control(split),
        "popularity": popularity_control(split),
        "item_knn": item_knn_control(split, test_history),
    }
    skipped: dict[str, str | None] = {}
    if Ease.size(split.users, split.items) <= EASE_LIMIT:
        found |= ease_controls(split, ease_lambda, test_history)
        skipped["ease_recent"] = order_refused(split)
    else:
        why = f"its dense table would have more than {EASE_LIMIT:,} rows"
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
    split: Split, directory: Path, ease_lambda: float | None = None, test_history: TestHistory = "training"
) -> Measured:
    """`measure_controls`, remembered in ``directory`` under the content of the split and the settings."""
    settings = {"ease_lambda": ease_lambda, "test_history": test_history, "ease_limit": EASE_LIMIT, "format": _FORMAT}
    entry = directory / f"controls-{split_hash(split, **settings)}.bin"
    return remembered(entry, lambda: measure_controls(split, ease_lambda, test_history))


def cached_controls(
    split: Split, directory: Path, ease_lambda: float | None = None, test_history: TestHistory = "training"
) -> dict[str, dict[str, Any]]:
    """The results of `remembered_controls`."""
    return remembered_controls(split, directory, ease_lambda, test_history).results
