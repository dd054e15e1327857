"""From what each user gives in a round to a cohort's sums, with a stage in between for what must see single users.

Clipping, noise and masks act on one user's contribution before anything is added up. Without stages the sums are
formed in blocks, and no contribution of a single user is ever made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedem_flwr.engine.block import Trained
from fedem_flwr.engine.parts import Part, Parts


@dataclass(frozen=True)
class Contribution:
    """What k users give in a round; every tensor has them on its leading axis.

    Attributes:
        users: (k,) codes in the run, which key a stage's draws. samples: (k,) positives and negatives.
        items: (k, t) items of the touched rows. real: (k, t) which of them are real.
        rows: (k, t, width) trained rows of each item part that goes up.
        before: the same as training began with, rows and parts among the `values`, where a mean or a stage looks at it.
            Of what clients keep, stages see what the server knows: what it has sent, or else the initial values.
        shrunk: (k,) of item parts with weight decay: the factor by which their other rows have become smaller.
        values: (k, ...) whatever else goes up: model parts, what goes up of each user, or something that a method makes
            of its parts.
        factor: (k,) what a stage lets each user count for in means of rows, at most 1; None: 1.
    """

    users: Tensor
    samples: Tensor
    items: Tensor
    real: Tensor
    rows: dict[str, Tensor] = field(default_factory=dict)
    before: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)
    shrunk: dict[str, Tensor] = field(default_factory=dict)
    factor: Tensor | None = None


def contribution_of(trained: Trained, up: Iterable[str]) -> Contribution:
    """What a block's clients give of the parts `up`."""
    block = trained.block
    rows = {name: block.parts[name] for name in up if block.axes[name] == "item"}
    values = {name: block.parts[name] for name in up if block.axes[name] != "item"}
    shrunk = {name: left for (name, to), left in block.left.items() if not to}
    place = (block.users, block.samples.weight, block.samples.touched, block.real)
    return Contribution(*place, rows, trained.before, values, shrunk)


Stage = Callable[[Contribution, int], Contribution]  # a contribution and the round, from 1


def staged(contribution: Contribution, stages: Sequence[Stage], round_: int) -> Contribution:
    """The contribution after every stage, in their order."""
    for stage in stages:
        contribution = stage(contribution, round_)
    return contribution


@dataclass
class PartSum:
    """A cohort's sum of one part; float64.

    Attributes:
        total: (m, width) or (width,).
        weight: what it is divided by: (m,) clients behind each row, or () of whole tensors.
    """

    total: Tensor
    weight: Tensor


@dataclass
class TrainResult:
    """What a cohort's training leaves.

    Attributes:
        loss: (k',) mean training loss a sample. samples: (k',) positives + negatives.
        sums: of the parts that go up as sums, where they were asked for.
        each: (k', ...) each user's own of the parts that go up so, as the stages leave it, float64; empty without.
        factor: (k',) what the stages let each user count for; see `engine.contribution.Contribution`.
        extra: what else goes up, by name, beside the parts.
        uncompiled: why not the compiled back end trained; empty: it did.
    """

    loss: Tensor
    samples: Tensor
    sums: dict[str, PartSum]
    each: dict[str, Tensor]
    factor: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict)
    uncompiled: str = ""


class Collector:
    """Adds up contributions block by block.

    Args:
        parts: of the method; those with `up = "sum"` are added up.
        items: m.
        stages: see `staged`.
        round_: the round.
    """

    def __init__(
        self, parts: Parts, items: int, device: torch.device, round_: int, stages: Sequence[Stage] = ()
    ) -> None:
        self.parts = {name: part for name, part in parts.items() if part.up == "sum"}
        self.stages, self.round = stages, round_
        self.sums = {name: _empty(part, items, device) for name, part in self.parts.items()}

    @property
    def needs_before(self) -> bool:
        """Whether the rows before the round are looked at."""
        parts = self.parts.values()
        return bool(self.stages) or any(_whole(part) or part.change or part.mean == "distance" for part in parts)

    def add(self, given: Contribution) -> Contribution:
        """Add a block's contributions; returns them as the stages leave them.

        Of whole tables only the weighted changes are added: see `complete`.
        """
        found = staged(given, self.stages, self.round)
        items = found.items[found.real]
        for name, part in self.parts.items():
            into = self.sums[name]
            weight = _weight(part, found.samples)
            if part.axis == "model":
                values = found.values[name] - found.before[name] if part.change else found.values[name]
                into.total += (values.double() * weight.unsqueeze(1)).sum(0)
            elif part.by_row:
                rows = found.rows[name] - found.before[name] if part.change else found.rows[name]
                rows, behind = rows[found.real].double(), torch.ones_like(items, dtype=torch.float64)
                if found.factor is not None:
                    behind = found.factor.double().unsqueeze(1).expand_as(found.real)[found.real]
                if part.mean == "distance":
                    behind = (found.rows[name] - found.before[name])[found.real].abs().sum(1).double()
                into.total.index_add_(0, items, rows * behind.unsqueeze(1))
                into.weight.index_add_(0, items, behind)
            else:
                before = _smaller(found.before[name], found.shrunk.get(name))
                start = given.rows[name] if part.stays and not part.change else before
                if start is not found.rows[name]:  # else no stage has changed what the client keeps
                    change = (found.rows[name] - start).double() * weight.view(-1, 1, 1)
                    into.total.index_add_(0, items, change[found.real])
            if not part.by_row:
                into.weight += weight.sum()
        return found

    def complete(self, name: str, tables: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Add the whole tables behind the changes of part `name`.

        Args:
            tables: tables (k', m, width), the samples (k',) of the users behind them, and what is to be made of the
                tables (k',), as a factor: their own trained tables where they keep one, else what the round began with.
        """
        for table, samples, factor in tables:
            weight = _weight(self.parts[name], samples) * factor
            if table.stride(0) == 0:  # one for all of them
                self.sums[name].total += table[0] * weight.sum()
            else:
                self.sums[name].total += torch.tensordot(weight, table.double(), dims=1)

    def whole(self) -> list[str]:
        """The item parts whose whole tables are added up."""
        return [name for name, part in self.parts.items() if _whole(part) and not part.change]


def _whole(part: Part) -> bool:
    return part.axis == "item" and not part.by_row


def _smaller(rows: Tensor, factor: Tensor | None) -> Tensor:
    return rows if factor is None else rows * factor.view(-1, 1, 1)


def _weight(part: Part, samples: Tensor) -> Tensor:
    return samples.double() if part.mean == "samples" else torch.ones_like(samples, dtype=torch.float64)


def _empty(part: Part, items: int, device: torch.device) -> PartSum:
    shape = (items, part.width) if part.axis == "item" else (part.width,)
    weight = (items,) if part.by_row else ()
    return PartSum(*(torch.zeros(size, dtype=torch.float64, device=device) for size in (shape, weight)))
