"""Evaluation on the client: users are scored with the tables they hold, and only sums leave.

A cohort's result is a flat mapping of sums, `PART/LIST/METRIC` with PART in validation, test and LIST in full (the
whole catalogue), sampled99; plus `users`, `nonfinite`, and sums about ρ. Sums of cohorts add up, whatever the
partition.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.engine.parallel import in_parallel
from fedem_flwr.evaluation.figures import headline
from fedem_flwr.evaluation.ranking import LISTS, METRICS, PARTS, MetricSums, Part, held_out_ranks
from fedem_flwr.evaluation.some import asked_only
from fedem_flwr.protocol.splits import Split

Sums = dict[str, float]
MEANS = tuple(f"{part}/{name}/{metric}" for part in PARTS for name in LISTS for metric in METRICS)
RHO_BINS = 20
SAMPLE = "sample/"  # prefix of the sums over a sample of users, beside those over all


class Scorer(Protocol):
    """What users are scored with: a cohort and what it downloaded."""

    @property
    def users(self) -> np.ndarray:
        """(k,) codes of the cohort's users in the run."""

    @property
    def device(self) -> torch.device:
        """Where the scores are computed."""

    @property
    def by_part(self) -> bool:
        """Whether the test item is scored otherwise than the validation item, which may then be history."""

    def counts(self) -> np.ndarray:
        """(k,) training interactions of each user."""

    def blocks(self) -> Sequence[Tensor]:
        """Positions of all users, in chunks whose scores fit the working memory."""

    def scores(self, who: Tensor, part: Part) -> tuple[Tensor, Tensor | None]:
        """(k', m) scores of users at positions `who`, and the merging weights ρ where something was merged."""


def evaluate_cohort(
    scorer: Scorer,
    split: Split,
    group_edges: Sequence[float] = (),
    whole: np.ndarray | None = None,
    some: np.ndarray | None = None,
) -> Sums:
    """Rank every user's held-out items.

    Args:
        scorer: the users, and how they are scored.
        split: where their held-out items and evaluation negatives are.
        group_edges: numbers of training interactions that separate groups; with them, each group's sums are returned
            too, as `group-0/...`, in ascending order of activity.
        whole: (k,) numbers of smaller groups that are not divided: whoever is in one that an edge cuts is in no group.
            None: everybody is in one.
        some: positions of users whose sums are also returned apart, as `sample/...`.
    """
    activity = scorer.counts() if split.histories is None else split.trained_on(scorer.users)
    scorer = asked_only(scorer, split)
    place = groups_of(activity, group_edges, whole)
    apart = np.zeros(len(activity), np.bool_)
    apart[[] if some is None else some] = True

    def evaluate(part: Tensor) -> Sums:
        position = part.cpu().numpy()
        users, interactions = scorer.users[position], activity[position]
        scored = {split.parts[0]: scorer.scores(part, split.parts[0])}
        for which in split.parts[1:]:
            scored[which] = scorer.scores(part, which) if scorer.by_part else scored[split.parts[0]]
        ranks = {
            which: held_out_ranks(split, users, scores.cpu(), which=which) for which, (scores, _) in scored.items()
        }
        rho = scored[split.parts[-1]][1]
        sums = {**_sums(ranks), **({} if rho is None else _rho_sums(rho))}
        for group in range(len(group_edges) + 1 if group_edges else 0):
            members = np.flatnonzero(place[position] == group)
            sums |= {f"group-{group}/{key}": value for key, value in _sums(ranks, members).items()}
            sums[f"group-{group}/interactions"] = float(interactions[members].sum())
        if some is not None:
            members = np.flatnonzero(apart[position])
            sums |= {f"{SAMPLE}{key}": value for key, value in _sums(ranks, members).items()}
        return sums

    blocks = list(scorer.blocks())
    total: Sums = {"users": 0.0} if blocks or split.histories is None else {}  # who is not asked has no metrics
    for sums in in_parallel(evaluate, blocks, scorer.device, "evaluating"):
        add_sums(total, sums)
    return total


def groups_of(activity: np.ndarray, edges: Sequence[float], whole: np.ndarray | None) -> np.ndarray:
    """(k,) the group of each user; -1: none."""
    place = np.searchsorted(np.asarray(edges), activity)
    if whole is None:
        return np.asarray(place)
    first = np.full(int(whole.max(initial=-1)) + 1, len(edges) + 1)
    last = np.full_like(first, -1)
    np.minimum.at(first, whole, place)
    np.maximum.at(last, whole, place)
    return np.where((first == last)[whole], place, -1)


def _rho_sums(rho: Tensor) -> Sums:
    """Sufficient statistics of the merging weights over rows and users."""
    values = rho.double()
    bins = torch.histc(rho.float(), RHO_BINS, 0.0, 1.0).tolist()
    sums = {
        "rho/total": float(values.sum()),
        "rho/squares": float(values.square().sum()),
        "rho/count": float(rho.numel()),
    }
    return sums | {f"rho/bin-{b:02d}": count for b, count in enumerate(bins)}


def _sums(ranks: Mapping[Part, Mapping[str, Tensor]], members: np.ndarray | None = None) -> Sums:
    """Of the ranks by part and list; of some users, by position, or of all."""
    chosen = slice(None) if members is None else torch.from_numpy(members)
    out: Sums = {"users": 0.0, "nonfinite": 0.0}
    named = [(part, name, found[chosen]) for part, lists in ranks.items() for name, found in lists.items()]
    if not named:
        return out
    for (part, name, _), metrics in zip(named, MetricSums.of_each(torch.stack([x for *_, x in named])), strict=True):
        out["users"] = float(metrics.count)
        out["nonfinite"] += metrics.nonfinite if name == "full" else 0
        out |= {f"{part}/{name}/{key}": value for key, value in metrics.sums.items()}
    return out


def add_sums(total: MutableMapping[str, float], more: Mapping[str, float]) -> None:
    """Add one mapping of sums to another, key by key."""
    for key, value in more.items():
        total[key] = total.get(key, 0.0) + value


def means_of(sums: Mapping[str, float], prefix: str = "") -> Sums:
    """Means over users of the metric sums under a prefix; empty where nobody was evaluated."""
    users = sums.get(f"{prefix}users", 0.0)
    return {key: sums[prefix + key] / users for key in MEANS if prefix + key in sums} if users else {}


def nested(means: Mapping[str, float], protocol: str) -> dict[str, Any]:
    """The form that metrics.jsonl and summary.json use, from flat means.

    Returns:
        {"validation": {...}, "test": {...}}, as far as they are measured, each with the protocol's headline metrics at
        its top level (99 negatives under `paper`, else the whole catalogue), and `sampled99` and `full` beneath.
    """

    def under(path: str) -> Sums:
        return {metric: means[f"{path}/{metric}"] for metric in METRICS if f"{path}/{metric}" in means}

    found = {part: (under(f"{part}/full"), under(f"{part}/sampled99")) for part in PARTS}
    return {part: headline(protocol, *lists) for part, lists in found.items() if any(lists)}


def rho_statistics(sums: Mapping[str, float]) -> dict[str, Any] | None:
    """Mean, standard deviation and 20-bin histogram of ρ over items and users; None where nothing was merged."""
    count = sums.get("rho/count", 0.0)
    if not count or not {"rho/total", "rho/squares"} <= sums.keys():
        return None
    mean = sums["rho/total"] / count
    variance = max(0.0, sums["rho/squares"] / count - mean**2)
    bins = sorted(key for key in sums if key.startswith("rho/bin-"))
    return {"mean": mean, "std": variance**0.5, "histogram": [sums[key] for key in bins]}
