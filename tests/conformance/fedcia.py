"""FedCIA (Han et al., SIGIR 2025): the client is a group of users, which share what they upload as similarities.

Private: p of each user, the group's item table V. Up: V Vᵀ (m, m). Server: S, the mean over groups. Down: S, to which
a group first brings its V by gradient steps on ‖V Vᵀ − S‖; then it trains p and V. A group is a node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.contract import Asked, Device, Field, Gathered, Method, Part, Phase, State, Task, Upload
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.samples import draw_samples
from fedem_flwr.evaluation.scorers import CohortScorer
from fedem_flwr.models import mf

STEPS, RATE = 10, 0.1  # of the alignment


class FedCIA(Method):
    """Score z = p · v of the group's table."""

    FEDERATED_ONLY = True
    EXPOSES = "FedCIA shows the server each group's similarities of items: a lone user's, where a node hosts one."

    def parts(self) -> Mapping[str, Part]:
        """All private."""
        dim, std = self.config.model.dim, self.config.model.init_std
        items = Part("item", dim, private=True, group=True, std=std)
        return {"user": Part("user", dim, private=True, std=std), "items": items}

    def score(self, parts: Mapping[str, Tensor]) -> Tensor:
        """See the class."""
        return mf.scores(parts["user"], parts["items"])

    def phases(self) -> Sequence[Phase]:
        """One."""
        return [Phase("train", self.config.run.rounds, Similarities(self))]

    def start(self) -> State:
        """Nobody has said anything yet."""
        return {"similar": torch.empty(0, self.items)}

    def sends(self) -> Sequence[str]:
        """S."""
        return ["similar"]

    def aligned(self, table: Tensor, asked: Asked) -> Tensor:
        """V after the steps towards the S that was downloaded."""
        for _ in range(STEPS if asked.has("similar") else 0):
            gap = table @ table.T - asked.tensor("similar")
            table = table - RATE * 2 * gap @ table / gap.norm().clamp(min=1e-9)
        return table

    def scorer(self, device: Device, asked: Asked) -> CohortScorer:
        """After the alignment."""
        state = device.cohort.state
        items = self.aligned(state["items"][0], asked)
        return CohortScorer(self.cohort(device.cohort.data, {**state, "items": items.unsqueeze(0)}), {})


class Similarities(Task):
    """Alignment, an Adam step an epoch on the group's samples, and V Vᵀ."""

    grouped = True

    def __init__(self, method: FedCIA) -> None:
        self.method = method

    def fields(self) -> dict[str, Field]:
        """S of a group, and that it is one."""
        return {"similar": Field((self.method.items, self.method.items), terms=1), "groups": Field((1,), count=True)}

    def needs(self) -> Sequence[str]:
        """S."""
        return self.method.sends()

    def contribute(self, device: Device, asked: Asked) -> Upload:
        """See the class."""
        method, state, who = self.method, device.cohort.state, torch.from_numpy(np.array(asked.who))
        local, rates = method.local, method.config.local
        draws = Draws(method.seed, device.secret)
        drawn = draw_samples(device.cohort.data, who, local.negatives, draws, asked.round)
        items, sign = drawn.touched.gather(1, drawn.row), drawn.sign.gather(1, drawn.row)
        valid = (torch.arange(items.shape[1]) < drawn.size[:, None]).float()
        table, user = (
            x.clone().requires_grad_() for x in (method.aligned(state["items"][0], asked), state["user"][who])
        )
        groups = [{"params": [user], "lr": rates.lr_user}, {"params": [table], "lr": rates.lr_item}]
        optimiser, total = torch.optim.Adam(groups), torch.zeros(())
        for _ in range(local.epochs):
            optimiser.zero_grad()
            total = method.loss(method.score({"user": user, "items": table[items]}), sign, valid) @ drawn.size.float()
            (total / drawn.size.sum()).backward()
            optimiser.step()
        state["items"], state["user"][who] = table.detach().unsqueeze(0), user.detach()
        similar = state["items"][0] @ state["items"][0].T
        arrays = {"similar": similar.numpy(), "groups": np.ones(1, np.float32)}
        return Upload(arrays, int(drawn.size.sum()), float(total.detach()))

    def fold(self, state: State, gathered: Gathered) -> State:
        """The mean over groups."""
        groups = float(gathered.sums["groups"])
        return {"similar": (gathered.sums["similar"] / groups).float()} if groups else state
