"""Scores through merged tables: which group and which ρ a user has, and what it scores with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.engine.group_tables import Evidence, ItemWeights, Tables, curves, own_choice
from fedem_flwr.engine.held_out import hold_out, take
from fedem_flwr.engine.history import History, IntArray
from fedem_flwr.engine.ials import FoldIn, FoldInScores, Objective, Recency


@dataclass(frozen=True)
class Chosen:
    """How k users merge.

    Attributes:
        group: (k,). rho: (k,) one a user; or (G, m) one a group's item.
    """

    group: Tensor
    rho: Tensor

    def tables(self, tables: Tables) -> Iterator[tuple[Tensor, Tensor]]:
        """The merged tables (m, d) in use, each with the positions of its users."""
        for group in torch.unique(self.group).tolist():
            inside = self.group == group
            if self.rho.ndim == 2:
                yield tables.merged(group, self.rho[group]), inside.nonzero().squeeze(1)
                continue
            for rho in torch.unique(self.rho[inside]).tolist():
                yield tables.merged(group, rho), (inside & (self.rho == rho)).nonzero().squeeze(1)

    def scores(self, tables: Tables, score: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """(k, m) scores and ρ, (k, 1) or (k, m), given how users at some positions score with a table."""
        found = tables.glob.new_empty((len(self.group), len(tables.glob)))
        for table, who in self.tables(tables):
            found[who] = score(table, who)
        return found, self.rho[self.group] if self.rho.ndim == 2 else self.rho.unsqueeze(1)


@dataclass(frozen=True)
class OwnRho:
    """What a client without state fits its own ρ with: tables that its held-out items did not train.

    Attributes:
        first: tables of the stage without held-out items. mean: (R,) all clients' mean curve. rhos: the grid.
        evidence: weight of the mean curve, in items. hold_out: L. seed, by_time: see `held_out.hold_out`.
    """

    first: Tables
    mean: Tensor
    rhos: Sequence[float]
    evidence: float
    hold_out: int
    seed: int
    by_time: bool


@dataclass(frozen=True)
class FoldInMerge:
    """Merging for users that are solved from their histories; a component of `evaluation.scorers.HistoryScorer`.

    Attributes:
        rho: one for all; (G, m) one an item; or how a client finds its own.
    """

    tables: Tables
    objective: Objective
    recency: Recency
    rho: float | Tensor | OwnRho

    def users(self, history: History, who: IntArray) -> Tensor:
        """(k', d) embeddings that groups are chosen by: against the global table, without recency."""
        return FoldIn(self.tables.glob, self.objective).of(history, who)

    def chosen(self, history: History) -> Chosen:
        """Groups and ρ of all users of a history."""
        group = self.tables.choose(self.users(history, np.arange(len(history.users))))
        if isinstance(self.rho, OwnRho):
            return Chosen(group, self._own(history, self.rho))
        if isinstance(self.rho, Tensor):
            return Chosen(group, self.rho)
        return Chosen(group, self.tables.glob.new_full((len(group),), self.rho))

    def evidence(self, history: History, tables: Tables, own: OwnRho) -> Evidence:
        """Held-out items and groups of all users of a history, as the first stage's tables see them."""
        held = hold_out(history, own.hold_out, own.seed, by_time=own.by_time)
        users = FoldIn(tables.glob, self.objective).of(held.rest, np.arange(len(history.users)))

        def embed(table: Tensor, who: IntArray) -> Tensor:
            return FoldIn(table, self.objective).of(held.rest, who, self.recency)

        return Evidence(held, tables.choose(users), embed)

    def _own(self, history: History, own: OwnRho) -> Tensor:
        curve = curves(self.evidence(history, own.first, own), own.first, own.rhos)
        return own_choice(curve, own.mean, own.evidence, own.rhos)

    def scores(self, history: History, who: IntArray) -> tuple[Tensor, Tensor]:
        """(k', m), and ρ."""
        part = take(history, who)

        def score(table: Tensor, inside: Tensor) -> Tensor:
            fold_in = FoldIn(table, self.objective)
            return FoldInScores(fold_in, self.recency).scores(part, inside.cpu().numpy())[0]

        return self.chosen(part).scores(self.tables, score)


def item_rho(weights: ItemWeights, tables: Tables) -> Tensor:
    """(G, m) one ρ an item of each group's table."""
    return weights.forward(tables).rho
