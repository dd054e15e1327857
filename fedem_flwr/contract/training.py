"""The default task: local training of a method's parts, and means of what goes up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.aggregation import average_rows
from fedem_flwr.contract.asked import Asked, Device
from fedem_flwr.contract.fields import Field, Named, counted
from fedem_flwr.contract.phases import Gathered, Sender, Task, Upload
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.contribution import TrainResult
from fedem_flwr.engine.fallback import COMPILING
from fedem_flwr.engine.parts import Part, State
from fedem_flwr.engine.reach import longest, reach
from fedem_flwr.models.rows import Rows, ragged

if TYPE_CHECKING:
    from fedem_flwr.contract.method import Method


class LocalTraining(Task):
    """Train the participants; upload the sums, or each user's own values, of the parts that go up.

    Args:
        method: whose parts are trained.
    """

    handles_stages = True
    convex: ClassVar[bool] = False  # whether a `fold` of its own makes means, with weights that sum to 1

    def __init__(self, method: Method) -> None:
        self.method = method

    @property
    def _up(self) -> dict[str, Part]:
        return {name: part for name, part in self.method.parts().items() if part.up != "none"}

    def fields(self) -> dict[str, Field]:
        """A sum and what it is divided by; or each uploader's values. See `contract.phases.Task`."""
        each = any(part.up == "each" for part in self._up.values())
        found = {"users": Field((None,), "int64", each=True)} if each else {}
        for name, part in self._up.items():
            if part.up == "each" and part.touched:
                found |= counted(name, self.method.items, part.width)
                continue
            shape = (self.method.items, part.width) if part.axis == "item" else (part.width,)
            if part.up == "each":
                found[name] = Field((None, *shape), each=True, bounded=True)
                continue
            found[name] = Field(shape)
            found[weight_name(name)] = self._weight_field(part)
        return found

    def _weight_field(self, part: Part) -> Field:
        if not part.by_row:
            return Field((1,), "int64")
        if part.mean == "distance":
            return Field((self.method.items,), least=0.0)
        return Field((self.method.items,), "int32", count=True)

    def needs(self) -> Sequence[str]:
        """All shared parts."""
        return self.method.sends()

    def cohort(self, device: Device, asked: Asked) -> Cohort:
        """Whom to train, on what."""
        return self.method.training_cohort(device)

    def contribute(self, device: Device, asked: Asked) -> Upload:
        """See `contract.phases.Task`."""
        who = torch.from_numpy(np.asarray(asked.who)).to(asked.place)
        result = self.trained(self.cohort(device, asked), who, device, asked)
        loss = float((result.loss.double() * result.samples).sum())
        uncompiled = len(who) if result.uncompiled and self.method.engine in COMPILING else 0
        return Upload(self.packed(result, device, asked), int(result.samples.sum()), loss, uncompiled)

    def trained(self, cohort: Cohort, who: Tensor, device: Device, asked: Asked) -> TrainResult:
        """Train users `who` of the cohort; what they give has gone through the method's stages."""
        sums = bool(self.method.stages()) or any(part.up == "sum" for part in self._up.values())
        return cohort.train(who, self.method.downloads(device, asked), asked.round, sums=sums)

    def packed(self, result: TrainResult, device: Device, asked: Asked) -> Named:
        """The arrays of the upload."""
        up = self._up
        each = any(part.up == "each" for part in up.values())
        arrays: Named = {"users": np.asarray(asked.uploaders)} if each else {}
        for name, part in up.items():
            if part.up == "each" and part.touched:
                at = torch.from_numpy(device.positions(asked.uploaders)).to(asked.place)
                rows = Rows.of(device.cohort.state, name).at(at).named(name)
                arrays |= {key: values.cpu().numpy() for key, values in rows.items()}
            elif part.up == "each":
                arrays[name] = _own(name, device, asked, result).float().cpu().numpy()
            else:
                found = result.sums[name]
                arrays[name] = found.total.float().cpu().numpy()
                kind = self._weight_field(part).dtype
                arrays[weight_name(name)] = found.weight.reshape(-1).cpu().numpy().astype(kind)
        return {**arrays, **{name: values.float().cpu().numpy() for name, values in result.extra.items()}}

    def fold(self, state: State, gathered: Gathered) -> State:
        """The means; what nobody contributed to stays as it was."""
        new = dict(state)
        for name, part in self._up.items():
            if part.up == "sum":
                total, weight = gathered.sums[name], gathered.sums[weight_name(name)]
                before = torch.zeros_like(state[name]) if part.change else state[name]
                found = (average_rows if part.by_row else _mean)(total, weight, before)
                new[name] = state[name] + found if part.change else found
        return new

    def problem(self, arrays: Named, users: int, samples: int) -> str:
        """Sums whose mean is too large, rows that nobody is behind, weights that these users cannot have."""
        limit = self.method.max_norm
        for name, part in self._up.items():
            if part.up == "each" and part.touched and (problem := self._too_long(name, arrays)):
                return problem
            if part.up == "each":
                continue
            total, weight = arrays[name], arrays[weight_name(name)]
            most = samples * (1 + self.method.local.negatives) if part.mean == "samples" else users
            if not part.by_row and not 0 <= int(weight[0]) <= most:
                return f"'{weight_name(name)}' is {int(weight[0])}, not between 0 and {most}"
            if bool((total * (along(weight, total) == 0)).any()):
                return f"'{name}' has values that nobody is behind"
            size = float(np.linalg.norm(_means(total, weight).astype(np.float64)))
            if size > limit:
                return f"'{name}' has a mean of norm {size:.3g}, more than {limit:.3g}"
        return ""

    def _too_long(self, name: str, arrays: Named) -> str:
        """Rows of one user that are larger than a whole table may be."""
        rows = Rows.of({key: torch.from_numpy(np.array(arrays[key])) for key in ragged(name)}, name)
        squares = torch.zeros(len(rows.counts), dtype=torch.float64)
        squares.index_add_(0, rows.owner, rows.values.double().square().sum(1))
        size = float(squares.sqrt().max()) if len(squares) else 0.0
        most = self.method.max_norm
        return f"'{ragged(name)[2]}' has norm {size:.3g}, more than {most:.3g}" if size > most else ""

    def impossible(self, arrays: Named, state: State, sender: Sender) -> str:
        """Rows that are further from where they started than training can take them; see `engine.reach`."""
        as_here = type(self).contribute is LocalTraining.contribute
        for name, part in self._up.items() if as_here else ():
            most = self.furthest(name, part, state, sender)
            own = ragged(name)[2] if part.touched else name
            values = arrays[own] if part.up == "each" else _means(arrays[name], arrays[weight_name(name)])
            if (size := longest(values)) > most:
                return f"'{name}' has a row of norm {size:.3g}, more than {most:.3g}: training takes none so far"
        return ""

    def furthest(self, name: str, part: Part, state: State, sender: Sender) -> float:
        """The largest norm of a row, or of a whole part that has none, that a user can send; inf: not known."""
        method, means = self.method, self.convex or type(self).fold is LocalTraining.fold
        if not method.steps_by_updates or (part.kept and not means):
            return math.inf
        a_round = partial(reach, method.updates(sender.round), name, part.width, method.local, decoys=self._decoys)
        if not part.kept and name in state:
            return longest(state[name].numpy()) + a_round(int(sender.samples.max(initial=0)))
        # Kept, it was merged with others' of all rounds, by weights that sum to 1; else every round starts it anew.
        start = longest(part.initial(name, method.items, method.seed).numpy())
        return start + (sender.round if part.kept else 1) * a_round(sender.most)

    @property
    def _decoys(self) -> float:
        privacy = self.method.config.privacy
        return privacy.decoys if privacy.secret_draws else 0.0

    def typical_length(self, items: float) -> int:
        """One user's own values; where those are touched rows, as many as its samples touch on average."""
        if not any(part.touched and part.up == "each" for part in self._up.values()):
            return 1
        left = max(1.0, self.method.items - items)
        missed = float((1 - min(1.0, self.method.local.negatives / left)) ** items)  # of an item that is no positive
        return round(items + left * (1 - missed))


def _own(name: str, device: Device, asked: Asked, result: TrainResult) -> Tensor:
    """(a, ...) the uploaders' own values of a part; all of them as they lie, where everybody uploads."""
    values, at = result.each.get(name, device.cohort.state[name]), device.positions(asked.uploaders)
    if len(at) == len(values):
        return values
    at = np.searchsorted(asked.who, at) if name in result.each else at
    return values[torch.from_numpy(at).to(values.device)]


def _mean(total: Tensor, weight: Tensor, otherwise: Tensor) -> Tensor:
    return (total / weight).to(otherwise) if float(weight) else otherwise


def along(weight: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Weights in the shape of what they divide: (m, 1) of rows; (1, 1) or (1,) of whole tensors."""
    return weight.reshape(-1, *[1] * (total.ndim - 1))


def _means(total: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Means behind sums of an upload; where nobody is behind, what is there. Weights by distance may be below 1."""
    behind = along(weight, total)
    return np.asarray(total / np.where(behind > 0, behind, 1))


def weight_name(name: str) -> str:
    """What an upload calls the divisor of a part's sum."""
    return f"{name}-weight"
