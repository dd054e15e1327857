"""Clients that merge a group's table with the global one: the same plug-in beside fedials' and FedMF's.

Private: what the method's own client keeps, and a client's group, ρ and held-out items. Up: sums over the cohort, of
the method's own kind for each group, of embeddings of norm 1 for each group, and of held-out losses for each ρ (or Θ's
gradient). Down: tables, centres, and ρ or what it is found with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from clients.base import Arrays, Scalar
from clients.cohort import CohortClient
from clients.elastic_message import DOWNLOADS, UPLOADS, ElasticMessage
from clients.fedials import FedialsClient
from fedem_flwr.engine.cohort import Cohort, CohortState
from fedem_flwr.engine.elastic import Evidence, Tables, curves, own_choice
from fedem_flwr.engine.elastic_scores import Chosen, FoldInMerge, OwnRho
from fedem_flwr.engine.held_out import without
from fedem_flwr.engine.history import History, IntArray
from fedem_flwr.engine.ials import Recency, table_sums
from fedem_flwr.engine.merge import GlobalTables
from fedem_flwr.evaluation.cohort import evaluate_cohort
from fedem_flwr.evaluation.merged import MergedScorer
from fedem_flwr.evaluation.scorers import Component


class ElasticFedialsClient(FedialsClient):
    """Hosts the users of one node; it keeps nothing."""

    DOWNLOAD: ClassVar[tuple[str, ...]] = (*FedialsClient.DOWNLOAD, *DOWNLOADS)
    UPLOADS: ClassVar[dict[str, tuple[str, ...]]] = {
        **FedialsClient.UPLOADS,
        **UPLOADS,
        "joint": (
            *FedialsClient.UPLOADS["sums"],
            *("group-items", "group-rows", "group-counts", "group-grams", "members"),
        ),
    }

    def train(self, parameters: Arrays, config: Mapping[str, Scalar]) -> tuple[Arrays, int, float | None]:
        """Answer for the phase that the run is in."""
        plug, kind, history = self.plug(parameters, config), str(config["upload"]), self.host.history(self.node)
        who, glob = self.asked(parameters[0]), self.tensor(parameters[2])
        if kind in ("curve", "theta"):
            arrays, loss, samples = self._fit(plug, glob, history)
            return arrays, samples, loss
        history = plug.held(history).rest if plug.cut else history
        sums = table_sums(glob, history, who, self.objective())
        if kind == "cluster":
            merge = self.merge(plug, Tables(glob, glob[None], glob[:1]), 1.0)
            return plug.cluster(merge.users(history, who), who), sums.samples, sums.error
        arrays = self.pack(sums)
        if kind == "joint":
            arrays += self._groups(plug, glob, history, who)
        return arrays, sums.samples, sums.error

    def plug(self, parameters: Arrays, config: Mapping[str, Scalar]) -> ElasticMessage:
        """The message."""
        return ElasticMessage(self, dict(zip(self.DOWNLOAD, parameters, strict=True)), config)

    def merge(self, plug: ElasticMessage, tables: Tables, rho: float | Tensor | OwnRho) -> FoldInMerge:
        """Users solved from their histories, with the settings of the message."""
        recency = Recency.of(float(plug.settings["half_life"]), float(plug.settings["ridge"]))
        return FoldInMerge(tables, self.objective(), recency, rho)

    def components(self, parameters: Arrays, config: Mapping[str, Scalar]) -> list[tuple[float, Component]]:
        """The merged tables, once there are groups."""
        plug = self.plug(parameters, config)
        tables = plug.tables(self.tensor(parameters[2]))
        if tables is None:
            return super().components(parameters, config)
        rho = plug.rho(tables)
        return [(1.0, self.merge(plug, tables, self._own(plug, tables) if rho is None else rho))]

    def _own(self, plug: ElasticMessage, tables: Tables) -> OwnRho:
        elastic, first = self.host.config.elastic, plug.tensor("first")
        trained = Tables(first[0], first[1:], tables.centres) if len(first) else tables
        seed, by_time = self.host.config.run.seed, self.host.split.has_times
        mean = plug.tensor("mean")
        return OwnRho(trained, mean, elastic.rhos, elastic.evidence, elastic.hold_out, seed, by_time)

    def _fit(self, plug: ElasticMessage, glob: Tensor, history: History) -> tuple[Arrays, float, int]:
        tables = plug.tables(glob)
        if tables is None:
            raise ValueError("ρ cannot be fitted before there are groups")
        own = self._own(plug, tables)
        if not len(self.asked(self.users, 2)):  # of fewer items nothing is held out
            return plug.nothing(), 0.0, 0
        evidence = self.merge(plug, tables, own).evidence(history, tables, own)
        if plug.settings["upload"] == "theta":
            arrays, loss = plug.theta(evidence, tables)
        else:
            arrays, loss = plug.curve(curves(evidence, tables, own.rhos), evidence.held)
        return arrays, loss, int(evidence.held.counts().sum())

    def _groups(self, plug: ElasticMessage, glob: Tensor, history: History, who: IntArray) -> Arrays:
        """Sums for each group's table: rows with an item and a group, one after the other."""
        tables = plug.tables(glob)
        if tables is None:
            raise ValueError("there are no groups to train yet")
        chosen = self.merge(plug, tables, 1.0).users(history, who)
        group = plug.sums_of(tables.choose(chosen)).cpu().numpy()
        found = [table_sums(table, history, who[group == g], self.objective()) for g, table in enumerate(tables.groups)]
        members = np.bincount(group, minlength=len(found)).astype(np.int64)
        packed = [self.pack(sums) for sums in found]
        items = np.concatenate([g * self.host.split.items + part[0].astype(np.int64) for g, part in enumerate(packed)])
        rows, counts = (np.concatenate([part[at] for part in packed]) for at in (1, 2))
        return [items, rows, counts, np.stack([part[3] for part in packed]), members]


class ElasticFedMFClient(CohortClient):
    """Hosts the users of one node; it keeps their embeddings and held-out losses."""

    DOWNLOAD: ClassVar[tuple[str, ...]] = (*CohortClient.DOWNLOAD, *DOWNLOADS)
    UPLOADS: ClassVar[dict[str, tuple[str, ...]]] = {
        **CohortClient.UPLOADS,
        **UPLOADS,
        "joint": ("group-items", "group-rows", "group-counts"),
    }

    def fit(self, parameters: Arrays, config: dict[str, Scalar]) -> tuple[Arrays, int, dict[str, Scalar]]:
        """Evaluate what was received, and answer for the phase that the run is in."""
        round_, kind, plug = int(config["server-round"]), str(config["upload"]), self.plug(parameters, config)
        scorer = self.model(round_ - 1, parameters, config)
        cohort = scorer.cohort
        metrics: dict[str, Scalar] = self.withheld(parameters[0])
        if config.get("evaluate"):
            metrics |= evaluate_cohort(scorer, self.host.split)
        who = self.asked(parameters[0])
        samples = int(cohort.histories.counts()[self.index(who)].sum())
        if kind == "cluster":
            arrays, loss = plug.cluster(cohort.state.user[self.index(who)], who), 0.0
        elif kind in ("curve", "theta"):
            arrays, loss, samples = self._fit(plug, scorer)
        else:
            held = plug.held(self.host.history(self.node)) if plug.cut else None
            histories = cohort.histories if held is None else without(cohort.histories, held)
            trained = Cohort(histories, cohort.state, cohort.settings)
            arrays, loss, samples = self._train(plug, scorer, trained, who, round_)
        metrics["loss-total"] = loss
        self.keep(round_, cohort, config)
        return arrays, samples, metrics

    def plug(self, parameters: Arrays, config: Mapping[str, Scalar]) -> ElasticMessage:
        """The message."""
        return ElasticMessage(self, dict(zip(self.DOWNLOAD, parameters, strict=True)), config)

    def index(self, who: IntArray) -> Tensor:
        """Positions where this process computes."""
        return torch.from_numpy(who).to(self.host.device())

    def model(self, round_: int, parameters: Arrays, config: Mapping[str, Scalar]) -> MergedScorer:
        """The cohort as it was after a round, with the merged tables once there are groups."""
        plain, plug = super().model(round_, parameters[:4], config), self.plug(parameters, config)
        tables = None if plain.tables is None else plug.tables(plain.tables.tables[0])
        if tables is None:
            return MergedScorer(plain.cohort, plain.tables)
        state, rho, elastic = plain.cohort.state, plug.rho(tables), self.host.config.elastic
        if rho is None:
            curve = torch.zeros((len(state.user), len(elastic.rhos))) if state.curve is None else state.curve
            weight = own_choice(curve.to(tables.glob.device), plug.tensor("mean"), elastic.evidence, elastic.rhos)
        else:
            weight = rho if isinstance(rho, Tensor) else torch.full_like(state.user[:, 0], rho)
        return MergedScorer(plain.cohort, plain.tables, merging=(tables, Chosen(tables.choose(state.user), weight)))

    def _fit(self, plug: ElasticMessage, scorer: MergedScorer) -> tuple[Arrays, float, int]:
        if scorer.merging is None:
            raise ValueError("ρ cannot be fitted before there are groups")
        tables, state = scorer.merging[0], scorer.cohort.state
        if not len(self.asked(self.users, 2)):
            return plug.nothing(), 0.0, 0
        held = plug.held(self.host.history(self.node))
        users, round_ = state.user, int(plug.settings["server-round"])
        everyone = without(scorer.cohort.histories, held)

        def embed(table: Tensor, some: IntArray) -> Tensor:
            """After a local round from this table: kept embeddings belong to the table they were trained with."""
            trial = Cohort(everyone, CohortState(users.clone(), None, None), scorer.cohort.settings)
            trial.train(self.index(some), GlobalTables(table[None], torch.zeros_like(users[:, 0]).long()), round_)
            return trial.state.user[self.index(some)]

        evidence = Evidence(held, tables.choose(users), embed)
        if plug.settings["upload"] == "theta":
            arrays, loss = plug.theta(evidence, tables)
        else:
            curve = curves(evidence, tables, self.host.config.elastic.rhos)
            arrays, loss = plug.curve(curve, held)
            state.curve = curve.float()
        return arrays, loss, int(held.counts().sum())

    def _train(
        self, plug: ElasticMessage, scorer: MergedScorer, cohort: Cohort, who: IntArray, round_: int
    ) -> tuple[Arrays, float, int]:
        """From the merged tables, or from the global one where there are no groups yet."""
        if scorer.merging is None:
            result = cohort.train(self.index(who), scorer.tables, round_, sums=True)
            loss = float((result.loss.double() * result.samples).sum())
            return self.pack("rows", cohort, result, self.users), loss, int(result.samples.sum())
        tables, chosen = scorer.merging
        slot, merged = torch.zeros_like(chosen.group), []
        for number, (table, inside) in enumerate(chosen.tables(tables)):
            slot[inside] = number
            merged.append(table)
        received, at = GlobalTables(torch.stack(merged), slot), self.index(who)
        group = plug.sums_of(chosen.group[at])
        items, rows, counts, loss, samples = [], [], [], 0.0, 0
        for number in range(len(tables.groups)):
            result = cohort.train(at[group == number], received, round_, sums=True)
            if result.sums is None:
                raise ValueError("no sums were collected")
            touched = result.sums.count.nonzero().squeeze(1)
            items.append(number * len(tables.glob) + touched)
            rows.append(result.sums.touched[touched].float())
            counts.append(result.sums.count[touched].int())
            loss += float((result.loss.double() * result.samples).sum())
            samples += int(result.samples.sum())
        return [torch.cat(part).cpu().numpy() for part in (items, rows, counts)], loss, samples
