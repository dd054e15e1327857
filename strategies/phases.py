"""The phases of a run with elastic merging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedem_flwr.config.sections import ElasticConfig
from fedem_flwr.errors import InputError

Phase = Literal["table", "cluster", "groups", "fit", "again"]


@dataclass(frozen=True)
class Schedule:
    """Numbers of rounds of the phases, in their order; `groups` ones come twice."""

    table: int
    cluster: int
    groups: int
    fit: int

    @classmethod
    def of(cls, rounds: int, elastic: ElasticConfig) -> Schedule:
        """Of a run.

        Raises:
            InputError: too few rounds are left for the method's own table.
        """
        if elastic.merge == "none":
            return cls(rounds, 0, 0, 0)
        fit = 1 + (elastic.steps if elastic.merge == "item" else 0)
        rest = elastic.clustering + 2 * elastic.rounds + fit
        if rounds - rest < elastic.rounds:
            raise InputError(
                f"run.rounds = {rounds} leaves {max(0, rounds - rest)} for the method's own table: clustering, groups "
                f"and ρ take {rest}. Raise it to {rest + elastic.rounds} or more"
            )
        return cls(rounds - rest, elastic.clustering, elastic.rounds, fit)

    def phase(self, round_: int) -> Phase:
        """Which one a round is in."""
        ends: dict[Phase, int] = {"table": self.table}
        ends["cluster"] = ends["table"] + self.cluster
        ends["groups"] = ends["cluster"] + self.groups
        ends["fit"] = ends["groups"] + self.fit
        return next((phase for phase, end in ends.items() if round_ <= end), "table" if not self.cluster else "again")
