"""`[ldp]` for tasks whose uploads are sums of vectors that users' histories make, and no changes of trained parts.

What a node of one user would send is that user's vector: all its arrays, each times what the task says it weighs. It
is scaled down to C as one, noise is added to every number of it, touched or not, and then it is added to others'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.contract.adding import one_alone
from fedem_flwr.contract.asked import Asked, Device
from fedem_flwr.contract.fields import Field, Named
from fedem_flwr.contract.guarding import BELOW, Guarding
from fedem_flwr.contract.method import Method
from fedem_flwr.contract.phases import Gathered, Sender, Task, Upload
from fedem_flwr.engine.clipping import shortened
from fedem_flwr.engine.parts import State
from fedem_flwr.pulse import beat

_ROUNDED = 1e-5  # of sums of float32, as a share of their norm


class GuardedSums(Guarding, Task):
    """Another task, guarded.

    Args:
        inner: what says what it weighs.

    Raises:
        ValueError: it does not.
    """

    handles_stages = True

    def __init__(self, inner: Task, method: Method) -> None:
        weights = inner.weighs()
        if weights is None:
            raise ValueError(f"{type(inner).__name__} does not say what its uploads weigh")
        self.inner, self.method, self.weights = inner, method, weights

    def fields(self) -> dict[str, Field]:
        """Whole sums: which rows a user has touched is not told. Also what C follows."""
        inner = self.inner.fields()
        found = {
            name: Field(field.sized(inner[field.index].rows if field.index else 0))
            for name, field in inner.items()
            if not field.rows
        }
        return {**found, BELOW: Field((1,))} if self._ldp.quantile else found

    def needs(self) -> Sequence[str]:
        """The inner task's."""
        return self.inner.needs()

    def contribute(self, device: Device, asked: Asked) -> Upload:
        """The device's side: one user after the other, clipped, and with noise from entropy of its own."""
        limit, fields = self._asked_limit(asked), self.fields()
        for name in self.needs():
            if not bool(asked.tensor(name).isfinite().all()):
                raise ValueError(f"the server sent a '{name}' that is not finite: no noise would hide what comes of it")
        sums = {name: torch.zeros(field.sized(0), dtype=torch.float64) for name, field in fields.items()}
        samples, loss = 0, 0.0
        for at in asked.who[:, None]:
            user = int(device.users[at[0]])
            try:
                one = one_alone(self.inner, device, asked, at, self.method.stages())
                samples, loss, vector = samples + one.samples, loss + (one.loss or 0.0), self._vector(one.arrays)
            except ArithmeticError:  # no solution: for the server, the same as nothing
                vector = {name: torch.zeros_like(sums[name]) for name in self.weights}
            short, whole = shortened(vector, self.weights, limit, self._ldp.order)
            for name, values in short.items():
                sums[name] += values
            if self._ldp.quantile:
                sums[BELOW] += 0.5 if whole else -0.5
            if self._noisy:
                self._add_noise(sums, asked.round, user, limit)
            beat()
        return Upload({name: total.float().numpy() for name, total in sums.items()}, samples, loss)

    def _vector(self, arrays: Named) -> dict[str, Tensor]:
        """An upload with every row of its sums; float64."""
        found = {}
        for name, field in self.inner.fields().items():
            if field.rows:
                continue
            values = torch.from_numpy(arrays[name]).double()
            if field.index:
                rows = self.inner.fields()[field.index].rows
                whole = torch.zeros(field.sized(rows), dtype=torch.float64)
                values = whole.index_add_(0, torch.from_numpy(arrays[field.index].astype(np.int64)), values)
            found[name] = values
        return found

    def _add_noise(self, sums: dict[str, Tensor], round_: int, user: int, limit: float) -> None:
        stream = self._noise(round_, user, limit)
        for name, weight in self.weights.items():
            sums[name] += stream.draw(*sums[name].shape) / weight
        if self._ldp.quantile:
            sums[BELOW] += stream.draw(1) / limit

    def impossible(self, arrays: Named, state: State, sender: Sender) -> str:
        """Sums that are longer than clipping and noise let so many users send."""
        users, limit = len(sender.samples), self._limit(state)
        for name, weight in self.weights.items():
            size = float(np.linalg.norm(arrays[name].astype(np.float64)))
            most = (users * limit + self._farthest(limit, users) * math.sqrt(arrays[name].size)) / weight
            if size > most * (1 + _ROUNDED):
                return f"'{name}' has norm {size:.3g}, more than {most:.3g}: clipping and noise let none so far"
        return self._untold(float(arrays[BELOW][0]), limit, users) if self._ldp.quantile else ""

    def fold(self, state: State, gathered: Gathered) -> State:
        """The inner task's, of sums without what only noise can have made; then C goes after its quantile."""
        sums = self.inner.denoised(gathered.sums, gathered.trained) if self._noisy else gathered.sums
        return self._followed(self.inner.fold(state, replace(gathered, sums=sums)), state, gathered)
