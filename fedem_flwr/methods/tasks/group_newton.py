"""Steps of fedials' global table and of the groups' tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedem_flwr.aggregation.groups import GroupSums, newton_groups
from fedem_flwr.contract import Asked, Device, Field, Gathered, State, Upload, indexed
from fedem_flwr.contract.fields import Named
from fedem_flwr.contract.phases import Sender
from fedem_flwr.engine.ials import sums_of, table_sums
from fedem_flwr.methods.fedials import TableStep, packed

if TYPE_CHECKING:
    from fedem_flwr.methods.fedials_elastic import FedialsElastic


class HeldOutStep(TableStep):
    """The global table's step, without the held-out items."""

    method: FedialsElastic

    def needs(self) -> Sequence[str]:
        """Everything that may go down."""
        return self.method.sends()

    def contribute(self, device: Device, asked: Asked) -> Upload:
        """See `TableStep`."""
        history = self.method.history(device, asked)
        sums = sums_of(self.method.fold_in(asked), history, asked.who)
        return Upload(packed(sums), sums.samples, sums.error)


class GroupStep(HeldOutStep):
    """Also the groups' tables: rows with an item and a group, one group after the other."""

    def fields(self) -> dict[str, Field]:
        """The global table's sums and the groups'."""
        groups, dim = self.method.config.group_tables.groups, self.method.config.model.dim
        rows, counts = Field((None, dim), terms=1), Field((None,), "int32", count=True)
        of_groups = indexed(
            "group-items", groups * self.method.items, dtype="int64", group_rows=rows, group_counts=counts
        )
        members = Field((groups,), "int32", count=True)
        grams = Field((groups, dim, dim), terms=1, gram=not self.method.stages())
        return {**super().fields(), **of_groups, "group-grams": grams, "members": members}

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
        """Members that are more than these users, or counts that are more than a group's members."""
        members, group = arrays["members"], arrays["group-items"] // self.method.items
        if members.sum() > users:
            return "'members' are not these users"
        if bool((arrays["group-counts"] > members[group]).any()):
            return "'group-counts' are of more users than their groups have"
        return super().problem(arrays, users, samples)

    def impossible(self, arrays: Named, state: State, sender: Sender) -> str:
        """The same of the groups' tables: no group has more than all of these users."""
        of_groups = self.beyond(arrays, sender, "group-rows", "group-counts", "group-grams")
        return super().impossible(arrays, state, sender) or of_groups

    def fold(self, state: State, gathered: Gathered) -> State:
        """The global table's step, then the groups'; with some of the users small ones, with running means."""
        new, method = super().fold(state, gathered), self.method
        dim, groups = method.config.model.dim, method.config.group_tables.groups
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
        tables = newton_groups(new["groups"], new["table"], sums, step, method.config.group_tables.ridge)
        known_now = {f"known-{name}": getattr(sums, name) for name in ("counts", "grams", "members")}
        return {**new, "groups": tables, "group-steps": torch.tensor([steps]), **known_now}
