"""torch's own Adam over tensors whose leading axis is clients, with clients leaving as they finish."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # torch's defaults, as in the paper's program


class CohortAdam:
    """A fresh Adam for one round (the optimiser state does not survive it), dense over the rows it is given.

    All clients of the block take their steps together, so one step count serves them all: blocks are formed so that
    it does (equal number of batches), and `keep` drops the clients that stopped early. It is torch's fused functional
    Adam: the optimiser object around it costs as much as the arithmetic on tables of this size.

    Args:
        tensors: (k, ...) tensors, updated in place.
        rates: learning rate of each tensor.
    """

    def __init__(self, tensors: Sequence[Tensor], rates: Sequence[float]) -> None:
        self.tensors = list(tensors)
        self._first = [torch.zeros_like(x) for x in tensors]
        self._second = [torch.zeros_like(x) for x in tensors]
        self._steps = [torch.zeros((), dtype=torch.float32, device=x.device) for x in tensors]
        same = {rate: [i for i, other in enumerate(rates) if other == rate] for rate in rates}
        self._groups = list(same.items())  # tensors of one rate take their step in one call

    def step(self, gradients: Sequence[Tensor]) -> None:
        """One Adam step with the given gradients, one a tensor."""
        for rate, members in self._groups:
            adam(
                [self.tensors[i] for i in members],
                [gradients[i] for i in members],
                [self._first[i] for i in members],
                [self._second[i] for i in members],
                [],
                [self._steps[i] for i in members],
                fused=True,
                amsgrad=False,
                beta1=BETA_1,
                beta2=BETA_2,
                lr=rate,
                weight_decay=0.0,
                eps=EPSILON,
                maximize=False,
            )

    def keep(self, index: Tensor) -> None:
        """Go on with the clients `index` only; `tensors` are then new, smaller tensors with their moments."""
        self.tensors = [x[index] for x in self.tensors]
        self._first = [x[index] for x in self._first]
        self._second = [x[index] for x in self._second]
