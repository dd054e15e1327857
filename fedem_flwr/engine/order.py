"""One round of the order component on the device: gradients of a sampled softmax over a user's own sequence, summed.

Each position of a history predicts the item that came next, among that item and a user's sampled negatives. Sums over
the cohort leave: of the encoder's weights and of the touched item rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.history import History, IntArray
from fedem_flwr.engine.parallel import in_parallel
from fedem_flwr.engine.sampled_softmax import sampled_softmax
from fedem_flwr.models.encoder import Dropout, Encoder

_BLOCK = 16  # users whose activations are held at a time, in one worker
_SCORED, _SCORED_ON_A_GPU = 32, 256  # users whose activations are held at a time in scoring
_LEAST = 2  # items of a sequence: one to predict from, one to predict


@dataclass(frozen=True)
class OrderTask:
    """What is minimised.

    Attributes:
        encoder: its shape.
        negatives: drawn for each user and round, shared by its positions; 0 is the whole catalogue.
        rows: whether the item rows learn too.
        seed, secret: key the draws; see `draws.Draws`.
    """

    encoder: Encoder
    negatives: int
    rows: bool
    seed: int
    secret: bytes = field(default=b"", repr=False)

    @property
    def draws(self) -> Draws:
        """The key of the clients' draws."""
        return Draws(self.seed, self.secret)


@dataclass
class OrderSums:
    """Sums over a cohort's positions; float64.

    Attributes:
        weights: (W,) gradient. touched: (t,) items whose rows were used, ascending; none where rows do not learn.
        rows: (t, d) gradient of these. loss: Σ −log softmax. positions: how many.
    """

    weights: Tensor
    touched: Tensor
    rows: Tensor
    loss: float
    positions: int


def order_sums(
    task: OrderTask, weights: Tensor, rows: Tensor, history: History, who: IntArray, round_: int
) -> OrderSums:
    """Gradients of users `who` for one round.

    Args:
        weights: (W,) and rows: (m, d), as downloaded.
        history: the cohort's interactions.
        who: (k',) positions of the participants.
        round_: keys the negatives and the dropout.
    """
    device = rows.device
    zeros = partial(torch.zeros, dtype=torch.float64, device=device)
    nothing = torch.empty(0, dtype=torch.int64, device=device), zeros((0, rows.shape[1]))
    total = OrderSums(zeros(len(weights)), *nothing, 0.0, 0)
    longest = task.encoder.window + 1
    blocks = [who[alike] for alike in _alike(history, who, longest, least=_LEAST, together=_BLOCK)]

    def gradients(block: IntArray) -> OrderSums:
        items, _ = history.padded(block, longest)
        users = torch.from_numpy(history.users[block]).to(device)
        return _block(task, weights, rows, items.to(device), users, round_)

    for sums in in_parallel(gradients, blocks, device, "training"):
        touched = torch.cat([total.touched, sums.touched]).unique()
        together = zeros((len(touched), rows.shape[1]))
        for part in (total, sums):
            together.index_add_(0, torch.searchsorted(touched, part.touched), part.rows.double())
        weights_too, loss, positions = total.weights + sums.weights, total.loss + sums.loss, total.positions
        total = OrderSums(weights_too, touched, together, loss, positions + sums.positions)
    return total


def _alike(history: History, who: IntArray, longest: int, *, least: int, together: int) -> list[IntArray]:
    """Places in `who` (k',) of those with enough items, in blocks by length: little is padding; long ones first.

    Args:
        longest: to how many of the newest items histories are cut. least: items that a user must have.
        together: users of a block.
    """
    seen = np.minimum(history.counts()[who], longest)
    enough = np.argsort(-seen, kind="stable")[: np.count_nonzero(seen >= least)]
    return np.split(enough, range(together, len(enough), together)) if len(enough) else []


def _block(task: OrderTask, weights: Tensor, rows: Tensor, items: Tensor, users: Tensor, round_: int) -> OrderSums:
    m = len(rows)
    before, after = items[:, :-1], items[:, 1:]  # (k, l)
    real = before < m
    negatives = task.draws.bits("order/negatives", (round_,), users, task.negatives) % m  # (k, s)
    used = torch.cat([negatives.flatten(), items[items < m]]).unique() if task.negatives else torch.arange(m).to(items)
    own, table = weights.detach().requires_grad_(), rows[used].detach().requires_grad_(task.rows)  # (t, d)

    def row(codes: Tensor) -> Tensor:
        return table[torch.searchsorted(used, codes.contiguous()).clamp(max=len(used) - 1)]

    gathered = row(before)
    drop = Dropout(task.encoder.dropout, task.draws.own_seed, round_, users)
    hidden = task.encoder.hidden(own, gathered, real, drop)  # (k, l, d)
    if task.negatives:
        same = negatives.int()[:, None, :] == after.int()[:, :, None]
        stands_for = math.log(m / task.negatives)  # each for m / s items
        loss = sampled_softmax(hidden, row(after), row(negatives), same, real, stands_for)
    else:
        logits = hidden @ table.T
        losses = torch.logsumexp(logits, -1) - logits.gather(2, after.clamp(max=m - 1).unsqueeze(-1)).squeeze(-1)
        loss = losses[real].sum()
    wanted = (own, table) if task.rows else (own,)
    found = torch.autograd.grad(loss, wanted)
    learnt = (used, found[1]) if task.rows else (used[:0], rows[:0])
    return OrderSums(found[0], *learnt, float(loss.detach()), int(real.sum()))


@dataclass(frozen=True)
class OrderScores:
    """Scores of what comes next; a component of `evaluation.scorers.HistoryScorer`.

    Attributes:
        encoder: its shape. weights: (W,). rows: (m, d).
    """

    encoder: Encoder
    weights: Tensor
    rows: Tensor

    def scores(self, history: History, who: IntArray) -> tuple[Tensor, None]:
        """(k', m); zeros for users without history."""
        m, rows = len(self.rows), self.rows
        found, window = rows.new_zeros(len(who), rows.shape[1]), self.encoder.window
        together = _SCORED if rows.device.type == "cpu" else _SCORED_ON_A_GPU
        for part in _alike(history, who, window, least=1, together=together):
            items = history.padded(who[part], window)[0].to(rows.device)
            hidden = self.encoder.hidden(self.weights, rows[items.clamp(max=m - 1)], items < m, newest=True)
            found[torch.from_numpy(part).to(rows.device)] = hidden[:, -1]
        return found @ rows.T, None
