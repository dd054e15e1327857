"""Elastic merging beside fedials and beside FedMF: how each trains the groups' tables."""

from __future__ import annotations

import numpy as np
import torch

from fedem_flwr.aggregation.groups import GroupSums, average_groups, newton_groups
from fedem_flwr.aggregation.newton import Newton
from fedem_flwr.config import Config
from fedem_flwr.errors import InputError
from fedem_flwr.nodes.host import as_tensor
from strategies.fedials import Fedials
from strategies.fedmf import FedMF
from strategies.merging import Elastic
from strategies.uploads import Named, Spec, sparse_problem


class ElasticFedials(Elastic, Fedials):
    """Beside `Fedials`: Newton-like steps of the groups' tables, with a ridge towards the global one."""

    METHOD = Fedials

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        self._groups = self._none()
        self.known = self._none()  # running means of the groups' counts and grams
        self.group_steps = 0

    def _none(self) -> GroupSums:
        return GroupSums.zeros(self.elastic.groups, self.items, self.config.model.dim)

    @property
    def table_rounds(self) -> int:
        """Rounds before there are groups."""
        return self.schedule.table

    def joint(self, uploaders: np.ndarray) -> dict[str, Spec]:
        """The global table's sums and the groups'."""
        groups, dim = self.elastic.groups, self.config.model.dim
        more = {"group-grams": Spec((groups, dim, dim)), "members": Spec((groups,), "int64")}
        return {**Fedials.expected(self, uploaders), **super().joint(uploaders), **more}

    def problem(self, arrays: Named, uploaders: np.ndarray) -> str:
        """Also check what the global table's sums are checked for."""
        fault = super().problem(arrays, uploaders)
        if fault or self.upload != "joint":
            return fault
        rows = {"rows": arrays["rows"]}
        fault = sparse_problem(arrays["items"], arrays["counts"], rows, self.items, len(uploaders))
        members, group = arrays["members"], arrays["group-items"] // self.items
        if not fault and (bool((members < 0).any()) or members.sum() > len(uploaders)):
            fault = "'members' are not these users"
        if not fault and bool((arrays["group-counts"] > members[group]).any()):
            fault = "'group-counts' are of more users than their groups have"
        return fault or self.too_large(arrays, ("rows", "gram", "group-rows", "group-grams"), len(uploaders))

    def receive_joint(self, arrays: Named, participants: np.ndarray) -> None:
        """Both kinds of sums."""
        Fedials.receive(self, arrays, participants)
        at, into = torch.from_numpy(arrays["group-items"].astype(np.int64)), self._groups
        into.gradient.view(-1, self.config.model.dim).index_add_(0, at, as_tensor(arrays["group-rows"]).double())
        into.counts.view(-1).index_add_(0, at, as_tensor(arrays["group-counts"]).double())
        into.grams.add_(as_tensor(arrays["group-grams"]))
        into.members.add_(as_tensor(arrays["members"]))

    def step_groups(self) -> None:
        """A step; with some of the users a small one, with running means."""
        trained = float(self._groups.members.sum())
        if not trained:
            return
        users, rate = int((self.samples > 0).sum()), self.rate()
        self.group_steps += 1
        sums = self._groups.scaled(users / trained)
        if trained < users:
            memory = 1 / self.group_steps
            sums = sums.remembering(self.known, memory, max(memory, rate))
        self.known, self._groups = sums, self._none()
        step = Newton(self.ials.weight, self.ials.ridge, self.ials.kappa, rate)
        self.groups = newton_groups(self.groups, self.table, sums, step, self.elastic.ridge)

    def state(self) -> Named:
        """Also the running means."""
        known = {f"known-{name}": getattr(self.known, name).numpy() for name in ("counts", "grams", "members")}
        return {**super().state(), **known, "group-steps": np.array([self.group_steps])}

    def restore(self, state: Named) -> None:
        """See `state`."""
        super().restore(state)
        kept = [as_tensor(state[f"known-{name}"]) for name in ("counts", "grams", "members")]
        self.known = GroupSums(torch.zeros_like(self._groups.gradient), *kept)
        self.group_steps = int(state["group-steps"][0])


class ElasticFedMF(Elastic, FedMF):
    """Beside `FedMF`: clients train from merged tables, and rows are averaged in each group and over all."""

    METHOD = FedMF

    def __init__(self, config: Config, items: int) -> None:
        if config.aggregate.weights != "rows":
            raise InputError("fedmf-elastic averages rows: aggregate.weights must be rows")
        super().__init__(config, items)
        self._groups = self._none()

    def _none(self) -> GroupSums:
        return GroupSums.zeros(self.elastic.groups, self.items, self.config.model.dim)

    def typical(self) -> dict[str, Spec]:
        """See the base; a user touches its items and their negatives."""
        items = float(self.samples[self.samples > 0].mean()) * (1 + self.config.local.negatives)
        length = min(self.items, round(items))
        return {name: spec.filled(length) for name, spec in self.expected(np.zeros(1, np.int64)).items()}

    def problem(self, arrays: Named, uploaders: np.ndarray) -> str:
        """Also refuse rows whose mean is too large."""
        fault = super().problem(arrays, uploaders)
        if fault or self.upload != "joint":
            return fault
        size = np.linalg.norm(arrays["group-rows"] / arrays["group-counts"][:, None])
        limit = self.config.aggregate.max_norm
        return f"'group-rows' has a mean of norm {size:.3g}, more than {limit:.3g}" if size > limit else ""

    def receive_joint(self, arrays: Named, participants: np.ndarray) -> None:
        """The groups' sums."""
        at, into = torch.from_numpy(arrays["group-items"].astype(np.int64)), self._groups
        rows, counts = as_tensor(arrays["group-rows"]).double(), as_tensor(arrays["group-counts"]).double()
        into.gradient.view(-1, self.config.model.dim).index_add_(0, at, rows)
        into.counts.view(-1).index_add_(0, at, counts)
        self._sum.index_add_(0, at % self.items, rows)
        self._count.index_add_(0, at % self.items, counts)

    def step_groups(self) -> None:
        """Row means, shrunk towards the global rows."""
        sums, self._groups = self._groups, self._none()
        self.groups = average_groups(self.groups, self.table, sums.gradient, sums.counts, self.elastic.ridge)
