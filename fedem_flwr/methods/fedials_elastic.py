"""Elastic merging beside fedials: Newton-like steps of the groups' tables, with a ridge towards the global one.

Private, up and down: see `methods.tasks.groups`. Clients keep nothing; each round they find their group, and their own
ρ where there is one a client, from their history.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedem_flwr.aggregation.groups import GroupSums
from fedem_flwr.config import Config
from fedem_flwr.contract import Asked, Device, Phase, State
from fedem_flwr.engine.group_scores import FoldInMerge, OwnRho
from fedem_flwr.engine.group_tables import Evidence, Tables
from fedem_flwr.engine.held_out import take
from fedem_flwr.engine.history import History
from fedem_flwr.engine.ials import sums_of
from fedem_flwr.evaluation.scorers import Component
from fedem_flwr.methods.fedials import Fedials
from fedem_flwr.methods.tasks.group_newton import GroupStep, HeldOutStep
from fedem_flwr.methods.tasks.group_tasks import Cluster, Curve, Theta
from fedem_flwr.methods.tasks.groups import GroupMerging, WithGroups


class FedialsElastic(WithGroups, Fedials):
    """`Fedials` with a table for each group of similar users."""

    TUNES = (*Fedials.TUNES, "group_tables.ridge")

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        self.merging = GroupMerging(config, items, "table", stateless=True)

    @property
    def table_rounds(self) -> int:
        """Rounds before there are groups."""
        return self.merging.table_rounds

    def phases(self) -> Sequence[Phase]:
        """See `GroupMerging`."""
        plain, groups = HeldOutStep(self), GroupStep(self)
        return self.merging.phases(plain, Cluster(self), groups, Curve(self), Theta(self))

    def start(self) -> State:
        """Also the groups, and running means of their counts, members and grams."""
        base = super().start()
        known = self.no_sums()
        means = {"known-counts": known.counts, "known-grams": known.grams, "known-members": known.members}
        steps = {"group-steps": torch.zeros(1, dtype=torch.int64)}
        return {**base, **self.merging.start(base["table"]), **means, **steps}

    def no_sums(self) -> GroupSums:
        """Those of nobody."""
        return GroupSums.zeros(self.config.group_tables.groups, self.items, self.config.model.dim)

    def sends(self) -> Sequence[str]:
        """Also what is merged."""
        return ["table", *self.merging.sends()]

    def components(self, asked: Asked) -> list[tuple[float, Component]]:
        """The merged tables, once there are groups."""
        tables = self.merging.tables(asked)
        if tables is None:
            return super().components(asked)
        rho = self.merging.rho(asked, tables)
        return [(1.0, self.merge_of(asked, tables, self.own_rho(asked, tables) if rho is None else rho))]

    def merge_of(self, asked: Asked, tables: Tables, rho: float | Tensor | OwnRho) -> FoldInMerge:
        """Users solved from their histories, with the settings of the message."""
        return FoldInMerge(tables, self.objective, self.recency(asked), rho)

    def own_rho(self, asked: Asked, tables: Tables) -> OwnRho:
        """What a client finds its own ρ with."""
        settings, seed = self.config.group_tables, self.seed
        first = asked.tensor("first") if asked.has("first") else None
        trained = tables if first is None else Tables(first[0], first[1:], tables.centres)
        times = asked.has_times
        return OwnRho(trained, asked.tensor("mean"), settings.rhos, settings.evidence, settings.hold_out, seed, times)

    # What the phases ask for.

    def history(self, device: Device, asked: Asked) -> History:
        """What is trained on: without the held-out items before ρ is fitted."""
        return self.merging.held(device).rest if asked.settings["hold"] else device.history

    def embeddings(self, device: Device, asked: Asked) -> tuple[Tensor, int, float]:
        """Solved against the global table."""
        table, history = asked.tensor("table"), self.history(device, asked)
        sums = sums_of(self.fold_in(asked), history, asked.who)
        merge = self.merge_of(asked, Tables(table, table[None], table[:1]), 1.0)
        return merge.users(history, asked.who), sums.samples, sums.error

    def evidence(self, device: Device, asked: Asked) -> Evidence:
        """Of the participants, as the tables see them now."""
        tables = self.merging.tables_there(asked)
        own = self.own_rho(asked, tables)
        return self.merge_of(asked, tables, own).evidence(take(device.history, asked.who), tables, own)

    def remember_curve(self, device: Device, asked: Asked, curve: Tensor) -> None:
        """Clients keep nothing."""
