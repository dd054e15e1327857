"""Optimisers over tensors whose leading axis is clients, with clients leaving as they finish."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam

from fedem_flwr.engine.block import Batch, Block
from fedem_flwr.engine.parts import Part

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # torch's defaults, as in the paper's program
Optimiser = Literal["adam", "sgd", "frequency-sgd", "kept-adam"]


@dataclass(frozen=True)
class Update:
    """One update in a batch: which parts take a step together, and how.

    Gradients are computed anew for each update of a batch, so a later one sees what an earlier one has changed.

    Attributes:
        rates: the learning rate of each part.
        by: `adam` with torch's defaults, fresh in each round; `kept-adam`, whose moments a client keeps in a part that
            the method has beside (see `moments`); `sgd`; `frequency-sgd`, in which an item row's gradient is the mean
            over its own occurrences in the batch and not over the whole batch. One for all, or one a part.
        decay: weight decay of parts: so many times a part is added to its gradient, as in torch's optimisers. It
            reaches every row of an item part, also those that no sample of the round touches; not under `adam`.
        toward: of decayed parts that clients keep, what they shrink to: the rows of another part, and not 0.
        fading: after each batch of the round all rates are multiplied by it.
    """

    rates: Mapping[str, float]
    by: Optimiser | Mapping[str, Optimiser] = "adam"
    decay: Mapping[str, float] = field(default_factory=dict)
    fading: float = 1.0
    toward: Mapping[str, str] = field(default_factory=dict)

    def kind(self, name: str) -> Optimiser:
        """What moves a part."""
        return self.by if isinstance(self.by, str) else self.by[name]


def moments(part: Part) -> Part:
    """What `kept-adam` keeps of a private vector: both moments and the number of steps, under NAME-moments."""
    width = 2 * part.width + 1
    return Part(part.axis, width, private=True, start=lambda _: torch.zeros(width))


class Stepper(Protocol):
    """Takes the steps of one `Update`."""

    def step(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor], batch: Batch) -> None:
        """One step, in place."""

    def keep(self, index: Tensor) -> None:
        """Go on with the clients `index` only."""


def stepper_of(update: Update, block: Block) -> Stepper:
    """A fresh optimiser for one round of a block.

    Raises:
        ValueError: what the update asks for has no closed form for rows that are not touched.
    """
    names = list(update.rates)
    found = [(kind, [n for n in names if update.kind(n) == kind]) for kind in dict.fromkeys(map(update.kind, names))]
    steppers = [(_stepper(kind, some, update, block), [names.index(n) for n in some]) for kind, some in found]
    return steppers[0][0] if len(steppers) == 1 else Together(steppers)


def _stepper(kind: Optimiser, names: Sequence[str], update: Update, block: Block) -> Stepper:
    rates, decays = [update.rates[name] for name in names], [update.decay.get(name, 0.0) for name in names]
    if "adam" in kind:
        items = any(decay and block.axes[name] == "item" for name, decay in zip(names, decays, strict=True))
        if update.fading != 1 or items or (kind == "kept-adam" and any(decays)):
            raise ValueError("Adam neither fades nor decays item rows: it would move rows that no sample touches")
        if kind == "kept-adam":
            return KeptAdam(names, rates)
        return CohortAdam([block.parts[name] for name in names], rates, decays)
    by_frequency = [kind == "frequency-sgd" and block.axes[name] == "item" for name in names]
    for name, decay in zip(names, decays, strict=True):
        if decay and block.axes[name] == "item":
            block.shrunk.setdefault(name, torch.ones(len(block.users), device=block.users.device))
    return CohortSgd(names, rates, by_frequency, decays, update.fading, update.toward)


@dataclass(frozen=True)
class Together:
    """Several optimisers that take one step, each on some of the tensors."""

    steppers: Sequence[tuple[Stepper, Sequence[int]]]

    def step(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor], batch: Batch) -> None:
        """See `Stepper`."""
        for stepper, at in self.steppers:
            stepper.step([tensors[i] for i in at], [gradients[i] for i in at], batch)

    def keep(self, index: Tensor) -> None:
        """See `Stepper`."""
        for stepper, _ in self.steppers:
            stepper.keep(index)


class CohortAdam:
    """A fresh Adam for one round (the optimiser state does not survive it), dense over the rows it is given.

    All clients of the block take their steps together, so one step count serves them all: blocks are formed so that
    it does (equal number of batches), and `keep` drops the clients that stopped early. It is torch's fused functional
    Adam: the optimiser object around it costs as much as the arithmetic on tables of this size.

    Args:
        tensors: (k, ...) tensors like those that will be updated.
        rates: learning rate of each tensor. decays: weight decay of each; by default none.
    """

    def __init__(self, tensors: Sequence[Tensor], rates: Sequence[float], decays: Sequence[float] = ()) -> None:
        self._first = [torch.zeros_like(x) for x in tensors]
        self._second = [torch.zeros_like(x) for x in tensors]
        self._steps = [torch.zeros((), dtype=torch.float32, device=x.device) for x in tensors]
        both = list(zip(rates, decays or [0.0] * len(rates), strict=True))
        same = {pair: [i for i, other in enumerate(both) if other == pair] for pair in both}
        self._groups = list(same.items())  # tensors of one rate take their step in one call

    def step(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor], batch: Batch | None = None) -> None:
        """One Adam step with the given gradients, one a tensor; in place."""
        for (rate, decay), members in self._groups:
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
                weight_decay=decay,
                eps=EPSILON,
                maximize=False,
            )

    def keep(self, index: Tensor) -> None:
        """Go on with the clients `index` only, and their moments."""
        self._first = [x[index] for x in self._first]
        self._second = [x[index] for x in self._second]


def adam_step(value: Tensor, gradient: Tensor, first: Tensor, second: Tensor, steps: Tensor, rate: float) -> None:
    """One step of Adam in place, of tensors that may each have taken another number of steps, this one included."""
    first.lerp_(gradient, 1 - BETA_1)
    second.mul_(BETA_2).addcmul_(gradient, gradient, value=1 - BETA_2)
    scale = (second / (1 - BETA_2**steps)).sqrt_().add_(EPSILON)
    value.sub_(first / scale / (1 - BETA_1**steps), alpha=rate)


@dataclass(frozen=True)
class KeptAdam:
    """Adam of vectors (k, width) whose moments lie beside them in the block; see `moments`."""

    names: Sequence[str]
    rates: Sequence[float]

    def step(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor], batch: Batch) -> None:
        """See `Stepper`."""
        for name, rate, tensor, gradient in zip(self.names, self.rates, tensors, gradients, strict=True):
            width = tensor.shape[1]
            first, second, steps = batch.block.parts[f"{name}-moments"].split([width, width, 1], 1)
            adam_step(tensor, gradient, first, second, steps.add_(1), rate)

    def keep(self, index: Tensor) -> None:
        """The moments are the block's."""


@dataclass
class CohortSgd:
    """Plain gradient steps. All clients of the block take theirs together, so one fading serves them all.

    Attributes:
        names: of the parts, in the order of the tensors.
        rates: learning rate of each tensor.
        by_frequency: which tensors are rows whose gradient is to be a mean over their own occurrences.
        decays: weight decay of each tensor. What it does to rows that are not touched is noted in `Block.shrunk`.
        fading, toward: see `Update`.
    """

    names: Sequence[str]
    rates: Sequence[float]
    by_frequency: Sequence[bool]
    decays: Sequence[float]
    fading: float = 1.0
    toward: Mapping[str, str] = field(default_factory=dict)

    def step(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor], batch: Batch) -> None:
        """See `Stepper`."""
        each = zip(self.names, tensors, gradients, self.rates, self.by_frequency, self.decays, strict=True)
        for name, tensor, gradient, rate, frequency, decay in each:
            scaled = gradient * (batch.size / batch.weight.clamp(min=1)).unsqueeze(-1) if frequency else gradient
            if decay and name in self.toward:
                tensor.lerp_(batch.block.parts[self.toward[name]], rate * decay)
            elif decay:
                tensor.mul_(1 - rate * decay)
            if decay and name in batch.block.shrunk:
                batch.block.shrunk[name].mul_(1 - rate * decay)
            tensor.sub_(scaled, alpha=rate)
        self.rates = [rate * self.fading for rate in self.rates]

    def keep(self, index: Tensor) -> None:
        """All who are left go on with the same rates."""
