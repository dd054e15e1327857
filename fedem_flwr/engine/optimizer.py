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
class Pull:
    """A pull of a part in each step: its gradient is one of the loss and `strength` · (q − a).

    An item part, which `sgd` trains, is pulled with every row, whether a batch touches it or not. Rows that none
    touches are moved in closed form, once a round: what is left of their way to a is Π (1 − rate · strength) over
    the batches.

    Attributes:
        strength: factor on the way to a.
        to: the part whose rows a are; empty: 0, which is weight decay.
    """

    strength: float
    to: str = ""


@dataclass(frozen=True)
class Update:
    """One update in a batch: which parts take a step together, and how.

    Gradients are computed anew for each update of a batch, so a later one sees what an earlier one has changed.

    Attributes:
        rates: the learning rate of each part.
        by: `adam` with torch's defaults, fresh in each round; `kept-adam`, whose moments a client keeps in a part that
            the method has beside (see `moments`); `sgd`; `frequency-sgd`, in which an item row's gradient is the mean
            over its own occurrences in the batch and not over the whole batch. One for all, or one a part.
        pulls: of parts. Item parts that clients do not keep can only be pulled to 0.
        fading: after each batch of the round the rates of `sgd` are multiplied by it.
    """

    rates: Mapping[str, float]
    by: Optimiser | Mapping[str, Optimiser] = "adam"
    pulls: Mapping[str, Pull] = field(default_factory=dict)
    fading: float = 1.0

    def __post_init__(self) -> None:
        kinds = {self.kind(name) for name in self.rates}
        if self.fading != 1 and kinds != {"sgd"}:
            raise ValueError("only the rates of sgd fade")
        if any(
            self.kind(name) != "sgd" and (pull.to or self.kind(name) != "adam") for name, pull in self.pulls.items()
        ):
            raise ValueError("only parts that sgd trains can be pulled, and vectors to 0 that adam trains")

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
    """A fresh optimiser for one round of a block."""
    names = list(update.rates)
    found = [(kind, [n for n in names if update.kind(n) == kind]) for kind in dict.fromkeys(map(update.kind, names))]
    steppers = [(_stepper(kind, some, update, block), [names.index(n) for n in some]) for kind, some in found]
    return steppers[0][0] if len(steppers) == 1 else Together(steppers)


def _stepper(kind: Optimiser, names: Sequence[str], update: Update, block: Block) -> Stepper:
    rates = [update.rates[name] for name in names]
    pulls = [update.pulls.get(name) for name in names]
    if kind == "adam":
        if any(pull and block.axes[name] == "item" for name, pull in zip(names, pulls, strict=True)):
            raise ValueError("Adam pulls no rows: how far those go that no batch touches has no closed form")
        return CohortAdam(
            [block.parts[name] for name in names], rates, [pull.strength if pull else 0 for pull in pulls]
        )
    if kind == "kept-adam":
        return KeptAdam(names, rates)
    by_frequency = [kind == "frequency-sgd" and block.axes[name] == "item" for name in names]
    for name, pull in zip(names, pulls, strict=True):
        if pull is not None and block.axes[name] == "item":
            block.left[name, pull.to] = block.samples.sign.new_ones(len(block.users))
    return CohortSgd(rates, by_frequency, list(zip(names, pulls, strict=True)), update.fading)


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
        rates: learning rate of each tensor. decays: weight decay of each, as torch has it; by default none.
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
        rates: learning rate of each tensor.
        by_frequency: which tensors are rows whose gradient is to be a mean over their own occurrences.
        pulls: the tensors' names, and their pulls.
        fading: of the rates, after each step.
    """

    rates: Sequence[float]
    by_frequency: Sequence[bool]
    pulls: Sequence[tuple[str, Pull | None]] = ()
    fading: float = 1.0

    def step(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor], batch: Batch) -> None:
        """See `Stepper`."""
        for at, (tensor, gradient, rate) in enumerate(zip(tensors, gradients, self.rates, strict=True)):
            step = (
                gradient * (batch.size / batch.weight.clamp(min=1)).unsqueeze(-1) if self.by_frequency[at] else gradient
            )
            name, pull = self.pulls[at] if self.pulls else ("", None)
            if pull is not None:
                way = tensor - batch.block.parts[pull.to] if pull.to else tensor
                step = torch.add(step, way, alpha=pull.strength)
                if (name, pull.to) in batch.block.left:
                    batch.block.left[name, pull.to] *= 1 - rate * pull.strength
            tensor.sub_(step, alpha=rate)
        if self.fading != 1:
            self.rates = [rate * self.fading for rate in self.rates]

    def keep(self, index: Tensor) -> None:
        """All who are left go on with the same rates."""
