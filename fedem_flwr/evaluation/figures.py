"""A control's figures: means over users, and the test metrics of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedem_flwr.engine.parallel import in_parallel
from fedem_flwr.evaluation.control_cache import UserMetrics
from fedem_flwr.evaluation.linear import blocks
from fedem_flwr.evaluation.ranking import LISTS, MetricSums, Part, held_out_ranks, user_terms
from fedem_flwr.protocol.rules import rules_of
from fedem_flwr.protocol.split import IntArray, Split

Ranked = Callable[[IntArray], Mapping[Part, Mapping[str, Tensor]]]  # (k,) users -> their ranks
Scorer = Callable[[IntArray], Tensor]  # (k,) users -> (k, m) scores
Figures = tuple[dict[str, Any], UserMetrics]  # of a control: means, and the test metrics of each user

_CPU = torch.device("cpu")


def headline(protocol: str, full_means: Mapping[str, float], sampled_means: Mapping[str, float]) -> dict[str, Any]:
    """Put the figures of a protocol's headline first: 99 negatives under ``paper``, else the whole catalogue.

    Args:
        protocol: of the split that the figures were measured on.
        full_means: metric name to mean, target ranked in the whole catalogue.
        sampled_means: the same among 99 negatives.

    Returns:
        The headline's metrics by name, then ``"sampled99"`` and ``"full"`` with either set in whole.
    """
    first = sampled_means if rules_of(protocol).headline == "sampled99" else full_means
    return {**first, "sampled99": dict(sampled_means), "full": dict(full_means)}


def figures_of(
    split: Split, ranked: Ranked, name: str, who: IntArray | None = None, width: int | None = None
) -> Figures:
    """Evaluate both held-out items, in blocks of users so that memory is bounded.

    Args:
        split: gives the held-out items.
        ranked: ranks of some users by part and list.
        name: of the control, for whoever shows progress.
        who: codes of the users; None: all.
        width: numbers that a user takes; m where None.

    Returns:
        The test figures in the form of `headline`, with those of the validation item, if there are any, as
        ``"validation"``; and the test
        metrics of each user by list and name, such as "full/ndcg@10", NaN for whoever was not looked at.
    """
    everybody = split.everybody if who is None else who
    sums = {which: dict.fromkeys(LISTS, MetricSums.empty()) for which in split.parts}
    terms: dict[str, NDArray[np.float32]] = {}
    parts = [everybody[block] for block in blocks(len(everybody), width or split.items)]
    for users, found in zip(parts, in_parallel(ranked, parts, _CPU, f"control {name}"), strict=True):
        for which, lists in found.items():
            for way, ranks in lists.items():
                sums[which][way] += MetricSums.from_ranks(ranks)
                for metric, values in user_terms(ranks).items() if which == split.parts[-1] else ():
                    place = terms.setdefault(f"{way}/{metric}", np.full(split.users, np.nan, np.float32))
                    place[users] = values.numpy()
    forms = {which: headline(split.protocol, *(ways[way].means() for way in LISTS)) for which, ways in sums.items()}
    counted = {} if who is None else {"users": len(who)}
    validation = {"validation": forms["validation"]} if "validation" in forms else {}
    return {**forms[split.parts[-1]], **counted, **validation}, terms


def ranked_by(split: Split, score: Scorer, score_test: Scorer | None = None) -> Ranked:
    """Ranks by scores of the validation item's list, and of the test item's where they are others."""

    def ranked(users: IntArray) -> Mapping[Part, Mapping[str, Tensor]]:
        scores = score(users)  # (k, m)
        if split.histories is not None:
            return {part: held_out_ranks(split, users, scores, which=part) for part in split.parts}
        validation = held_out_ranks(split, users, scores, which="validation")
        last = scores if score_test is None else score_test(users)
        return {"validation": validation, "test": held_out_ranks(split, users, last, which="test")}

    return ranked
