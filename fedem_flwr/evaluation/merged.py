"""Scoring of users with kept embeddings where tables are merged."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedem_flwr.engine.downloads import Download
from fedem_flwr.engine.group_scores import Chosen
from fedem_flwr.engine.group_tables import Tables
from fedem_flwr.evaluation.ranking import Part
from fedem_flwr.evaluation.scorers import CohortScorer


@dataclass(frozen=True)
class MergedScorer(CohortScorer):
    """Users with kept embeddings, scored through merged tables."""

    merging: tuple[Tables, Chosen] | None = None

    def scores(self, who: Tensor, part: Part) -> tuple[Tensor, Tensor | None]:
        """Logits (k', m), and ρ."""
        if self.merging is None:
            return super().scores(who, part)
        tables, chosen = self.merging
        users = self.cohort.state["user"][who]
        some = Chosen(chosen.group[who], chosen.rho if chosen.rho.ndim == 2 else chosen.rho[who])
        return some.scores(tables, lambda table, inside: users[inside] @ table.T)


@dataclass(frozen=True)
class OwnScorer(CohortScorer):
    """Users who are scored with their own table as training left it, and what they would merge it with next."""

    received: Download | None = None

    def scores(self, who: Tensor, part: Part) -> tuple[Tensor, Tensor | None]:
        """Logits (k', m), and the ρ of the merge that is to come."""
        logits, cohort = super().scores(who, part)[0], self.cohort
        if self.received is None:
            return logits, None
        return logits, cohort.merging.merge(cohort.state[cohort.learner.merged][who], who, self.received)
