"""Adding uploads up: the same on a server, over nodes, and on a device whose users are looked at one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.contract.asked import Asked, Device, as_tensor
from fedem_flwr.contract.fields import Field, Named, empty
from fedem_flwr.contract.phases import Task, Upload
from fedem_flwr.engine.contribution import Contribution, Stage, staged
from fedem_flwr.engine.history import IntArray

DENSE = 10_000**2  # rows of a sum that may be kept in full; of more, those that anybody sends (sparse tensors)
_WAITING = 1 << 22  # rows that are sent before they are added up


class Adder:
    """Sums of uploads, float64. Rows under an index are added to the rows of the whole sum.

    Args:
        fields: what an upload holds; single users' own values are left out.
    """

    def __init__(self, fields: Mapping[str, Field]) -> None:
        every = {name: field for name, field in fields.items() if not field.each}
        few = {name for name, field in every.items() if field.sparse or field.rows > DENSE}
        fields = {name: field for name, field in every.items() if not few & {name, field.index}}
        self.every, self.fields = every, fields
        self._sparse = {
            name: SparseSum({n: one for n, one in every.items() if one.index == name}, field.rows)
            for name, field in every.items()
            if name in few
        }
        self._whole: dict[str, Tensor] = {}
        self.seen = {name: torch.zeros(field.rows, dtype=torch.bool) for name, field in fields.items() if field.rows}
        for name, field in fields.items():
            if not field.rows:
                open_length = fields[field.index].rows if field.index else 0
                self._whole[name] = torch.zeros(field.sized(open_length), dtype=torch.float64)

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Add an upload."""
        at = {name: torch.from_numpy(arrays[name].astype(np.int64)) for name in self.seen}
        for name, where in at.items():
            self.seen[name][where] = True
        for name, into in self._whole.items():
            values, field = as_tensor(arrays[name]), self.fields[name]
            if field.index:
                into.index_add_(0, at[field.index], values.double())
            else:
                into.add_(values)
        for name, sparse in self._sparse.items():
            sparse.add(arrays[name], arrays)

    @property
    def sums(self) -> dict[str, Tensor]:
        """By name; of rows under an index with every row, in sparse tensors where they are so many or so declared."""
        return {**self._whole, **{name: x for one in self._sparse.values() for name, x in one.sums().items()}}

    def packed(self) -> Named:
        """The sums as one upload: of rows under an index those that anybody has sent."""
        found: Named = {}
        rows = {name: seen.nonzero().squeeze(1) for name, seen in self.seen.items()}
        for name, field in self.fields.items():
            if field.rows:
                found[name] = rows[name].numpy().astype(field.dtype)
            else:
                total = self._whole[name][rows[field.index]] if field.index else self._whole[name]
                found[name] = total.numpy().astype(field.dtype)
        for name, sparse in self._sparse.items():
            found |= {n: x.astype(self.every[n].dtype) for n, x in {name: sparse.merged(), **sparse.values}.items()}
        return found


class SparseSum:
    """Sums of the rows that anybody has sent, of so many that there is no table of all of them.

    Args:
        fields: of numbers, one a row. rows: how many there could be.
    """

    def __init__(self, fields: Mapping[str, Field], rows: int) -> None:
        self.rows, self.at = rows, np.empty(0, np.int64)
        self.values = {name: np.empty(0) for name in fields}
        self._waiting: list[Named] = []
        self._many = 0

    def add(self, at: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
        """Add an upload: rows `at`, ascending, and their numbers."""
        self._waiting.append({"": at, **{name: arrays[name] for name in self.values}})
        self._many += len(at)
        if self._many > max(len(self.at), _WAITING):
            self.merged()

    def merged(self) -> IntArray:
        """(t,) the rows, ascending, whose sums `values` then has."""
        if self._waiting:
            every = np.concatenate([self.at, *(one[""] for one in self._waiting)])
            order = np.argsort(every, kind="stable")  # numbers are added in the order in which they came
            every = every[order]
            first = np.flatnonzero(np.diff(every, prepend=-1))
            self.at = every[first]
            for name, before in self.values.items():
                together = np.concatenate([before, *(one[name] for one in self._waiting)])[order]
                self.values[name] = np.add.reduceat(together, first) if len(first) else np.empty(0)
            self._waiting, self._many = [], 0
        return self.at

    def sums(self) -> dict[str, Tensor]:
        """Sparse tensors (rows,), coalesced."""
        at = torch.from_numpy(self.merged())[None]
        return {
            name: torch.sparse_coo_tensor(
                at, torch.from_numpy(x), (self.rows,), check_invariants=False, is_coalesced=True
            )
            for name, x in self.values.items()
        }


def contributed(task: Task, device: Device, asked: Asked, stages: Sequence[Stage]) -> Upload:
    """A task's upload; where there are stages, what each user gives alone goes through them before it is added up.

    What a cohort of one user would send is that user's contribution; in a grouped task that of a node is one.
    """
    if not stages or task.handles_stages:
        return task.contribute(device, asked)
    fields, samples, loss = task.fields(), 0, None
    adder = Adder(fields)
    each: dict[str, list[np.ndarray]] = {name: [] for name in fields.keys() - adder.fields.keys()}
    for who in [asked.who] if task.grouped else asked.who[:, None]:
        one = one_alone(task, device, asked, who, stages)
        adder.add(one.arrays)
        for name, found in each.items():
            found.append(one.arrays[name])
        samples, loss = samples + one.samples, None if one.loss is None else (loss or 0.0) + one.loss
    return Upload({**adder.packed(), **{name: np.concatenate(x) for name, x in each.items()}}, samples, loss)


def one_alone(task: Task, device: Device, asked: Asked, who: IntArray, stages: Sequence[Stage]) -> Upload:
    """What the users at positions `who` would send, were they all of a node, after the stages."""
    users = device.users[who]
    own = asked.uploaders[np.isin(asked.uploaders, users)]
    one = task.contribute(device, replace(asked, who=who, uploaders=own))
    return replace(one, arrays=_values(staged(_contribution(one, users[:1]), stages, asked.round)))


def nothing(task: Task) -> Upload:
    """What a node sends that withholds its users' sum."""
    return Upload(empty(task.fields()), 0)


def _contribution(upload: Upload, users: np.ndarray) -> Contribution:
    none = torch.zeros((1, 0), dtype=torch.int64)
    values = {name: as_tensor(array).unsqueeze(0) for name, array in upload.arrays.items()}
    samples = torch.tensor([upload.samples])
    return Contribution(torch.from_numpy(np.array(users, np.int64)), samples, none, none.bool(), values=values)


def _values(contribution: Contribution) -> Named:
    return {name: value[0].numpy() for name, value in contribution.values.items()}
