"""FedCIA's task: groups train tables of their own, and the server averages how alike items are in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.aggregation.alignment import factor_of, factor_of_table
from fedem_flwr.contract import Asked, Device, Field, Gathered, State, Task, Upload
from fedem_flwr.contract.fields import Named
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.optimizer import adam_step
from fedem_flwr.engine.triples import Triples
from fedem_flwr.pulse import beat

if TYPE_CHECKING:
    from fedem_flwr.methods.fedcia import FedCIA

_ONCE = 0  # the round that keys the triples: they are drawn once


class GroupSimilarities(Task):
    """A node is a group: alignment, local epochs, and a factor of V Vᵀ.

    Args:
        method: whose groups are trained.
    """

    grouped = True

    def __init__(self, method: FedCIA) -> None:
        self.method = method

    def fields(self) -> dict[str, Field]:
        """The factor, and that it is of one group."""
        shape = (self.method.items, min(self.method.rank, self.method.config.model.dim))
        return {"factor": Field(shape, bounded=True), "groups": Field((1,), "int32", count=True)}

    def added(self) -> dict[str, Field]:
        """V Vᵀ."""
        return {"similar": Field((self.method.items, self.method.items)), "groups": Field((1,), "int32", count=True)}

    def opened(self, arrays: Named) -> Named:
        """See `added`."""
        factor = arrays["factor"].astype(np.float64)
        return {"similar": factor @ factor.T, "groups": arrays["groups"]}

    def needs(self) -> list[str]:
        """The factor of S."""
        return list(self.method.sends())

    def contribute(self, device: Device, asked: Asked) -> Upload:
        """See the class."""
        samples, loss = self.train(device, asked)
        table = device.cohort.state["items"][0].double()
        factor = factor_of_table(table, self.fields()["factor"].shape[1] or 0)
        return Upload({"factor": factor.float().cpu().numpy(), "groups": np.ones(1, np.int32)}, samples, loss)

    def fold(self, state: State, gathered: Gathered) -> State:
        """The factor of the mean over groups."""
        groups = float(gathered.sums["groups"])
        if not groups:
            return state
        return {"factor": factor_of(gathered.sums["similar"] / groups, self.method.rank).float()}

    def train(self, device: Device, asked: Asked) -> tuple[int, float]:
        """Train the participants' groups from their aligned tables; returns how many samples, and their summed loss."""
        method, state = self.method, device.cohort.state
        who = torch.from_numpy(np.asarray(asked.who)).to(asked.place)
        group = who if method.single else torch.zeros_like(who[:1])
        at = {name: who if name.startswith("user") else group for name in state}
        values = {name: state[name][index] for name, index in at.items()}
        values["items"] = method.tables(device, asked)[group]
        triples = self.triples(device, asked, who)
        total = 0.0
        for epoch in range(method.local.epochs):
            order = triples.shuffled(asked.round, epoch)
            for batch in order.split(method.local.batch_size or max(1, order.shape[1]), 1):
                beat()
                total += self.step(values, triples, batch)
        for name, value in values.items():
            state[name][at[name]] = value
        return triples.samples, total / method.local.epochs / max(1, int(triples.valid.sum())) * triples.samples

    def step(self, values: State, triples: Triples, batch: Tensor) -> float:
        """One Adam step of every group that has triples left; returns their summed loss."""
        index = torch.arange(len(batch), device=batch.device).unsqueeze(1)
        user, items = (values[name].requires_grad_() for name in ("user", "items"))
        met, other = (items[index, which[index, batch]] for which in (triples.met, triples.other))
        valid = triples.valid[index, batch]
        loss = self.method.triple_loss(user[triples.owner[index, batch]], met, other, valid)
        gradients = torch.autograd.grad(loss.sum(), [user, items])
        goes = valid.any(1).to(loss.dtype).unsqueeze(1)  # a group without triples stays as it is
        values["steps"] += goes
        local = self.method.config.local
        for name, gradient, rate in zip(("user", "items"), gradients, (local.lr_user, local.lr_item), strict=True):
            value, steps = values[name].detach(), values["steps"]
            first, second = values[f"{name}-first"], values[f"{name}-second"]
            shape = (-1, *[1] * (value.ndim - 1))
            before = None if bool(goes.all()) else [x.clone() for x in (value, first, second)]
            adam_step(value, gradient, first, second, steps.clamp(min=1).view(shape), rate)
            for x, old in zip((value, first, second), before or (), strict=False):
                torch.where(goes.view(shape) > 0, x, old, out=x)
            values[name] = value
        return float((loss.detach().double() * valid.sum(1)).sum())

    def triples(self, device: Device, asked: Asked, who: Tensor) -> Triples:
        """A row a group, of its participants' triples, drawn once for the run."""
        method, draws = self.method, Draws(self.method.seed, device.secret)
        together = not method.single
        return Triples.drawn(device.cohort.data, who, method.local.negatives, draws, _ONCE, together=together)


class UserSimilarities(GroupSimilarities):
    """Every user is a group; a node adds up what they say, so that no one's is sent."""

    grouped = False

    def fields(self) -> dict[str, Field]:
        """What is added up."""
        return self.added()

    def opened(self, arrays: Named) -> Named:
        """As it is."""
        return arrays

    def contribute(self, device: Device, asked: Asked) -> Upload:
        """See the class."""
        samples, loss = self.train(device, asked)
        tables = device.cohort.state["items"][torch.from_numpy(np.asarray(asked.who)).to(asked.place)]
        rows = tables.transpose(0, 1).flatten(1)  # (m, k' d): the sum of all V Vᵀ is one product
        arrays = {"similar": (rows @ rows.T).cpu().numpy(), "groups": np.array([len(tables)], np.int32)}
        return Upload(arrays, samples, loss)
