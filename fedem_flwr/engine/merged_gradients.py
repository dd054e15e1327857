"""Steps of any method through merged rows (FedEM, AAAI 2026, Eq. 9–12), from its own gradients by the chain rule.

With g the gradient by a merged row Q + ρ (G − Q): by ρ it is g · (G − Q), which goes on to Θ; by the own row it is
(1 − ρ) g, and where ρ looks at the own row also what comes through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedem_flwr.engine.block import Batch, Block
from fedem_flwr.engine.gradients import Gradients, GradientStep
from fedem_flwr.engine.learner import Learner
from fedem_flwr.engine.merge import ADAPTER
from fedem_flwr.engine.optimizer import Update, stepper_of


def through_merge(learner: Learner, batch: Batch, names: Sequence[str]) -> tuple[Tensor, Gradients]:
    """Gradients by the parts `names` of a batch whose rows are seen through the merge; shapes as those of the parts.

    Θ is asked for alone, as it takes its steps alone.

    Returns:
        (k,) sum of the batch's cross-entropies, and the gradients.
    """
    merge, name, block, pool = learner.merge, learner.merged, batch.block, batch.block.pool
    each = batch.unrolled()
    rows, glob = each.block.parts, each.block.received[name]
    local, delta = rows[name], glob - rows[name]  # (k, b, d)
    seen = merge.adapter.forward(rows[ADAPTER], *(pool or (local, glob))) if merge.learned else None
    rho = merge.weights(None, local, glob) if seen is None else seen.rho  # (k, b), or (k, 1)
    mixed = {**rows, name: torch.addcmul(local, rho.unsqueeze(-1), delta)}
    inner = Batch(replace(each.block, parts=mixed, received={}, pool=None), each.row, each.valid)
    wanted = dict.fromkeys(name if part == ADAPTER else part for part in names)
    loss, found = learner.gradients(inner, list(wanted))
    by_own = dict(found)
    if name in wanted:
        at_merged = found[name]
        by_own[name] = (1 - rho).unsqueeze(-1) * at_merged
        if seen is not None:
            d_rho = (at_merged * delta).sum(-1)  # (k, b)
            if ADAPTER in names:
                total = d_rho if pool is None else d_rho.sum(1, keepdim=True)
                by_own[ADAPTER] = merge.adapter.backward(rows[ADAPTER], seen, total, "theta")
            elif pool is None:  # `scalar` holds what ρ looks at fixed
                by_own[name] += merge.adapter.backward(rows[ADAPTER], seen, d_rho, "local")
    return loss, {n: _at_rows(by_own[n], batch) if block.axes[n] == "item" else by_own[n] for n in names}


def _at_rows(of_samples: Tensor, batch: Batch) -> Tensor:
    """(k, t, width) sums over a batch's samples (k, b, width) of each touched row."""
    index = batch.row.unsqueeze(-1).expand_as(of_samples)
    empty = of_samples.new_zeros((*batch.block.samples.touched.shape, of_samples.shape[-1]))
    return empty.scatter_add_(1, index, of_samples)


class AdapterGradientStep(GradientStep):
    """Eq. 11 by a method's own loss: Θ through the merged rows, everything else frozen."""

    def __init__(self, learner: Learner, block: Block) -> None:
        if learner.merged not in block.received:
            raise ValueError("an adapter step needs downloaded rows")
        self.method = self.learner = learner
        self.block = block
        update = Update({ADAPTER: learner.merge.lr})
        self.updates = [(update, stepper_of(update, block))]

    def gradients(self, batch: Batch, names: Sequence[str]) -> tuple[Tensor, Gradients]:
        """See `through_merge`."""
        return through_merge(self.learner, batch, names)


class MergedGradientStep(GradientStep):
    """A method's updates on each batch, through merged rows, and before them one on Θ where batches train it.

    Args:
        round_: from 1; rates may depend on it.
    """

    def __init__(self, learner: Learner, block: Block, round_: int) -> None:
        super().__init__(learner, block, round_)
        self.learner = learner
        update = Update({ADAPTER: learner.merge.lr})
        self.adapter = stepper_of(update, block) if learner.merge.fits_in_batches else None

    def __call__(self, row: Tensor, valid: Tensor) -> Tensor:
        """The loss is the one before the first update of the method's own."""
        if self.adapter is not None:
            batch = Batch(self.block, row, valid)
            slope = self.gradients(batch, [ADAPTER])[1][ADAPTER]
            self.adapter.step([self.block.parts[ADAPTER]], [slope], batch)
        return super().__call__(row, valid)

    def gradients(self, batch: Batch, names: Sequence[str]) -> tuple[Tensor, Gradients]:
        """See `through_merge`."""
        return through_merge(self.learner, batch, names)

    def keep(self, index: Tensor) -> Block:
        """See `engine.epochs.Step.keep`."""
        if self.adapter is not None:
            self.adapter.keep(index)
        return super().keep(index)
