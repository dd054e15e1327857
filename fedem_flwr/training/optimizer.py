"""torch's own Adam over tensors whose leading axis is clients, with clients leaving as they finish."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class CohortAdam:
    """A fresh Adam for one round (the optimiser state does not survive it), dense over the rows it is given.

    All clients of the block take their steps together, so one step count serves them all: blocks are formed so that
    it does (equal number of batches), and `keep` drops the clients that stopped early.

    Args:
        tensors: (k, ...) tensors, updated in place.
        rates: learning rate of each tensor.
    """

    def __init__(self, tensors: Sequence[Tensor], rates: Sequence[float]) -> None:
        self.tensors = list(tensors)
        self._rates = list(rates)
        self._optimizer = self._build()

    def _build(self) -> torch.optim.Adam:
        groups = [{"params": [x], "lr": rate} for x, rate in zip(self.tensors, self._rates, strict=True)]
        return torch.optim.Adam(groups, fused=True)

    def step(self, gradients: Sequence[Tensor]) -> None:
        """One Adam step with the given gradients, one a tensor."""
        for x, gradient in zip(self.tensors, gradients, strict=True):
            x.grad = gradient
        self._optimizer.step()

    def keep(self, index: Tensor) -> None:
        """Go on with the clients `index` only; `tensors` are then new, smaller tensors with their moments."""
        states = [self._optimizer.state[x] for x in self.tensors]
        self.tensors = [x.detach()[index] for x in self.tensors]
        self._optimizer = self._build()
        for x, state in zip(self.tensors, states, strict=True):
            self._optimizer.state[x] = {
                "step": state["step"],
                "exp_avg": state["exp_avg"][index],
                "exp_avg_sq": state["exp_avg_sq"][index],
            }
