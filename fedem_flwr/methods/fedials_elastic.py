"""Elastic merging beside fedials: Newton-like steps of the groups' tables, with a ridge towards the global one.

Private, up and down: see `methods.tasks.merging`. Clients keep nothing; each round they find their group, and their own
ρ where there is one a client, from their history.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.aggregation.groups import GroupSums, newton_groups
from fedem_flwr.config import Config
from fedem_flwr.contract import Asked, Device, Field, Gathered, Phase, State, Upload, indexed
from fedem_flwr.contract.fields import Named
from fedem_flwr.engine.elastic import Evidence, Tables
from fedem_flwr.engine.elastic_scores import FoldInMerge, OwnRho
from fedem_flwr.engine.held_out import take
from fedem_flwr.engine.history import History
from fedem_flwr.engine.ials import table_sums
from fedem_flwr.evaluation.scorers import Component
from fedem_flwr.methods.fedials import Fedials, TableStep, packed
from fedem_flwr.methods.tasks.merging import Merging
from fedem_flwr.methods.tasks.merging_tasks import Cluster, Curve, Theta


class FedialsElastic(Fedials):
    """`Fedials` with a table for each group of similar users."""

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        self.merging = Merging(config, items, "table", stateless=True)

    @property
    def table_rounds(self) -> int:
        """Rounds before there are groups."""
        return self.merging.table_rounds

    def phases(self) -> Sequence[Phase]:
        """See `Merging`."""
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
        return GroupSums.zeros(self.config.elastic.groups, self.items, self.config.model.dim)

    def sends(self) -> Sequence[str]:
        """Also what is merged."""
        return ["table", *self.merging.sends()]

    def settings(self, state: State, users: int) -> Mapping[str, float]:
        """See `Merging`."""
        return self.merging.settings(state, users)

    def diagnostics(self, state: State) -> dict[str, object]:
        """See `Merging`."""
        return self.merging.diagnostics(state)

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
        elastic, seed = self.config.elastic, self.seed
        first = asked.tensor("first") if asked.has("first") else None
        trained = tables if first is None else Tables(first[0], first[1:], tables.centres)
        times = asked.has_times
        return OwnRho(trained, asked.tensor("mean"), elastic.rhos, elastic.evidence, elastic.hold_out, seed, times)

    # What the phases ask for.

    def history(self, device: Device, asked: Asked) -> History:
        """What is trained on: without the held-out items before ρ is fitted."""
        return self.merging.held(device).rest if asked.settings["hold"] else device.history

    def embeddings(self, device: Device, asked: Asked) -> tuple[Tensor, int, float]:
        """Solved against the global table."""
        table, history = asked.tensor("table"), self.history(device, asked)
        sums = table_sums(table, history, asked.who, self.objective)
        merge = self.merge_of(asked, Tables(table, table[None], table[:1]), 1.0)
        return merge.users(history, asked.who), sums.samples, sums.error

    def evidence(self, device: Device, asked: Asked) -> Evidence:
        """Of the participants, as the tables see them now."""
        tables = self.merging.tables_there(asked)
        own = self.own_rho(asked, tables)
        return self.merge_of(asked, tables, own).evidence(take(device.history, asked.who), tables, own)

    def remember_curve(self, device: Device, asked: Asked, curve: Tensor) -> None:
        """Clients keep nothing."""


class HeldOutStep(TableStep):
    """The global table's step, without the held-out items."""

    method: FedialsElastic

    def needs(self) -> Sequence[str]:
        """Everything that may go down."""
        return self.method.sends()

    def contribute(self, device: Device, asked: Asked) -> Upload:
        """See `TableStep`."""
        history = self.method.history(device, asked)
        sums = table_sums(asked.tensor("table"), history, asked.who, self.method.objective)
        return Upload(packed(sums), sums.samples, sums.error)


class GroupStep(HeldOutStep):
    """Also the groups' tables: rows with an item and a group, one group after the other."""

    def fields(self) -> dict[str, Field]:
        """The global table's sums and the groups'."""
        groups, dim = self.method.config.elastic.groups, self.method.config.model.dim
        rows, counts = Field((None, dim), terms=1), Field((None,), "int32", count=True)
        of_groups = indexed(
            "group-items", groups * self.method.items, dtype="int64", group_rows=rows, group_counts=counts
        )
        members = Field((groups,), "int32", count=True)
        return {**super().fields(), **of_groups, "group-grams": Field((groups, dim, dim), terms=1), "members": members}

    def contribute(self, device: Device, asked: Asked) -> Upload:
        """Each participant counts for the group that its embedding points to."""
        method, merging = self.method, self.method.merging
        tables, history = merging.tables_there(asked), method.history(device, asked)
        plain = super().contribute(device, asked)
        users = method.merge_of(asked, tables, 1.0).users(history, asked.who)
        group = merging.summed_under(tables.choose(users), device).cpu().numpy()
        found = [
            packed(table_sums(table, history, asked.who[group == g], method.objective))
            for g, table in enumerate(tables.groups)
        ]
        items = np.concatenate([g * method.items + one["items"].astype(np.int64) for g, one in enumerate(found)])
        arrays: Named = {
            **plain.arrays,
            "group-items": items,
            **{f"group-{name}": np.concatenate([one[name] for one in found]) for name in ("rows", "counts")},
            "group-grams": np.stack([one["gram"] for one in found]),
            "members": np.bincount(group, minlength=len(found)).astype(np.int32),
        }
        return Upload(arrays, plain.samples, plain.loss)

    def problem(self, arrays: Named, users: int, samples: int) -> str:
        """Members that are more than these users."""
        return (
            "'members' are not these users"
            if arrays["members"].sum() > users
            else super().problem(arrays, users, samples)
        )

    def fold(self, state: State, gathered: Gathered) -> State:
        """The global table's step, then the groups'; with some of the users small ones, with running means."""
        new, method = super().fold(state, gathered), self.method
        dim, groups = method.config.model.dim, method.config.elastic.groups
        trained = float(gathered.sums["members"].sum())
        if not trained:
            return new
        shapes = {"rows": (groups, -1, dim), "counts": (groups, -1)}
        rows, counts = (gathered.sums[f"group-{name}"].view(shape) for name, shape in shapes.items())
        sums = GroupSums(rows, counts, gathered.sums["group-grams"], gathered.sums["members"]).scaled(
            gathered.users / trained
        )
        steps = int(state["group-steps"]) + 1
        step = method.newton(int(new["steps"]))
        if trained < gathered.users:
            kept = (state[f"known-{name}"] for name in ("counts", "grams", "members"))
            known = GroupSums(torch.zeros_like(sums.gradient), *kept)
            sums = sums.remembering(known, 1 / steps, max(1 / steps, step.rate))
        tables = newton_groups(new["groups"], new["table"], sums, step, method.config.elastic.ridge)
        known_now = {f"known-{name}": getattr(sums, name) for name in ("counts", "grams", "members")}
        return {**new, "groups": tables, "group-steps": torch.tensor([steps]), **known_now}
