"""A node's part of the sample of users that rounds are evaluated on, as far as its policy lets sums over it go up."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedem_flwr.config import Config
from fedem_flwr.evaluation.sample import sampled_users
from fedem_flwr.protocol.split import IntArray

METRICS = 0  # the kind of sums that metrics are, see `NodeHost.admits`; uploads count from 1


def part_of_sample(
    config: Config, users: int, hosted: IntArray, has_data: np.ndarray | None, admits: Callable[[int, IntArray], bool]
) -> IntArray | None:
    """Positions of the node's users that rounds are evaluated on; None: all.

    All, too, where a sum over the node's part of the sample would not go up: over too few users, over all but too few,
    or cutting fixed groups. So a node gives its metrics all the same, and of no set of users that differs from another
    by fewer than its policy says.

    Args:
        users: of the run. hosted: (k,) codes of the node's, consecutive.
        has_data: (k,) who has any training interactions; None: the node sends sums over anybody.
        admits: see `NodeHost.admits`.
    """
    chosen = sampled_users(config, users)
    if chosen is None or not len(hosted):
        return None
    first, end = np.searchsorted(chosen, [hosted[0], hosted[-1] + 1])
    part: IntArray = chosen[first:end] - hosted[0]
    if has_data is None:
        return part
    sets = (np.flatnonzero(has_data), part[has_data[part]])  # everybody first: that sum goes up in any case
    return part if all(admits(METRICS, members) for members in sets) else None
