"""Optimisers over tensors whose leading axis is clients, with clients leaving as they finish."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam

from fedem_flwr.engine.block import Batch, Block

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # torch's defaults, as in the paper's program
Optimiser = Literal["adam", "sgd", "frequency-sgd"]


@dataclass(frozen=True)
class Update:
    """One update in a batch: which parts take a step together, and how.

    Gradients are computed anew for each update of a batch, so a later one sees what an earlier one has changed.

    Attributes:
        rates: the learning rate of each part.
        by: `adam` with torch's defaults, fresh in each round; `sgd`; `frequency-sgd`, in which an item row's gradient
            is the mean over its own occurrences in the batch and not over the whole batch.
    """

    rates: Mapping[str, float]
    by: Optimiser = "adam"


class Stepper(Protocol):
    """Takes the steps of one `Update`."""

    def step(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor], batch: Batch) -> None:
        """One step, in place."""

    def keep(self, index: Tensor) -> None:
        """Go on with the clients `index` only."""


def stepper_of(update: Update, block: Block) -> Stepper:
    """A fresh optimiser for one round of a block."""
    if update.by == "adam":
        return CohortAdam([block.parts[name] for name in update.rates], list(update.rates.values()))
    by_frequency = [update.by == "frequency-sgd" and block.axes[name] == "item" for name in update.rates]
    return CohortSgd(list(update.rates.values()), by_frequency)


class CohortAdam:
    """A fresh Adam for one round (the optimiser state does not survive it), dense over the rows it is given.

    All clients of the block take their steps together, so one step count serves them all: blocks are formed so that
    it does (equal number of batches), and `keep` drops the clients that stopped early. It is torch's fused functional
    Adam: the optimiser object around it costs as much as the arithmetic on tables of this size.

    Args:
        tensors: (k, ...) tensors like those that will be updated.
        rates: learning rate of each tensor.
    """

    def __init__(self, tensors: Sequence[Tensor], rates: Sequence[float]) -> None:
        self._first = [torch.zeros_like(x) for x in tensors]
        self._second = [torch.zeros_like(x) for x in tensors]
        self._steps = [torch.zeros((), dtype=torch.float32, device=x.device) for x in tensors]
        same = {rate: [i for i, other in enumerate(rates) if other == rate] for rate in rates}
        self._groups = list(same.items())  # tensors of one rate take their step in one call

    def step(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor], batch: Batch | None = None) -> None:
        """One Adam step with the given gradients, one a tensor; in place."""
        for rate, members in self._groups:
            adam(
                [tensors[i] for i in members],
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
        """Go on with the clients `index` only, and their moments."""
        self._first = [x[index] for x in self._first]
        self._second = [x[index] for x in self._second]


@dataclass(frozen=True)
class CohortSgd:
    """Plain gradient steps.

    Attributes:
        rates: learning rate of each tensor.
        by_frequency: which tensors are rows whose gradient is to be a mean over their own occurrences.
    """

    rates: Sequence[float]
    by_frequency: Sequence[bool]

    def step(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor], batch: Batch) -> None:
        """See `Stepper`."""
        for tensor, gradient, rate, frequency in zip(tensors, gradients, self.rates, self.by_frequency, strict=True):
            scaled = gradient * (batch.size / batch.weight.clamp(min=1)).unsqueeze(-1) if frequency else gradient
            tensor.sub_(scaled, alpha=rate)

    def keep(self, index: Tensor) -> None:
        """Nothing is remembered."""
