"""Triples of a user, an item that it met and one that it did not: samples of methods that compare the two."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.samples import TrainingItems, draw_samples


@dataclass(frozen=True)
class Triples:
    """Rows of triples, (g, s) each: a row a user, or one row for all of them together.

    Attributes:
        owner: positions among the k users. met, other: items. valid: 1 where a triple is real.
        users, draws: (k,) codes of the users, and the key of their shuffles.
        real: where all are in one row, which of the users' (k, s') they were; else None.
        samples: positives and negatives behind them.
    """

    owner: Tensor
    met: Tensor
    other: Tensor
    valid: Tensor
    users: Tensor
    draws: Draws
    real: Tensor | None
    samples: int

    @classmethod
    def drawn(
        cls, data: TrainingItems, who: Tensor, negatives: int, draws: Draws, round_: int, *, together: bool
    ) -> Triples:
        """Each positive of users `who` (k,) with each of its negatives; without the decoys.

        Args:
            round_: keys the negatives. together: in one row, without padding.
        """
        drawn = draw_samples(data, who, negatives, draws, round_)
        count, each = int(drawn.weight.max()) // (1 + negatives), 1 + negatives
        items = drawn.touched.gather(1, drawn.row)[:, : count * each].view(len(who), count, each)
        met, other = items[..., :1].expand(-1, -1, negatives).flatten(1), items[..., 1:].flatten(1)
        owner = torch.arange(len(who), device=who.device).unsqueeze(1).expand_as(met)
        real = torch.arange(met.shape[1], device=who.device) < (drawn.weight * negatives // each).unsqueeze(1)
        valid, kept = real.float(), real if together else None
        if together:
            owner, met, other, valid = (x[real].unsqueeze(0) for x in (owner, met, other, valid))
        return cls(owner, met, other, valid, data.users[who], draws, kept, int(drawn.weight.sum()))

    def shuffled(self, round_: int, epoch: int) -> Tensor:
        """(g, s) an order of each row's triples; padding comes last."""
        count = self.met.shape[1] if self.real is None else self.real.shape[1]
        key = self.draws.bits("train/shuffle", (round_, epoch), self.users, count)
        key = key if self.real is None else key[self.real].unsqueeze(0)
        found: Tensor = key.masked_fill(self.valid == 0, torch.iinfo(key.dtype).max).sort(dim=1, stable=True).indices
        return found
