"""Local training of a block of clients on their touched rows (FedEM, AAAI 2026, Eq. 11–12).

Gradients are written out and batched over the leading client axis. Three kinds of step share one epoch loop:
`PlainStep` (Eq. 12: p and Q), `AdapterStep` (Eq. 11: Θ through the merged rows) and `MergedStep` (the released
program: Θ, then p and Q through the merged rows, in every batch).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.merge import Merge
from fedem_flwr.engine.optimizer import CohortAdam
from fedem_flwr.engine.samples import RoundSamples, shuffled_rows
from fedem_flwr.models.mf import loss_and_residual, scores


@dataclass(frozen=True)
class LocalSettings:
    """Hyper-parameters of Eq. 12.

    Attributes:
        epochs: E, passes over the round's samples.
        batch_size: B.
        negatives: drawn for every positive, fresh each round.
        lr_user, lr_item: Adam's rate for p and for Q (η).
        lr_adapter: Adam's rate for Θ (β).
        early_stop: a client stops when its running mean loss changes by less than this share between epochs; 0 never.
    """

    epochs: int
    batch_size: int
    negatives: int
    lr_user: float
    lr_item: float
    lr_adapter: float
    early_stop: float


@dataclass
class Block:
    """Clients that are trained together; every tensor has them on its leading axis.

    Attributes:
        users: (k,) indices in the run, the key of their draws.
        samples: this round's samples.
        user: (k, d) embeddings p.
        rows: (k, t, d) touched rows of the own tables.
        glob: (k, t, d) the same rows of the downloaded tables, or None.
        theta: (k, P) adapter parameters, or None.
        pool: the (k, 1, d) own and downloaded mean rows that `scalar` merging looks at, or None.
    """

    users: Tensor
    samples: RoundSamples
    user: Tensor
    rows: Tensor
    glob: Tensor | None = None
    theta: Tensor | None = None
    pool: tuple[Tensor, Tensor] | None = None

    def take(self, index: Tensor) -> Block:
        """The clients `index` of the block, as copies."""
        s = self.samples
        return Block(
            self.users[index],
            RoundSamples(*(x[index] for x in (s.touched, s.touched_count, s.sign, s.row, s.size, s.weight))),
            self.user[index],
            self.rows[index],
            None if self.glob is None else self.glob[index],
            None if self.theta is None else self.theta[index],
            None if self.pool is None else (self.pool[0][index], self.pool[1][index]),
        )

    def put(self, index: Tensor, other: Block) -> None:
        """Write the trained tensors of `other` back to the clients `index`."""
        self.user[index] = other.user
        self.rows[index] = other.rows
        if self.theta is not None and other.theta is not None:
            self.theta[index] = other.theta


class Step(Protocol):
    """One optimiser step of every client in a block."""

    def __call__(self, row: Tensor, valid: Tensor) -> Tensor:
        """Take a batch (k, b) of touched-row indices and their mask; return the summed loss (k,)."""

    def keep(self, index: Tensor) -> Block:
        """Go on with the clients `index`; returns the smaller block whose tensors are trained from now on."""


class PlainStep:
    """Eq. 12: p and Q by Adam on the batch mean of the binary cross-entropy.

    A batch is turned into a weight for each touched row; the gradient of row i is then (weighted residual) × p, one
    outer product, and no embedding is gathered.
    """

    def __init__(self, block: Block, settings: LocalSettings) -> None:
        self.block = block
        self.adam = CohortAdam([block.user, block.rows], [settings.lr_user, settings.lr_item])
        self.gradient = torch.empty_like(block.rows)

    def __call__(self, row: Tensor, valid: Tensor) -> Tensor:
        """See `Step`."""
        block = self.block
        weight = torch.zeros_like(block.samples.sign).scatter_add_(1, row, valid)
        loss, residual = loss_and_residual(scores(block.user, block.rows), block.samples.sign, weight)
        residual = residual.div_(valid.sum(1, keepdim=True).clamp_(min=1))  # (k, t)
        to_user = torch.bmm(residual.unsqueeze(1), block.rows).squeeze(1)  # (k, d)
        torch.mul(residual.unsqueeze(-1), block.user.unsqueeze(1), out=self.gradient)
        self.adam.step([to_user, self.gradient])
        return loss

    def keep(self, index: Tensor) -> Block:
        """See `Step.keep`."""
        self.adam.keep(index)
        smaller = self.block.take(index)
        smaller.user, smaller.rows = self.adam.tensors
        self.block, self.gradient = smaller, torch.empty_like(smaller.rows)
        return smaller


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

    def __init__(self, block: Block, settings: LocalSettings, merge: Merge) -> None:
        if block.glob is None:
            raise ValueError("an adapter step needs downloaded rows")
        self.block, self.merge = block, merge
        trained = [block.theta] if block.theta is not None and merge.learned else []
        self.adapter_adam = CohortAdam(trained, [settings.lr_adapter] * len(trained)) if trained else None

    def batch(self, row: Tensor, valid: Tensor) -> _Merged:
        """Gather a batch of own and downloaded rows."""
        block = self.block
        index = row.unsqueeze(-1).expand(-1, -1, block.rows.shape[-1])
        local = block.rows.gather(1, index)
        if block.glob is None:
            raise ValueError("the block lost its downloaded rows")
        delta = block.glob.gather(1, index) - local
        weight = valid / valid.sum(1, keepdim=True).clamp(min=1)
        return _Merged(index, local, delta, block.samples.sign.gather(1, row), weight)

    def adapt(self, batch: _Merged) -> Tensor:
        """One step on Θ; returns the batch mean loss (k,) before it."""
        block = self.block
        theta, adam = block.theta, self.adapter_adam
        if theta is None or adam is None:
            raise ValueError(f"merge mode '{self.merge.mode}' has no adapter to train")
        local, glob = block.pool or (batch.local, batch.local + batch.delta)
        seen = self.merge.adapter.forward(theta, local, glob)
        merged = torch.addcmul(batch.local, seen.rho.unsqueeze(-1), batch.delta)
        loss, residual = loss_and_residual(scores(block.user, merged), batch.sign, batch.weight)
        d_rho = residual * scores(block.user, batch.delta)  # (k, b)
        if block.pool is not None:  # one ρ a client: its derivative is the sum over the batch
            d_rho = d_rho.sum(1, keepdim=True)
        adam.step([self.merge.adapter.backward(theta, seen, d_rho, "theta")])
        return loss

    def __call__(self, row: Tensor, valid: Tensor) -> Tensor:
        """See `Step`; the loss is the one before the step."""
        return self.adapt(self.batch(row, valid)) * valid.sum(1)

    def keep(self, index: Tensor) -> Block:
        """See `Step.keep`."""
        smaller = self.block.take(index)
        if self.adapter_adam is not None:
            self.adapter_adam.keep(index)
            (smaller.theta,) = self.adapter_adam.tensors
        self.block = smaller
        return smaller


class MergedStep(AdapterStep):
    """The released program's batch: a step on Θ, then one on p and Q, both through the merged rows."""

    def __init__(self, block: Block, settings: LocalSettings, merge: Merge) -> None:
        super().__init__(block, settings, merge)
        self.adam = CohortAdam([block.user, block.rows], [settings.lr_user, settings.lr_item])

    def __call__(self, row: Tensor, valid: Tensor) -> Tensor:
        """See `Step`."""
        block, batch = self.block, self.batch(row, valid)
        if self.merge.learned:
            self.adapt(batch)
        theta = block.theta
        if self.merge.learned and theta is not None:
            local, glob = block.pool or (batch.local, batch.local + batch.delta)
            seen = self.merge.adapter.forward(theta, local, glob)
            rho = seen.rho
        else:
            seen, rho = None, self.merge.weights(None, batch.local, batch.local)
        merged = torch.addcmul(batch.local, rho.unsqueeze(-1), batch.delta)
        loss, residual = loss_and_residual(scores(block.user, merged), batch.sign, batch.weight)
        to_user = torch.bmm(residual.unsqueeze(1), merged).squeeze(1)
        to_row = residual.unsqueeze(-1) * block.user.unsqueeze(1)  # (k, b, d) derivative of the merged row
        d_local = (1 - rho).unsqueeze(-1) * to_row
        if seen is not None and theta is not None and block.pool is None:
            # ρ looks at the own row too; `scalar` pools the whole table at the round's start and holds it fixed
            d_rho = residual * scores(block.user, batch.delta)
            d_local += self.merge.adapter.backward(theta, seen, d_rho, "local")
        gradient = torch.zeros_like(block.rows).scatter_add_(1, batch.index, d_local)
        self.adam.step([to_user, gradient])
        return loss * valid.sum(1)

    def keep(self, index: Tensor) -> Block:
        """See `Step.keep`."""
        self.adam.keep(index)
        smaller = super().keep(index)
        smaller.user, smaller.rows = self.adam.tensors
        return smaller


def train_epochs(
    step: Step, block: Block, settings: LocalSettings, *, epochs: int, draws: Draws, round_: int, first_epoch: int = 0
) -> Tensor:
    """Run a step over shuffled batches; `block`'s tensors are trained in place.

    A client stops when its running mean loss over the round changes by less than `early_stop` between two epochs,
    as in the released program.

    Args:
        first_epoch: number of the first epoch in the key of its shuffle, so that two phases of a round differ.

    Returns:
        (k,) mean loss a sample over all the epochs that each client ran.
    """
    k = len(block.users)
    alive = torch.arange(k, device=block.users.device)
    total = torch.zeros(k, dtype=torch.float64, device=block.users.device)
    mean = torch.zeros_like(total)
    current = block
    for epoch in range(epochs):
        samples = current.samples
        order = shuffled_rows(samples, current.users, draws, round_, first_epoch + epoch)
        order = pad(order, (0, -order.shape[1] % settings.batch_size))  # every batch has the same width in every block
        for start in range(0, order.shape[1], settings.batch_size):
            row = order[:, start : start + settings.batch_size]
            column = torch.arange(start, start + row.shape[1], device=row.device)
            valid = (column < samples.size.unsqueeze(1)).to(current.rows.dtype)
            total[alive] += step(row, valid)
        before = mean[alive]
        mean[alive] = total[alive] / (samples.size * (epoch + 1)).clamp(min=1)
        if settings.early_stop and 0 < epoch < epochs - 1:
            change = (mean[alive] - before).abs() / (before + 1e-5).abs()
            going = change >= settings.early_stop
            if not bool(going.all()):
                if current is not block:
                    block.put(alive, current)
                alive = alive[going]
                if not len(alive):
                    return mean
                current = step.keep(going.nonzero().squeeze(1))
    if current is not block:
        block.put(alive, current)
    return mean
