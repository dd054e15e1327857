"""The epochs of a local round over a block of clients (FedEM, AAAI 2026, Eq. 11–12)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedem_flwr.engine.block import Block
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.samples import LANES, shuffled_rows
from fedem_flwr.pulse import beat


@dataclass(frozen=True)
class LocalSettings:
    """How often a client goes through its samples.

    Attributes:
        epochs: E, passes over the round's samples.
        batch_size: B; 0: all samples in one batch.
        negatives: drawn for every positive, fresh each round.
        early_stop: a client stops when its running mean loss changes by less than this share between epochs; 0 never.
        deterministic: sums on a GPU are added up in an order that is always the same.
    """

    epochs: int
    batch_size: int
    negatives: int
    early_stop: float = 0.0
    deterministic: bool = True


def batches_of(size: Tensor, settings: LocalSettings) -> Tensor:
    """(k,) batches of an epoch, for users with `size` samples (k,)."""
    return -(-size // settings.batch_size) if settings.batch_size else size.clamp(max=1)


class Step(Protocol):
    """One batch of every client in a block."""

    def __call__(self, row: Tensor, valid: Tensor) -> Tensor:
        """Take a batch (k, b) of touched-row indices and their mask; return the summed loss (k,)."""

    def keep(self, index: Tensor) -> Block:
        """Go on with the clients `index`; returns the smaller block whose tensors are trained from now on."""


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
        beat()  # whoever has no samples has no batches
        samples = current.samples
        order = shuffled_rows(samples, current.users, draws, round_, first_epoch + epoch)
        width = settings.batch_size or -(-order.shape[1] // LANES) * LANES
        order = pad(order, (0, -order.shape[1] % width))  # every batch has the same width in every block
        for start in range(0, order.shape[1], width):
            row = order[:, start : start + width]
            column = torch.arange(start, start + row.shape[1], device=row.device)
            valid = (column < samples.size.unsqueeze(1)).to(samples.sign.dtype)
            total[alive] += step(row, valid)
            beat()
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
