"""After FedFast (Muhammad et al., KDD 2020): the server sees user vectors, and moves them.

Up: each user's vector p, and the sums of item rows. Server: row means; every p that came moves towards the mean of all.
Down: the rows, and to each user its own p, which replaces what it kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from fedem_flwr.contract import Gathered, Method, Part, Phase, State
from fedem_flwr.contract.training import LocalTraining
from fedem_flwr.models import mf


class FedFast(Method):
    """Score z = p · q."""

    STRATEGY = "strategies.tables:TablesStrategy"
    EXPOSES = "FedFast shows the server every user's vector."

    def parts(self) -> Mapping[str, Part]:
        """Nothing is private."""
        dim, std = self.config.model.dim, self.config.model.init_std
        user = Part("user", dim, up="each", kept=True, std=std)
        return {"user": user, "items": Part("item", dim, up="sum", std=std)}

    def score(self, parts: Mapping[str, Tensor]) -> Tensor:
        """See the class."""
        return mf.scores(parts["user"], parts["items"])

    def phases(self) -> Sequence[Phase]:
        """One."""
        return [Phase("train", self.config.run.rounds, Moved(self))]


class Moved(LocalTraining):
    """Row means, and user vectors that follow each other more and more slowly."""

    def fold(self, state: State, gathered: Gathered) -> State:
        """See above."""
        user = gathered.each["user"]
        return {**super().fold(state, gathered), "user": user + 0.5**gathered.round * (user.mean(0) - user)}
