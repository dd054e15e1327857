"""Gradients of one batch for every client of a block, by automatic differentiation, and the step that uses them.

Users share no leaf, so the gradient of the sum of their losses is each user's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fedem_flwr.engine.block import Batch, Block
from fedem_flwr.engine.optimizer import Update, stepper_of
from fedem_flwr.models.mf import loss_and_residual

Gradients = Mapping[str, Tensor]
_TINY = 1e-12
_ROWS = 2  # touched rows for each sample of a batch up to which they are all scored


class Differentiable(Protocol):
    """What a step needs to know of a method."""

    def score(self, parts: Mapping[str, Tensor]) -> Tensor:
        """(k, t) logits of rows (k, t, width) of the item parts, for user and model parts (k, width)."""

    def loss(self, logits: Tensor, sign: Tensor, valid: Tensor) -> Tensor:
        """(k,) what each user minimises of a batch: logits, signs (−1 positive, +1 negative) and mask, all (k, b)."""

    def penalty(self, parts: Mapping[str, Tensor], valid: Tensor, round_: int) -> Tensor | None:
        """(k,) what is added to the loss, given the rows (k, b, width) of the batch's samples; None: nothing."""

    def gradients(self, batch: Batch, names: Sequence[str]) -> tuple[Tensor, Gradients]:
        """The summed cross-entropy (k,) of a batch, and the gradient of what is minimised by each of the parts."""

    def updates(self, round_: int) -> Sequence[Update]:
        """The updates of a batch, in their order."""

    def sharpness(self, name: str) -> float:
        """ρ, how far from a part its gradient is taken, see `sharp`; 0: where it is."""

    def clipped(self, name: str) -> float:
        """The norm that a user's gradient by a part, and by others like it together, is scaled down to; inf: none."""

    def perturbed(self, names: Sequence[str]) -> Sequence[Sequence[str]]:
        """The parts `names` in the groups that `sharp` moves in turn."""


def automatic(method: Differentiable, batch: Batch, names: Sequence[str]) -> tuple[Tensor, Gradients]:
    """Gradients of the loss and the penalty by the parts `names`; shapes as those of the block's parts.

    Returns:
        (k,) float64 sum of the batch's cross-entropies, and the gradients.
    """
    axes = batch.block.axes

    def seen(parts: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {name: batch.of_samples(value) if axes[name] == "item" else value for name, value in parts.items()}

    return _differentiated(method, batch, names, seen, batch.sign, batch.valid)


def by_rows(method: Differentiable, batch: Batch, names: Sequence[str]) -> tuple[Tensor, Gradients]:
    """The same, faster: touched rows are scored once, with how often each occurs in the batch in the mask's place.

    For methods whose loss and penalty weigh samples by `valid`. Where a batch is much smaller than the round's touched
    rows it is sample by sample.
    """
    if batch.block.samples.sign.shape[1] > _ROWS * batch.row.shape[1]:
        return automatic(method, batch, names)
    return _differentiated(method, batch, names, dict, batch.block.samples.sign, batch.weight)


def _differentiated(
    method: Differentiable,
    batch: Batch,
    names: Sequence[str],
    seen: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    sign: Tensor,
    valid: Tensor,
) -> tuple[Tensor, Gradients]:
    parts = batch.block.parts
    leaves = {name: parts[name].detach().requires_grad_() for name in names}
    with torch.enable_grad():
        scored = seen({**parts, **leaves})
        logits = method.score(scored)
        total, more = method.loss(logits, sign, valid), method.penalty(scored, valid, batch.block.round)
        minimised = total if more is None else total + more
        found = torch.autograd.grad(minimised.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
    entropy, _ = loss_and_residual(logits.detach(), sign, valid)
    return entropy, dict(zip(names, found, strict=True))


def sharp(method: Differentiable, batch: Batch, names: Sequence[str]) -> tuple[Tensor, Gradients]:
    """Sharpness-aware gradients (Foret et al., ICLR 2021), a group of parts at a time as in FedRecGEL.

    For each group θ of the parts, the others as they are: the gradient at θ + ρ g / ‖g‖, with g the gradient at θ and
    one norm for the whole group of a user. Pulls (see `engine.optimizer.Pull`) are in neither g nor what is found: a
    step adds them where the part is.

    Returns:
        The loss at θ, and the gradients.
    """
    loss, plain = method.gradients(batch, names)
    parts, found = batch.block.parts, dict(plain)
    for group in method.perturbed(names):
        rho = {name: method.sharpness(name) for name in group}
        if not any(rho.values()):
            continue
        there = {name: parts[name] for name in group}
        norm = torch.stack([plain[name].flatten(1).square().sum(1) for name in group]).sum(0).sqrt()  # (k,)
        for name, values in there.items():
            parts[name] = values + plain[name] * (rho[name] / norm.clamp(min=_TINY)).view(-1, *[1] * (values.ndim - 1))
        moved = method.gradients(batch, group)[1]
        found |= {name: moved[name] for name in group}
        parts.update(there)
    return loss, found


def shortened(method: Differentiable, found: Gradients) -> Gradients:
    """Gradients (k, ...) whose norm over all parts that go up, of each user, is at most `gradients.clip`."""
    names = [name for name in found if method.clipped(name) < math.inf]
    if not names:
        return found
    norm = torch.stack([found[name].flatten(1).square().sum(1) for name in names]).sum(0).sqrt()  # (k,)
    factor = method.clipped(names[0]) / norm.clamp(min=method.clipped(names[0]))
    return {**found, **{n: found[n] * factor.view(-1, *[1] * (found[n].ndim - 1)) for n in names}}


class GradientStep:
    """A method's updates, one after the other, on each batch. See `engine.epochs.Step`.

    Args:
        block: trained in place.
        round_: from 1; rates may depend on it.
    """

    def __init__(self, method: Differentiable, block: Block, round_: int) -> None:
        self.method, self.block = method, block
        self.updates = [(update, stepper_of(update, block)) for update in method.updates(round_)]
        self.moved = any(method.sharpness(name) for update, _ in self.updates for name in update.rates)

    def __call__(self, row: Tensor, valid: Tensor) -> Tensor:
        """The loss is the one before the first update."""
        batch, before = Batch(self.block, row, valid), None
        for update, stepper in self.updates:
            names = list(update.rates)
            loss, found = self.gradients(batch, names)
            found = shortened(self.method, found)
            stepper.step([self.block.parts[name] for name in names], [found[name] for name in names], batch)
            before = loss if before is None else before
        if before is None:
            raise ValueError("a method that trains needs at least one update")
        return before

    def gradients(self, batch: Batch, names: Sequence[str]) -> tuple[Tensor, Gradients]:
        """See `Differentiable.gradients`, and `sharp`."""
        return sharp(self.method, batch, names) if self.moved else self.method.gradients(batch, names)

    def keep(self, index: Tensor) -> Block:
        """See `engine.epochs.Step.keep`."""
        for _, stepper in self.updates:
            stepper.keep(index)
        self.block = self.block.take(index)
        return self.block
