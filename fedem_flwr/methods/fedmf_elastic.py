"""Elastic merging beside FedMF: clients train from merged tables; rows are averaged in each group and over all.

Private, up and down: see `methods.tasks.groups`. Clients keep their embedding and their losses on held-out items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.config import Config
from fedem_flwr.contract import Asked, Device, Part, Phase, State
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.downloads import Download, Downloads
from fedem_flwr.engine.group_scores import Chosen
from fedem_flwr.engine.group_tables import Evidence, own_choice
from fedem_flwr.engine.held_out import HeldOut, take_held, without
from fedem_flwr.engine.history import IntArray
from fedem_flwr.errors import InputError
from fedem_flwr.evaluation.cohort import Scorer
from fedem_flwr.evaluation.merged import MergedScorer
from fedem_flwr.evaluation.scorers import CohortScorer
from fedem_flwr.methods.fedmf import FedMF
from fedem_flwr.methods.tasks.group_tasks import Cluster, Curve, Theta, embedded
from fedem_flwr.methods.tasks.group_training import GroupTraining, HeldOutTraining
from fedem_flwr.methods.tasks.groups import GroupMerging, WithGroups


class FedMFElastic(WithGroups, FedMF):
    """`FedMF` with a table for each group of similar users."""

    TUNES = (*FedMF.TUNES, "group_tables.ridge")

    def __init__(self, config: Config, items: int) -> None:
        if config.aggregate.weights != "rows":
            raise InputError("fedmf-elastic averages rows: aggregate.weights must be rows")
        super().__init__(config, items)
        self.merging = GroupMerging(config, items, "items", stateless=False)

    def parts(self) -> Mapping[str, Part]:
        """Also the losses of held-out items under each ρ."""
        rhos = len(self.config.group_tables.rhos)
        curve = Part("user", rhos, private=True, start=lambda _: torch.zeros(rhos))
        return {**super().parts(), "curve": curve}

    def phases(self) -> Sequence[Phase]:
        """See `GroupMerging`."""
        return self.merging.phases(HeldOutTraining(self), Cluster(self), GroupTraining(self), Curve(self), Theta(self))

    def start(self) -> State:
        """Also the groups."""
        base = super().start()
        return {**base, **self.merging.start(base["items"])}

    def sends(self) -> Sequence[str]:
        """Also what is merged."""
        return ["items", *self.merging.sends()]

    def scorer(self, device: Device, asked: Asked) -> Scorer:
        """The merged tables, once there are groups."""
        tables, cohort = self.merging.tables(asked), device.cohort
        if tables is None:
            return CohortScorer(cohort, self.downloads(device, asked))
        return MergedScorer(cohort, {}, merging=(tables, self.chosen(device, asked)))

    def chosen(self, device: Device, asked: Asked) -> Chosen:
        """Groups and ρ of all users."""
        tables, state, settings = self.merging.tables_there(asked), device.cohort.state, self.config.group_tables
        rho = self.merging.rho(asked, tables)
        if rho is None:
            weight = own_choice(state["curve"], asked.tensor("mean"), settings.evidence, settings.rhos)
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
