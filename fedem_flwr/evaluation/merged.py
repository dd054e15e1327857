"""Scoring of users with kept embeddings through merged tables."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedem_flwr.engine.elastic import Tables
from fedem_flwr.engine.elastic_scores import Chosen
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
