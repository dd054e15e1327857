"""What users are recommended, beyond accuracy: top-10 lists, their coverage, and how much they lean to the popular.

Looked at by whoever runs an experiment and has the data; nothing here is part of what clients upload.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.engine.parallel import in_parallel
from fedem_flwr.evaluation.cohort import Scorer
from fedem_flwr.evaluation.ranking import LISTS, held_out_ranks, targets_of, user_terms
from fedem_flwr.evaluation.some import asked_only
from fedem_flwr.protocol.split import IntArray, Split

TOP = 10
DECILES = 10
_TAIL = 8  # of the deciles: the long tail is the least popular four fifths of the catalogue


@dataclass(frozen=True, eq=False)
class Served:
    """What users are served.

    Attributes:
        metrics: such as `full/ndcg@10`: (n,) test metrics of each user; NaN for users that nobody scored.
        recommended: (m,) how many users' top-10 lists hold an item.
        ranks: list to (n,) int32 ranks of the test items, as of `held_out_ranks`; -1 for users that nobody scored.
    """

    metrics: dict[str, np.ndarray]
    recommended: IntArray
    ranks: dict[str, np.ndarray]


def served(split: Split, scorers: Iterable[Scorer]) -> Served:
    """Score all users once more: their test metrics, and their top-10 lists without what they know already.

    Args:
        scorers: of the cohorts that the users are spread over.
    """
    names = [f"{way}/{metric}" for way in LISTS for metric in ("hr@10", "ndcg@10")]
    metrics = {name: np.full(split.users, np.nan, np.float32) for name in names}
    placed = {way: np.full(split.users, -1, np.int32) for way in LISTS}
    recommended = np.zeros(split.items, np.int64)
    for whole in scorers:
        scorer = asked_only(whole, split)

        def look(part: Tensor, scorer: Scorer = scorer) -> tuple[IntArray, dict[str, Tensor], Tensor]:
            users, scores = scorer.users[np.asarray(part.cpu())], scorer.scores(part, "test")[0].cpu()
            ranks = held_out_ranks(split, users, scores, which="test")
            return users, ranks, top_items(split, users, scores)

        for users, ranks, items in in_parallel(look, list(scorer.blocks()), scorer.device, "looking at lists"):
            for way, found in ranks.items():
                placed[way][users] = found.numpy()
                for metric, values in user_terms(found).items():
                    metrics[f"{way}/{metric}"][users] = values.numpy()
            recommended += np.bincount(items.flatten().numpy(), minlength=split.items + 1)[:-1]  # without m
    return Served(metrics, recommended, placed)


def top_items(split: Split, users: IntArray, scores: Tensor) -> Tensor:
    """(k, 10) the best items of users without what they have met, from (k, m) scores.

    Where fewer are left, or have a finite score, m stands for the others.
    """
    _, rows, met = targets_of(split, users, "test")
    known = scores.masked_fill(~torch.isfinite(scores), -torch.inf)
    known[torch.from_numpy(rows), torch.from_numpy(np.asarray(met, np.int64))] = -torch.inf
    best = known.topk(min(TOP, split.items), dim=1)
    return best.indices.where(torch.isfinite(best.values), split.items)


def list_diagnostics(split: Split, recommended: IntArray) -> dict[str, Any]:
    """Coverage of the catalogue by the lists, and the popularity of what is recommended beside what was consumed.

    An item's popularity is its share of the users, in training. Deciles hold a tenth of the items each, from the least
    popular to the most popular. `gini` is that of exposure, the number of lists that each item of the catalogue is in:
    0 where all are in as many, (m - 1) / m where one has all. `novelty` is the mean self-information of what is listed,
    -log2 of its popularity, in bits (Zhou et al., 2010); an item that nobody trained on counts as one user's.
    `long_tail` is the share of what is listed that is among the least popular four fifths of the catalogue.

    Args:
        recommended: (m,) how many lists hold an item.
    """
    consumed = np.bincount(split.train_items, minlength=split.items)
    popularity = consumed / split.users
    decile = np.empty(split.items, np.int64)
    decile[np.argsort(popularity, kind="stable")] = np.arange(split.items) * DECILES // split.items

    def shares(counts: IntArray) -> list[float]:
        found: list[float] = (np.bincount(decile, counts, minlength=DECILES) / max(1, counts.sum())).tolist()
        return found

    listed = max(1, recommended.sum())
    information = np.log2(split.users / consumed.clip(1, split.users))  # where rows repeat, not more than all users
    edges = np.quantile(popularity, np.linspace(0, 1, DECILES + 1))
    return {
        "coverage": float((recommended > 0).mean()),
        "gini": _gini(recommended),
        "novelty": float(recommended @ information / listed),
        "long_tail": sum(shares(recommended)[:_TAIL]),
        "popularity_recommended": float(recommended @ popularity / listed),
        "popularity_consumed": float(consumed @ popularity / max(1, consumed.sum())),
        "popularity_histogram": {
            "edges": edges.tolist(),
            "recommended": shares(recommended),
            "consumed": shares(consumed),
        },
    }


def _gini(counts: IntArray) -> float:
    """Mean absolute difference of two draws from (m,) counts, over twice their mean; 0 where all are 0."""
    ordered, m = np.sort(counts), len(counts)
    return float((2 * np.arange(1, m + 1) - m - 1) @ ordered / max(1, m * ordered.sum()))
