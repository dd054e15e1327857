"""Clipping of all that one user gives in a round, before noise and before any sum."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedem_flwr.engine.contribution import Contribution
from fedem_flwr.engine.parts import Parts

_ROUNDED = 1 - 1e-9  # of what is shortened: it must not come out longer


@dataclass(frozen=True)
class Clipping:
    """A stage: shortens a user's upload to a norm; one that is no longer is left as it is, to the bit.

    A user's upload is one vector: the changes of all parts that go up since what the server knows, and `count` for each
    row that it is behind in a mean of rows. Shortened by a factor f, such a user counts f in the means of rows, so that
    sums of rows and of counts both shrink; of other parts it sends f times the change. An upload that is not finite
    goes up as if nothing had changed, since no noise would hide where it is not; and so do untouched rows, whatever
    weight decay took from them.

    Attributes:
        parts: of the method.
        limit: C. order: 1 or 2, of the norm.
        count: see above.
    """

    parts: Parts
    limit: float
    order: int = 2
    count: float = 1.0

    def __call__(self, given: Contribution, round_: int) -> Contribution:
        """See `engine.contribution.Stage`."""
        norm = self.norms(given)
        sane = norm.isfinite()
        factor = torch.where(norm > self.limit, self.limit / norm * _ROUNDED, 1.0)
        factor = torch.where(sane, factor, 0.0)
        given = replace(given, shrunk={})
        if bool((factor == 1).all()):
            return replace(given, factor=factor)
        if not bool(sane.all()):
            given = replace(
                given,
                rows={name: self._kept(x, given.before[name], sane) for name, x in given.rows.items()},
                values={name: self._kept(x, given.before[name], sane) for name, x in given.values.items()},
            )
        rows = {name: self._short(name, given, x, factor) for name, x in given.rows.items()}
        values = {name: self._short(name, given, x, factor) for name, x in given.values.items()}
        return replace(given, rows=rows, values=values, factor=factor)

    def norms(self, given: Contribution) -> Tensor:
        """(k,) float64 norms of the users' uploads."""
        total = torch.zeros(len(given.users), dtype=torch.float64, device=given.users.device)
        for part in self._vector(given):
            flat = part.flatten(1)
            total += flat.abs().sum(1) if self.order == 1 else flat.square().sum(1)
        return total if self.order == 1 else total.sqrt()

    def _vector(self, given: Contribution) -> Iterator[Tensor]:
        for name, rows in given.rows.items():
            yield torch.where(given.real.unsqueeze(-1), (rows.double() - given.before[name].double()), 0.0)
            if self._by_row(name):
                yield given.real.double() * self.count
        for name, values in given.values.items():
            yield values.double() - given.before[name].double()

    @staticmethod
    def _kept(after: Tensor, before: Tensor, sane: Tensor) -> Tensor:
        return torch.where(sane.view(-1, *[1] * (after.ndim - 1)), after, before.to(after))

    def _by_row(self, name: str) -> bool:
        return self.parts[name].up == "sum" and self.parts[name].by_row

    def _short(self, name: str, given: Contribution, after: Tensor, factor: Tensor) -> Tensor:
        if self._by_row(name):
            return after
        along, before = factor.view(-1, *[1] * (after.ndim - 1)), given.before[name].double()
        return torch.where(along < 1, before + (after - before) * along, after.double())  # float32 would round it up


def shortened(
    vector: Mapping[str, Tensor], weights: Mapping[str, float], limit: float, order: int
) -> tuple[dict[str, Tensor], bool]:
    """One user's arrays, scaled down together to a norm; all zeros where one of them is not finite.

    Args:
        vector: float64. weights: what each array's numbers are multiplied by in the norm.
        limit: C. order: 1 or 2, of the norm.

    Returns:
        The arrays, and whether they are as they were.
    """
    flat = torch.cat([(values * weights[name]).flatten() for name, values in vector.items()])
    norm = float(torch.linalg.vector_norm(flat, ord=order))
    if not math.isfinite(norm):
        return {name: torch.zeros_like(values) for name, values in vector.items()}, False
    if norm <= limit:
        return dict(vector), True
    return {name: values * (limit / norm * _ROUNDED) for name, values in vector.items()}, False


def sensitivity(order: int, *, told: bool) -> float:
    """How far two uploads can be apart, as a multiple of C: any two of one user, whatever it has met.

    Args:
        told: whether the upload also tells if it is shorter than C, as ±C/2 in a coordinate of its own.
    """
    extra = 1.0 if told else 0.0
    return 2.0 + extra if order == 1 else math.sqrt(4.0 + extra)
