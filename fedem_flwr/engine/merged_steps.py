"""Steps of matrix factorisation through merged rows (FedEM, AAAI 2026): Eq. 11, and the released program's batch.

Gradients are written out and batched over the leading client axis; `engine.merged_gradients` does the same for any
method. The parts are `user`, `items` and the adapter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedem_flwr.engine.block import Block
from fedem_flwr.engine.merge import ADAPTER, Merge
from fedem_flwr.engine.optimizer import CohortAdam
from fedem_flwr.models.mf import loss_and_residual, scores


@dataclass(frozen=True)
class _Merged:
    """A batch seen through the merge: all (k, b, ·)."""

    index: Tensor  # (k, b, d) for gather and scatter
    local: Tensor
    delta: Tensor
    sign: Tensor
    weight: Tensor


class AdapterStep:
    """Eq. 11: Θ by Adam through the merged rows, p, Q and G frozen."""

    def __init__(self, block: Block, merge: Merge) -> None:
        if "items" not in block.received:
            raise ValueError("an adapter step needs downloaded rows")
        self.block, self.merge = block, merge
        self._adam = CohortAdam([block.parts[ADAPTER]], [merge.lr]) if merge.learned else None

    def batch(self, row: Tensor, valid: Tensor) -> _Merged:
        """Gather a batch of own and downloaded rows."""
        block = self.block
        rows = block.parts["items"]
        index = row.unsqueeze(-1).expand(-1, -1, rows.shape[-1])
        local = rows.gather(1, index)
        delta = block.received["items"].gather(1, index) - local
        weight = valid / valid.sum(1, keepdim=True).clamp(min=1)
        return _Merged(index, local, delta, block.samples.sign.gather(1, row), weight)

    def adapt(self, batch: _Merged) -> Tensor:
        """One step on Θ; returns the batch mean loss (k,) before it."""
        block, adam = self.block, self._adam
        if adam is None:
            raise ValueError(f"merge mode '{self.merge.mode}' has no adapter to train")
        theta, user = block.parts[ADAPTER], block.parts["user"]
        local, glob = block.pool or (batch.local, batch.local + batch.delta)
        seen = self.merge.adapter.forward(theta, local, glob)
        merged = torch.addcmul(batch.local, seen.rho.unsqueeze(-1), batch.delta)
        loss, residual = loss_and_residual(scores(user, merged), batch.sign, batch.weight)
        d_rho = residual * scores(user, batch.delta)  # (k, b)
        if block.pool is not None:  # one ρ a client: its derivative is the sum over the batch
            d_rho = d_rho.sum(1, keepdim=True)
        adam.step([theta], [self.merge.adapter.backward(theta, seen, d_rho, "theta")])
        return loss

    def __call__(self, row: Tensor, valid: Tensor) -> Tensor:
        """See `engine.epochs.Step`; the loss is the one before the step."""
        return self.adapt(self.batch(row, valid)) * valid.sum(1)

    def keep(self, index: Tensor) -> Block:
        """See `engine.epochs.Step.keep`."""
        if self._adam is not None:
            self._adam.keep(index)
        self.block = self.block.take(index)
        return self.block


class MergedStep(AdapterStep):
    """The released program's batch: a step on Θ, then one on p and Q, both through the merged rows.

    Args:
        lr_user, lr_item: Adam's rates for p and for Q (η).
    """

    def __init__(self, block: Block, merge: Merge, lr_user: float, lr_item: float) -> None:
        super().__init__(block, merge)
        self.adam = CohortAdam([block.parts["user"], block.parts["items"]], [lr_user, lr_item])

    def __call__(self, row: Tensor, valid: Tensor) -> Tensor:
        """See `engine.epochs.Step`."""
        block, batch = self.block, self.batch(row, valid)
        user, rows = block.parts["user"], block.parts["items"]
        if self.merge.learned:
            if self.merge.fits_in_batches:
                self.adapt(batch)
            theta: Tensor | None = block.parts[ADAPTER]
            assert theta is not None
            local, glob = block.pool or (batch.local, batch.local + batch.delta)
            seen = self.merge.adapter.forward(theta, local, glob)
            rho = seen.rho
        else:
            theta, seen = None, None
            rho = self.merge.weights(None, batch.local, batch.local)
        merged = torch.addcmul(batch.local, rho.unsqueeze(-1), batch.delta)
        loss, residual = loss_and_residual(scores(user, merged), batch.sign, batch.weight)
        to_user = torch.bmm(residual.unsqueeze(1), merged).squeeze(1)
        to_row = residual.unsqueeze(-1) * user.unsqueeze(1)  # (k, b, d) derivative of the merged row
        d_local = (1 - rho).unsqueeze(-1) * to_row
        if seen is not None and theta is not None and block.pool is None:
            # ρ looks at the own row too; `scalar` pools the whole table at the round's start and holds it fixed
            d_rho = residual * scores(user, batch.delta)
            d_local += self.merge.adapter.backward(theta, seen, d_rho, "local")
        gradient = torch.zeros_like(rows).scatter_add_(1, batch.index, d_local)
        self.adam.step([user, rows], [to_user, gradient])
        return loss * valid.sum(1)

    def keep(self, index: Tensor) -> Block:
        """See `engine.epochs.Step.keep`."""
        self.adam.keep(index)
        return super().keep(index)
