"""A small federation whose clients keep trained rows, and its twin with whole tables of the same meaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from worlds import config_of

from fedem_flwr.aggregation import aggregation_weights, combine_tables, similarity
from fedem_flwr.aggregation.weights import row_weights
from fedem_flwr.contract import Gathered, Method
from fedem_flwr.contract.finding import method_of
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.downloads import Download
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.samples import TrainingItems, draw_samples
from fedem_flwr.engine.touched import SentRows, TouchedCohort
from fedem_flwr.models.rows import Rows

USERS, ITEMS, DIM = 9, 40, 4
CPU = torch.device("cpu")


def method_for(table: str, **sections: Any) -> Method:
    tree = {"model": {"dim": DIM, "init_std": 0.3}, "local": {"epochs": 2, "batch_size": 16}, **sections}
    tree["merge"] = {"epochs": 2, **tree.get("merge", {}), "table": table}
    name = tree.pop("name", "fedem")
    return method_of(config_of(name, **tree), ITEMS)


def items_of(users: int) -> TrainingItems:
    """A few positives for each."""
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randperm(ITEMS, generator=generator)[: 2 + u % 4].sort().values for u in range(users)]
    offsets = torch.tensor([0, *np.cumsum([len(row) for row in rows])])
    items = torch.cat(rows)
    return TrainingItems(torch.arange(users), ITEMS, offsets, items, offsets, items)


@dataclass
class Twin:
    """The same federation with whole tables: every row that its user has not trained in its last round is B's."""

    method: Method
    data: TrainingItems

    def __post_init__(self) -> None:
        self.base = self.method.parts()["items"].initial("items", ITEMS, self.method.seed)
        self.state = self.method.initial_state(USERS, CPU)
        self.kept = torch.zeros(USERS, ITEMS, dtype=torch.bool)  # rows of their own
        self.sent = self.state["items"].clone()
        self.waits = torch.zeros(USERS, ITEMS, dtype=torch.bool)

    def tables(self) -> tuple[Tensor, Tensor]:
        """Own and received ones, as the next round finds them."""
        own = torch.where(self.kept.unsqueeze(2), self.state["items"], self.base)
        return own, torch.where(self.waits.unsqueeze(2), self.sent, self.base)

    def follow(self, here: Sparse) -> None:
        """Go on from what the other side has, to the bit."""
        self.base = here.server["items"].clone()
        for rows, users, into in (
            (here.cohort.rows, torch.arange(USERS), self.state["items"]),
            (Rows.of(here.server, "items"), torch.from_numpy(here.receivers), self.sent),
        ):
            into[users[rows.owner], rows.index.long()] = rows.values

    def round(self, who: Tensor, up: Tensor, number: int) -> Tensor:
        """Train `who`, of whom `up` upload; returns the losses."""
        method, data = self.method, self.data
        own, received = self.tables()
        cohort = Cohort(data, {**self.state, "items": own}, method)
        slot = torch.arange(USERS).where(self.waits.any(1), -1)
        result = cohort.train(who, {"items": Download(received, slot)}, number)
        samples = draw_samples(data, who, method.local.negatives, Draws(method.seed), number)
        self.state = cohort.state
        self.kept[who], self.waits[who] = False, False
        for at, user in enumerate(who.tolist()):
            self.kept[user, samples.touched[at, : int(samples.touched_count[at])]] = True
        tables = torch.where(self.kept.unsqueeze(2), self.state["items"], self.base)[up]
        shares = data.counts()[up].double()
        alpha = method.config.aggregate.alpha
        weights = aggregation_weights("eq13", shares, similarity(tables), alpha)
        self.sent[up], self.waits[up] = combine_tables(weights, tables), self.kept[up]
        alone = row_weights("eq13", shares / shares.sum(), torch.zeros(1, len(up)), alpha)
        self.base = combine_tables(alone, tables)[0]
        return result.loss


@dataclass
class Sparse:
    """What the product does of it, without messages."""

    method: Method
    data: TrainingItems

    def __post_init__(self) -> None:
        cohort = self.method.cohort(self.data, self.method.initial_state(USERS, CPU))
        assert isinstance(cohort, TouchedCohort)
        self.cohort = cohort
        self.server = {**self.method.start(), **Rows.none(0, DIM).named("items")}
        self.receivers = np.empty(0, np.int64)

    def download(self) -> SentRows:
        place = torch.full((USERS,), -1)
        place[torch.from_numpy(self.receivers)] = torch.arange(len(self.receivers))
        zeros = torch.zeros(USERS, dtype=torch.int64)
        return SentRows(self.server["items"].unsqueeze(0), zeros, Rows.of(self.server, "items"), place)

    def round(self, who: Tensor, up: Tensor, number: int) -> Tensor:
        result = self.cohort.train(who, {"items": self.download()}, number)
        task = self.method.phases()[0].task
        each = self.cohort.rows.at(up).named("items")
        counts = self.data.counts().numpy()
        gathered = Gathered(number, number, {}, each, up.numpy(), len(who), USERS, counts)
        left = ~np.isin(self.receivers, np.union1d(who.numpy(), up.numpy()))
        waiting = Rows.of(self.server, "items").at(torch.from_numpy(np.flatnonzero(left)))
        self.server = task.fold(self.server, gathered)
        users = np.append(up.numpy(), self.receivers[left])
        order = np.argsort(users)
        both = Rows.joined([Rows.of(self.server, "items"), waiting]).at(torch.from_numpy(order))
        self.receivers, self.server = users[order], {**self.server, **both.named("items")}
        return result.loss
