"""FedCIA (Han et al., SIGIR 2025): groups of users share how alike items are to each other, and no parameters.

Private: p of each user, and of each group an item table V and the moments of an Adam that goes on over rounds. Up: V Vᵀ
of each group, as a factor of rank r (a node is a group), or added up over the groups of a node (a user is one). Server:
S, the mean over groups, and its factor of rank r. Down: the factor, to which each group first brings its V by gradient
steps on ‖V Vᵀ − S‖ (see `aggregation.alignment`); then it trains p and V on triples of a user, an item that it met and
one that it did not. Loss: ½ mean (p · v⁺ − 1)² + ½ mean (p · v⁻)² + ½ wd mean (‖p‖² + ‖v⁺‖² + ‖v⁻‖²).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field as Option
from torch import Tensor

from fedem_flwr.aggregation.alignment import Alignment
from fedem_flwr.config import Config
from fedem_flwr.config.section import Search, Section
from fedem_flwr.contract import Asked, Device, Method, Part, Phase, State
from fedem_flwr.errors import InputError
from fedem_flwr.evaluation.scorers import CohortScorer
from fedem_flwr.methods.tasks.similarities import GroupSimilarities, UserSimilarities
from fedem_flwr.models import mf

_MOMENTS = ("first", "second")


class FedCIAOptions(Section):
    """Of `FedCIA`."""

    group: Literal["node", "user"] = Option("node", description="who shares a table: a node's users, or nobody")
    rank: int = Option(0, ge=0, description="r, of S as it goes down: at most m; up goes rank min(r, d); 0: d")
    steps: int = Option(100, ge=0, description="of the alignment")
    rate: Annotated[float, Search(1e-3, 1, log=True)] = Option(0.1, gt=0, description="of the alignment")
    decay: float = Option(1e-6, ge=0, description="wd, in the loss and in the alignment")
    loss: Literal["score", "coordinate"] = Option(
        "score", description="squared error of p · v; or of each coordinate of p ⊙ v, as in the released program"
    )


class FedCIA(Method):
    """Score z = p · v of the group's table."""

    Options = FedCIAOptions
    FEDERATED_ONLY = True  # its groups are trained by a task of its own
    EXPOSES = (
        "FedCIA shows the server how alike items are in each group's table, from which the table follows up to a "
        "rotation. With a group a user these are added up over a node's users"
    )

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        o, dim = self.options, config.model.dim
        if config.gradients.sharp:
            raise InputError(f"{config.gradients.sharp}: FedCIA trains its groups itself; set it to 0")
        if config.gradients.clip is not None:
            raise InputError("gradients.clip: FedCIA sends no trained part up, so no gradient of one is clipped")
        self.rank, self.single = min(o.rank or dim, items), o.group == "user"
        self.align = Alignment(o.steps, o.rate, o.decay)

    def parts(self) -> Mapping[str, Part]:
        """All private; what follows p and V is Adam's."""
        dim, std, one = self.config.model.dim, self.config.model.init_std, not self.single
        none = torch.zeros(self.items, dim)
        return {
            "user": Part("user", dim, private=True, std=std),
            "items": Part("item", dim, private=True, group=one, std=std),
            **{f"user-{n}": Part("user", dim, private=True, start=lambda _: torch.zeros(dim)) for n in _MOMENTS},
            **{f"items-{n}": Part("item", dim, True, group=one, start=lambda _: none) for n in _MOMENTS},
            "steps": Part("model", 1, private=True, group=one, start=lambda _: torch.zeros(1)),
        }

    def score(self, parts: Mapping[str, Tensor]) -> Tensor:
        """See the class."""
        return mf.scores(parts["user"], parts["items"])

    def triple_loss(self, user: Tensor, met: Tensor, other: Tensor, valid: Tensor) -> Tensor:
        """(g,) loss of triples (g, b, d), of which `valid` (g, b) are real."""
        o, size = self.options, valid.sum(1).clamp(min=1)
        hit, miss = user * met, user * other
        if o.loss == "score":
            error = (hit.sum(2) - 1).square() + miss.sum(2).square()
        else:
            error = (hit - 1).square().mean(2) + miss.square().mean(2)
        ridge = (user.square() + met.square() + other.square()).sum(2)
        total: Tensor = ((error + o.decay * ridge) * valid).sum(1)
        return total / size / 2

    def phases(self) -> Sequence[Phase]:
        """One."""
        return [Phase("train", self.config.run.rounds, (UserSimilarities if self.single else GroupSimilarities)(self))]

    def start(self) -> State:
        """Nobody has said anything yet."""
        return {"factor": torch.empty(0, self.rank)}

    def sends(self) -> Sequence[str]:
        """The factor of S."""
        return ["factor"]

    def tables(self, device: Device, asked: Asked) -> Tensor:
        """(g, m, d) the groups' tables, aligned to what was downloaded; made once a message."""
        mine = device.cohort.state["items"]
        return asked.once("aligned", lambda: self.align(mine, asked.tensor("factor")) if asked.has("factor") else mine)

    def scorer(self, device: Device, asked: Asked) -> CohortScorer:
        """With the aligned tables."""
        cohort = device.cohort
        return CohortScorer(self.cohort(cohort.data, {**cohort.state, "items": self.tables(device, asked)}), {})

    def caveats(self) -> list[str]:
        """Also where one group is everybody."""
        alone = [] if self.single or self.config.run.users_per_node else ["all users of a node are one group of FedCIA"]
        return [*super().caveats(), *alone]
