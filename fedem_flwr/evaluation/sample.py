"""The users that a large run is looked at with between its rounds: a keyed sample, the same in every round.

Who is in it is a function of the seed, the number of users and the sample's size, all of which both sides know. So no
message names anybody, and nothing depends on how users are spread over nodes. What is reported is measured on all.
"""

from __future__ import annotations

import math

import numpy as np

from fedem_flwr.config import Config
from fedem_flwr.protocol.rules import rules_of
from fedem_flwr.protocol.split import IntArray
from fedem_flwr.randomness import keyed_permutation

WORTH_IT = 2  # times the sample's size: from so many users on there is one
CANDIDATES = 5  # rounds that are evaluated on everybody where clients keep a state, so that no round comes back


def sample_size(config: Config, users: int) -> int:
    """How many users rounds are evaluated on; 0: on all of them.

    Under `paper` on all: its figures are there to be held against published ones, and it reports another round.
    """
    wanted = config.evaluation.sample_users
    return wanted if wanted and users >= WORTH_IT * wanted and rules_of(config.data.protocol).sampled else 0


def sampled_users(config: Config, users: int) -> IntArray | None:
    """(s,) codes of the sample, ascending; None: everybody."""
    size = sample_size(config, users)
    if not size:
        return None
    return np.sort(keyed_permutation(users, config.run.seed, "evaluation/sample").numpy()[:size])


def is_candidate(round_: int, rounds: int, every: int) -> bool:
    """Whether a round is one of about `CANDIDATES`, evenly spread; the last one is in any case.

    Args:
        every: rounds between evaluations.
    """
    return round_ == rounds or round_ % (every * max(1, math.ceil(rounds / every / CANDIDATES))) == 0
