"""Local training from merged tables, and row means of the groups' tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from fedem_flwr.aggregation import average_rows
from fedem_flwr.aggregation.groups import average_groups
from fedem_flwr.contract import Asked, Device, Field, Gathered, State, Upload, indexed
from fedem_flwr.contract.fields import Named
from fedem_flwr.contract.phases import Sender
from fedem_flwr.contract.training import LocalTraining
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.downloads import Download
from fedem_flwr.engine.reach import longest

if TYPE_CHECKING:
    from fedem_flwr.methods.fedmf_elastic import FedMFElastic


class HeldOutTraining(LocalTraining):
    """FedMF's own rounds, without the held-out items."""

    method: FedMFElastic

    def cohort(self, device: Device, asked: Asked) -> Cohort:
        """See `FedMFElastic.trained`."""
        return self.method.trained(device, asked)


class GroupTraining(HeldOutTraining):
    """Clients train from their merged table; rows with an item and a group go up, one group after the other."""

    def fields(self) -> dict[str, Field]:
        """Sums for the groups' tables; the global one's are their sums over groups."""
        method = self.method
        rows, counts = Field((None, method.config.model.dim)), Field((None,), "int32", count=True)
        length = method.config.group_tables.groups * method.items
        return indexed("group-items", length, dtype="int64", group_rows=rows, group_counts=counts)

    def contribute(self, device: Device, asked: Asked) -> Upload:
        """From the merged tables."""
        merging, cohort = self.method.merging, self.method.trained(device, asked)
        tables, chosen = merging.tables_there(asked), self.method.chosen(device, asked)
        slot, merged = torch.zeros_like(chosen.group), []
        for number, (table, inside) in enumerate(chosen.tables(tables)):
            slot[inside] = number
            merged.append(table)
        received = {"items": Download(torch.stack(merged), slot)}
        at = torch.from_numpy(np.asarray(asked.who)).to(asked.place)
        group = merging.summed_under(chosen.group[at], device)
        items, rows, counts, loss, samples = [], [], [], 0.0, 0
        for number in range(len(tables.groups)):
            result = cohort.train(at[group == number], received, asked.round, sums=True)
            sums = result.sums["items"]
            touched = sums.weight.nonzero().squeeze(1)
            items.append(number * self.method.items + touched)
            rows.append(sums.total[touched].float())
            counts.append(sums.weight[touched].int())
            loss += float((result.loss.double() * result.samples).sum())
            samples += int(result.samples.sum())
        parts = {"group-items": items, "group-rows": rows, "group-counts": counts}
        return Upload({name: torch.cat(part).cpu().numpy() for name, part in parts.items()}, samples, loss)

    def problem(self, arrays: Named, users: int, samples: int) -> str:
        """Rows whose mean is too large."""
        limit = self.method.max_norm
        size = float(np.linalg.norm(arrays["group-rows"] / arrays["group-counts"][:, None]))
        return f"'group-rows' has a mean of norm {size:.3g}, more than {limit:.3g}" if size > limit else ""

    def impossible(self, arrays: Named, state: State, sender: Sender) -> str:
        """Rows that start from a merged table, which is between the global one and a group's."""
        part, groups = self.method.parts()["items"], longest(state["groups"].numpy())
        most = groups + self.furthest("items", part, state, sender)
        if (size := longest(arrays["group-rows"] / arrays["group-counts"][:, None])) > most:
            return f"'group-rows' has a row of norm {size:.3g}, more than {most:.3g}: training takes none so far"
        return ""

    def fold(self, state: State, gathered: Gathered) -> State:
        """Row means over all; in each group they are shrunk towards the new global rows."""
        groups, dim = self.method.config.group_tables.groups, self.method.config.model.dim
        rows, counts = gathered.sums["group-rows"].view(groups, -1, dim), gathered.sums["group-counts"].view(groups, -1)
        table = average_rows(rows.sum(0), counts.sum(0), state["items"])
        tables = average_groups(state["groups"], table, rows, counts, self.method.config.group_tables.ridge)
        return {**state, "items": table, "groups": tables}

    def typical_length(self, items: float) -> int:
        """A user touches its items and their negatives, each once however often it was drawn."""
        free = max(1.0, self.method.items - items)
        missed: float = max(0.0, 1 - self.method.local.negatives / free) ** items
        return min(self.method.items, round(items + free * (1 - missed)))
