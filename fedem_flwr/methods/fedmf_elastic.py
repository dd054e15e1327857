"""Elastic merging beside FedMF: clients train from merged tables; rows are averaged in each group and over all.

Private, up and down: see `methods.tasks.merging`. Clients keep their embedding and their losses on held-out items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.aggregation import average_rows
from fedem_flwr.aggregation.groups import average_groups
from fedem_flwr.config import Config
from fedem_flwr.contract import Asked, Device, Field, Gathered, Part, Phase, State, Upload, indexed
from fedem_flwr.contract.fields import Named
from fedem_flwr.contract.training import LocalTraining
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.downloads import Download, Downloads
from fedem_flwr.engine.elastic import Evidence, own_choice
from fedem_flwr.engine.elastic_scores import Chosen
from fedem_flwr.engine.held_out import HeldOut, take_held, without
from fedem_flwr.engine.history import IntArray
from fedem_flwr.errors import InputError
from fedem_flwr.evaluation.cohort import Scorer
from fedem_flwr.evaluation.merged import MergedScorer
from fedem_flwr.evaluation.scorers import CohortScorer
from fedem_flwr.methods.fedmf import FedMF
from fedem_flwr.methods.tasks.merging import Merging
from fedem_flwr.methods.tasks.merging_tasks import Cluster, Curve, Theta, embedded


class FedMFElastic(FedMF):
    """`FedMF` with a table for each group of similar users."""

    def __init__(self, config: Config, items: int) -> None:
        if config.aggregate.weights != "rows":
            raise InputError("fedmf-elastic averages rows: aggregate.weights must be rows")
        super().__init__(config, items)
        self.merging = Merging(config, items, "items", stateless=False)

    def parts(self) -> Mapping[str, Part]:
        """Also the losses of held-out items under each ρ."""
        rhos = len(self.config.elastic.rhos)
        curve = Part("user", rhos, private=True, start=lambda _: torch.zeros(rhos))
        return {**super().parts(), "curve": curve}

    def phases(self) -> Sequence[Phase]:
        """See `Merging`."""
        return self.merging.phases(HeldOutTraining(self), Cluster(self), GroupTraining(self), Curve(self), Theta(self))

    def start(self) -> State:
        """Also the groups."""
        base = super().start()
        return {**base, **self.merging.start(base["items"])}

    def sends(self) -> Sequence[str]:
        """Also what is merged."""
        return ["items", *self.merging.sends()]

    def settings(self, state: State, users: int) -> Mapping[str, float]:
        """See `Merging`."""
        return self.merging.settings(state, users)

    def diagnostics(self, state: State) -> dict[str, object]:
        """See `Merging`."""
        return self.merging.diagnostics(state)

    def scorer(self, device: Device, asked: Asked) -> Scorer:
        """The merged tables, once there are groups."""
        tables, cohort = self.merging.tables(asked), device.cohort
        if tables is None:
            return CohortScorer(cohort, self.downloads(device, asked))
        return MergedScorer(cohort, {}, merging=(tables, self.chosen(device, asked)))

    def chosen(self, device: Device, asked: Asked) -> Chosen:
        """Groups and ρ of all users."""
        tables, state, elastic = self.merging.tables_there(asked), device.cohort.state, self.config.elastic
        rho = self.merging.rho(asked, tables)
        if rho is None:
            weight = own_choice(state["curve"], asked.tensor("mean"), elastic.evidence, elastic.rhos)
        else:
            weight = rho if isinstance(rho, Tensor) else torch.full_like(state["user"][:, 0], rho)
        return Chosen(tables.choose(state["user"]), weight)

    def trained(self, device: Device, asked: Asked) -> Cohort:
        """What is trained: without the held-out items before ρ is fitted."""
        cohort = device.cohort
        return self._cut(cohort, self.merging.held(device)) if asked.settings["hold"] else cohort

    def _cut(self, cohort: Cohort, held: HeldOut) -> Cohort:
        return self.cohort(without(cohort.data, held), cohort.state)

    # What the phases ask for.

    def embeddings(self, device: Device, asked: Asked) -> tuple[Tensor, int, float]:
        """As they were kept."""
        counts = device.cohort.data.counts().cpu().numpy()
        return embedded(device.cohort.state["user"], asked.who), int(counts[asked.who].sum()), 0.0

    def evidence(self, device: Device, asked: Asked) -> Evidence:
        """Of the participants, after a local round from a table: kept embeddings are of the one they trained on."""
        held, state = self.merging.held(device), device.cohort.state
        everyone = without(device.cohort.data, held)
        where = torch.from_numpy(np.asarray(asked.who)).to(asked.place)

        def embed(table: Tensor, some: IntArray) -> Tensor:
            trial = self.cohort(everyone, {name: value.clone() for name, value in state.items()})
            trial.train(where[torch.from_numpy(some).to(asked.place)], _items(table, len(device.users)), asked.round)
            return embedded(trial.state["user"], asked.who[some])

        users = embedded(state["user"], asked.who)
        return Evidence(take_held(held, asked.who), self.merging.tables_there(asked).choose(users), embed)

    def remember_curve(self, device: Device, asked: Asked, curve: Tensor) -> None:
        """With the embedding."""
        device.cohort.state["curve"][torch.from_numpy(np.asarray(asked.who))] = curve.float()


def _items(table: Tensor, k: int) -> Downloads:
    return {"items": Download.for_all(table, k)}


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
        length = method.config.elastic.groups * method.items
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
        limit = self.method.config.aggregate.max_norm
        size = float(np.linalg.norm(arrays["group-rows"] / arrays["group-counts"][:, None]))
        return f"'group-rows' has a mean of norm {size:.3g}, more than {limit:.3g}" if size > limit else ""

    def fold(self, state: State, gathered: Gathered) -> State:
        """Row means over all; in each group they are shrunk towards the new global rows."""
        groups, dim = self.method.config.elastic.groups, self.method.config.model.dim
        rows, counts = gathered.sums["group-rows"].view(groups, -1, dim), gathered.sums["group-counts"].view(groups, -1)
        table = average_rows(rows.sum(0), counts.sum(0), state["items"])
        tables = average_groups(state["groups"], table, rows, counts, self.method.config.elastic.ridge)
        return {**state, "items": table, "groups": tables}

    def typical_length(self, items: float) -> int:
        """A user touches its items and their negatives, each once however often it was drawn."""
        free = max(1.0, self.method.items - items)
        missed = max(0.0, 1 - self.method.local.negatives / free) ** items
        return min(self.method.items, round(items + free * (1 - missed)))
