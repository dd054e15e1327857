"""Elastic merging as a plug-in: a table for each group of similar users beside a method's global one.

A run goes through phases: the method's own rounds; k-means of the embeddings; rounds that train the groups' tables too;
a fit of ρ on held-out items, that have trained nothing so far; and the tables' rounds once more, with all items.
Private, up and down: see `clients.elastic`.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch

from fedem_flwr.aggregation.adam import ServerAdam
from fedem_flwr.aggregation.groups import moved_centres
from fedem_flwr.config import Config
from fedem_flwr.models.adapter import Adapter
from fedem_flwr.nodes.host import as_tensor
from strategies.base import CohortStrategy
from strategies.phases import Schedule
from strategies.uploads import Named, Spec, sparse_problem

_ROUNDING = 1e-5  # of sums of floats
_SEEDS = 20  # users that a group's first centre is the mean of


class Elastic(CohortStrategy):
    """The plug-in, mixed into a strategy with one item table for all.

    Attributes:
        METHOD: that strategy. table: (m, d) its table.
    """

    METHOD: ClassVar[type[CohortStrategy]]
    table: torch.Tensor

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        self.elastic, dim = config.elastic, config.model.dim
        self.schedule = Schedule.of(config.run.rounds, config.elastic)
        self._plain = self.upload
        self.groups = torch.empty((0, items, dim), dtype=self.table.dtype)  # (G, m, d) once there are any
        self.centres = torch.empty((0, dim))
        self.members = torch.zeros(self.elastic.groups)
        self.first = torch.empty((0, items, dim))  # (1 + G, m, d) tables as ρ was fitted with
        self.mean = np.empty(0, np.float32)  # (R,) mean loss of a held-out item under each ρ
        self.theta = ServerAdam.start(torch.empty(0))
        self.done = 0
        self._total, self._behind = torch.zeros(0), 0.0
        self._enter(0)

    def _enter(self, done: int) -> None:
        self.done = done
        phase = self.schedule.phase(done + 1)
        fit = "theta" if len(self.mean) else "curve"
        kinds = {"table": self._plain, "cluster": "cluster", "groups": "joint", "fit": fit, "again": "joint"}
        self.upload = kinds[phase]

    @property
    def rho(self) -> float:
        """The common ρ."""
        return self.elastic.rhos[int(np.argmin(self.mean))] if len(self.mean) else self.elastic.start

    def settings(self, round_: int) -> dict[str, int | float | str]:
        """Also the common ρ, and whether held-out items are left out."""
        hold = self.elastic.merge != "none" and self.schedule.phase(round_) != "again"
        seeds = min(1.0, _SEEDS * self.elastic.groups / max(1, self.users))
        return {**super().settings(round_), "rho": self.rho, "hold": int(hold), "seeds": seeds}

    def download(self, users: np.ndarray) -> Named:
        """Also the groups' tables and centres, and what ρ is found with."""
        stateless = self.elastic.merge == "client" and self.stateless
        extra = {
            "groups": self.groups.float().numpy(),
            "centres": self.centres.numpy(),
            "theta": self.theta.value.numpy(),
            "mean": self.mean,
            "first": self.first.numpy() if stateless else self.first[:0].numpy(),
        }
        return {**self.METHOD.download(self, users), **extra}

    def expected(self, uploaders: np.ndarray) -> dict[str, Spec]:
        """What the phase asks for."""
        groups, dim, one = self.elastic.groups, self.config.model.dim, Spec((1,), "int64")
        if self.upload == "cluster":
            return {"centres": Spec((groups, dim)), "members": Spec((groups,), "int64")}
        if self.upload == "curve":
            return {"curve": Spec((len(self.elastic.rhos),)), "items": one}
        if self.upload == "theta":
            return {"theta": Spec(tuple(self.theta.value.shape)), "items": one}
        if self.upload == "joint":
            return self.joint(uploaders)
        return self.METHOD.expected(self, uploaders)

    def joint(self, uploaders: np.ndarray) -> dict[str, Spec]:
        """Sums for the groups' tables: rows of (group, item), in this order."""
        return {
            "group-items": Spec((None,), "int64"),
            "group-rows": Spec((None, self.config.model.dim)),
            "group-counts": Spec((None,), "int32"),
        }

    def problem(self, arrays: Named, uploaders: np.ndarray) -> str:
        """Also refuse rows that are not of the groups' tables, and sums that these users cannot have."""
        if self.upload == self._plain:
            return super().problem(arrays, uploaders)
        fault = CohortStrategy.problem(self, arrays, uploaders)
        if fault:
            return fault
        if self.upload == "joint":
            rows, codes = {"group-rows": arrays["group-rows"]}, self.elastic.groups * self.items
            return sparse_problem(arrays["group-items"], arrays["group-counts"], rows, codes, len(uploaders))
        if self.upload == "cluster":
            most, size = arrays["members"], np.linalg.norm(arrays["centres"], axis=1)
            wrong = bool((most < 0).any()) or most.sum() > len(uploaders) or bool((size > most * (1 + 1e-5)).any())
            return "'centres' are not sums of this node's users" if wrong else ""
        return self.unfit(arrays, uploaders)

    def unfit(self, arrays: Named, uploaders: np.ndarray) -> str:
        """What is wrong with sums that ρ is fitted on; empty if these users' held-out items can give them."""
        items, hosted = int(arrays["items"][0]), len(self._fellows(uploaders))
        most = self.elastic.hold_out * hosted
        if not 0 <= items <= most:
            return f"'items' is {items}, not between 0 and {most}"
        values = arrays[self.upload]
        each = np.log2(1 + self.items) if self.upload == "curve" else self.config.aggregate.max_norm
        least = 0.0 if self.upload == "curve" else -each
        wrong = bool((values < least * items).any() or (values > each * items * (1 + _ROUNDING)).any())
        return f"'{self.upload}' cannot be of {items} held-out items" if wrong else ""

    def _fellows(self, uploaders: np.ndarray) -> np.ndarray:
        """The users of the node that hosts these: all of them fit ρ."""
        hosts = (users for users in self._nodes.values() if len(uploaders) and uploaders[0] in users)
        return next(hosts, uploaders)

    def receive(self, arrays: Named, participants: np.ndarray) -> None:
        """Add a node's sums to the round's."""
        if self.upload == self._plain:
            return self.METHOD.receive(self, arrays, participants)
        if self.upload == "joint":
            return self.receive_joint(arrays, participants)
        name, weight = {"cluster": ("centres", "members"), "curve": ("curve", "items"), "theta": ("theta", "items")}[
            self.upload
        ]
        new = as_tensor(arrays[name]).double()
        self._total = self._total + new if self._total.shape == new.shape else new
        if self.upload == "cluster":
            members = as_tensor(arrays[weight]).float()
            self.members = self.members + members if self._behind else members
        self._behind += float(arrays[weight].sum())
        return None

    @abstractmethod
    def receive_joint(self, arrays: Named, participants: np.ndarray) -> None:
        """Add a node's sums for the global table and the groups' ones."""

    @abstractmethod
    def step_groups(self) -> None:
        """The step of the groups' tables, after the global one's."""

    def combine(self, round_: int) -> None:
        """The phase's step."""
        if self.upload in (self._plain, "joint"):
            self.METHOD.combine(self, round_)
            if self.upload == "joint":
                self.step_groups()
        elif self._behind:
            getattr(self, f"_after_{self.upload}")()
        self._total, self._behind = torch.zeros(0), 0.0
        self._enter(round_)

    def _after_cluster(self) -> None:
        if not len(self.centres):
            self.centres = torch.zeros((self.elastic.groups, self.config.model.dim))
            self.groups = self.table.repeat(self.elastic.groups, 1, 1)
        self.centres = moved_centres(self.centres, self._total, self.members)

    def _after_curve(self) -> None:
        self.mean = (self._total / self._behind).float().numpy()
        self.first = torch.cat([self.table[None], self.groups]).float()
        if self.elastic.merge == "item":
            rho = min(max(self.rho, 0.05), 0.95)
            adapter = Adapter(self.config.model.dim, self.elastic.hidden, float(np.log(rho / (1 - rho))))
            self.theta = ServerAdam.start(adapter.initial(self.config.run.seed))

    def _after_theta(self) -> None:
        self.theta = self.theta.step((self._total / self._behind).float(), self.elastic.lr)

    def diagnostics(self) -> dict[str, object]:
        """Also the common curve of ρ, and how many users each group has."""
        curve = [{"rho": r, "loss": float(x)} for r, x in zip(self.elastic.rhos, self.mean, strict=False)]
        found = {"merge": self.elastic.merge, "rho": self.rho, "curve": curve, "members": self.members.tolist()}
        return {**super().diagnostics(), "elastic": found}

    def state(self) -> Named:
        """Also the groups, what was fitted, and how far the run is."""
        own = {"groups": self.groups, "centres": self.centres, "members": self.members, "first": self.first}
        progress = np.array([self.done, self.theta.steps])
        named = {name: value.numpy() for name, value in own.items()}
        return {
            **self.METHOD.state(self),
            **self.theta.arrays("theta"),
            **named,
            "mean": self.mean,
            "progress": progress,
        }

    def restore(self, state: Named) -> None:
        """See `state`."""
        self.METHOD.restore(self, state)
        for name in ("groups", "centres", "members", "first"):
            setattr(self, name, as_tensor(state[name]))
        done, steps = state["progress"].tolist()
        self.mean, self.theta = state["mean"], ServerAdam.of("theta", state, steps)
        self._enter(done)
