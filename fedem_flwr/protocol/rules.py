"""What the evaluation protocols differ in: one row a protocol, and everything else asks here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Protocol = Literal["paper", "strict", "temporal"]
Selected = Literal["best_validation", "best_test"]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """A protocol.

    Attributes:
        headline: the list whose figures stand first: the whole catalogue, or 99 negatives.
        selected: which round is reported. rounds: those that a summary has figures of.
        distinct: whether a (user, item) pair counts once, and rows at equal times come in a drawn order.
        leaks: whether held-out items are spared as training negatives.
        sampled: whether large runs are looked at with a sample of the users between their rounds.
        by_instant: whether a model is trained up to an instant, settings and rounds are chosen after a first one, and
            the test is of a second training; see `protocol.temporal`.
        reported: the reported round, in words.
    """

    headline: Literal["full", "sampled99"] = "full"
    selected: Selected = "best_validation"
    rounds: tuple[Selected | Literal["last"], ...] = ("best_validation", "best_test", "last")
    distinct: bool = True
    leaks: bool = False
    sampled: bool = True
    by_instant: bool = False
    reported: str = "best validation round"


RULES: Final[Mapping[str, Rules]] = {
    "paper": Rules(
        headline="sampled99",
        selected="best_test",
        distinct=False,
        leaks=True,
        sampled=False,
        reported="best test round",
    ),
    "strict": Rules(),
    "temporal": Rules(
        rounds=("best_validation",), sampled=False, by_instant=True, reported="trained anew up to the second instant"
    ),
}


def rules_of(protocol: str) -> Rules:
    """The rules of a protocol; of one that is not known, those of ``strict``."""
    return RULES.get(protocol, RULES["strict"])
