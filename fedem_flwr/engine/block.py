"""Clients that are trained together, on their touched rows, and the batches that they see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from fedem_flwr.engine.samples import RoundSamples


@dataclass
class Block:
    """k clients of a cohort; every tensor has them on its leading axis.

    Attributes:
        users: (k,) indices in the run, the key of their draws.
        samples: this round's samples.
        parts: what is trained, in place: user (k, width) and model (k, width) parts, touched rows (k, t, width) of item
            parts.
        axes: the axis of each part.
        received: the downloaded counterparts of the parts that clients keep a copy of, of the same shapes; empty where
            training does not look at them.
        pool: the (k, 1, d) own and downloaded mean rows that `scalar` merging looks at, or None.
        round: of the run, from 1.
        left: (k,) what is left, for rows that no batch touches, of the way of a pulled part to what pulls it, by both
            names; see `engine.optimizer.Pull`.
    """

    users: Tensor
    samples: RoundSamples
    parts: dict[str, Tensor]
    axes: Mapping[str, str]
    received: dict[str, Tensor] = field(default_factory=dict)
    pool: tuple[Tensor, Tensor] | None = None
    round: int = 1
    left: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    @property
    def real(self) -> Tensor:
        """(k, t) which touched rows are real."""
        samples = self.samples
        width = samples.touched.shape[1]
        return torch.arange(width, device=self.users.device) < samples.touched_count.unsqueeze(1)

    def take(self, index: Tensor) -> Block:
        """The clients `index` of the block, as copies."""
        s = self.samples
        return Block(
            self.users[index],
            RoundSamples(*(x[index] for x in (s.touched, s.touched_count, s.sign, s.row, s.size, s.weight))),
            {name: value[index] for name, value in self.parts.items()},
            self.axes,
            {name: value[index] for name, value in self.received.items()},
            None if self.pool is None else (self.pool[0][index], self.pool[1][index]),
            self.round,
            {names: left[index] for names, left in self.left.items()},
        )

    def put(self, index: Tensor, other: Block) -> None:
        """Write the trained tensors of `other` back to the clients `index`."""
        for name, value in self.parts.items():
            value[index] = other.parts[name]
        for names, left in self.left.items():
            left[index] = other.left[names]


@dataclass(frozen=True)
class Batch:
    """One batch of every client in a block.

    Attributes:
        row: (k, b) touched row of each sample. valid: (k, b) 1 where a sample is real, else 0.
    """

    block: Block
    row: Tensor
    valid: Tensor

    @cached_property
    def size(self) -> Tensor:
        """(k, 1) real samples, at least 1."""
        return self.valid.sum(1, keepdim=True).clamp_(min=1)

    @cached_property
    def weight(self) -> Tensor:
        """(k, t) how often each touched row occurs in the batch."""
        return torch.zeros_like(self.block.samples.sign).scatter_add_(1, self.row, self.valid)

    @cached_property
    def sign(self) -> Tensor:
        """(k, b) −1 for positives and +1 for negatives."""
        return self.block.samples.sign.gather(1, self.row)

    def unrolled(self) -> Batch:
        """The same batch over a block of its own, in which every sample has a row."""
        block, s = self.block, self.block.samples
        row = torch.arange(self.row.shape[1], device=self.row.device).expand_as(self.row)
        count = self.valid.sum(1).long()
        samples = RoundSamples(s.touched.gather(1, self.row), count, self.sign, row, s.size, s.weight)

        def rows(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {n: self.of_samples(x) if block.axes[n] == "item" else x for n, x in values.items()}

        parts, received = rows(block.parts), rows(block.received)
        return Batch(replace(block, samples=samples, parts=parts, received=received), row, self.valid)

    def of_samples(self, rows: Tensor) -> Tensor:
        """(k, b, width) a row for each sample, out of touched rows (k, t, width)."""
        return rows.gather(1, self.row.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))


@dataclass
class Trained:
    """A block after its round: losses (k,), positions (k,) in the cohort, and its rows before, where asked for."""

    loss: Tensor
    who: Tensor
    block: Block
    before: dict[str, Tensor]
