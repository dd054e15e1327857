"""How a linear control's settings are chosen: by the mean validation NDCG@10 of the list that it is then tested on."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch

from fedem_flwr.evaluation.linear import AgedItems, Linear, blocks
from fedem_flwr.evaluation.ranking import LISTS, MetricSums, Targets
from fedem_flwr.evaluation.stages import around, coarse
from fedem_flwr.protocol.split import IntArray, Split
from fedem_flwr.pulse import tell
from fedem_flwr.randomness import keyed_permutation

TUNING_USERS = 10_000  # settings are chosen on at most this many users: the rest would hardly change the choice
Gains = dict[str, float]  # list -> mean validation NDCG@10
Setting = TypeVar("Setting", bound=Hashable)


def tuning_users(split: Split) -> IntArray:
    """The users that settings are chosen on: all, or `TUNING_USERS` drawn by the split's seed, in ascending order."""
    everybody = split.everybody
    if len(everybody) <= TUNING_USERS:
        return everybody
    drawn = keyed_permutation(len(everybody), split.seed, "control/tuning").numpy()[:TUNING_USERS]
    found: IntArray = everybody[np.sort(drawn)]
    return found


def validation_gains(
    split: Split, users: IntArray, histories: AgedItems, model: Linear, half_lives: Sequence[float], what: str = ""
) -> list[Gains]:
    """Mean validation NDCG@10 of both lists, for each half-life of a history's items.

    Args:
        what: is tried, for whoever shows progress.
    """
    sums = [dict.fromkeys(LISTS, MetricSums.empty()) for _ in half_lives]
    for block in blocks(len(users), split.items):
        some = users[block]
        targets = Targets(split, some, torch.device("cpu"), which="validation")
        for half_life, found in zip(half_lives, sums, strict=True):
            ranks = targets.ranks(model(histories.rows(some, half_life)))
            for way in LISTS:
                found[way] += MetricSums.from_ranks(ranks[way])
        tell(what, block.stop, len(users))
    return [{way: found[way].means()["ndcg@10"] for way in LISTS} for found in sums]


def searched(
    grid: Sequence[tuple[int, float]], gain: Callable[[tuple[int, float]], Gains], *, staged: bool
) -> dict[tuple[int, float], Gains]:
    """The gains of a grid of settings, or of those that a search from coarse to fine looks at."""
    first = coarse(grid) if staged else list(range(len(grid)))
    found = {at: gain(grid[at]) for at in first}
    if staged:
        near = {at for way in LISTS for at in around(grid, max(found, key=lambda row: found[row][way]))}
        found |= {at: gain(grid[at]) for at in sorted(near - found.keys())}
    return {grid[at]: found[at] for at in sorted(found)}


def best_settings(gains: Mapping[Setting, Gains]) -> dict[str, Setting]:
    """For each list the setting with the highest gain; the first in a tie."""
    return {way: max(gains, key=lambda setting: gains[setting][way]) for way in LISTS}
