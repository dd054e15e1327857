"""The reference back end: one client at a time, whole tables, automatic differentiation and torch's own optimisers.

Slow, and obviously right. Only the keyed draws are shared with the fast back end, which is tested against it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from fedem_flwr.engine.block import Trained
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.optimizer import Update
from fedem_flwr.engine.pulse import beat
from fedem_flwr.engine.samples import RoundSamples, draw_samples, shuffled_rows

if TYPE_CHECKING:
    from fedem_flwr.engine.cohort import Cohort
    from fedem_flwr.engine.downloads import Downloads
    from fedem_flwr.engine.learner import Learner

Values = dict[str, Tensor]  # whole parts of one user: (width,), or (m, width)
Rows = Callable[[Values, Tensor], Values]  # parts and items (b,) to what is scored: item parts as rows (b, width)


class Client:
    """One user's local round.

    Args:
        learner: the method. values: the user's parts, whole. received: what it downloaded of the merged part, or None.
        round_: from 1.
    """

    def __init__(self, learner: Learner, values: Values, received: Tensor | None, round_: int) -> None:
        self.learner, self.received, self.round = learner, received, round_
        self.parts = learner.parts()
        self.values = {name: value.clone().requires_grad_() for name, value in values.items()}
        merged = learner.merged
        self.pooled = None if received is None else (values[merged].mean(0), received.mean(0))

    def plain(self, values: Values, items: Tensor) -> Values:
        """Rows of the items as they lie."""
        return {name: v[items] if self.parts[name].axis == "item" else v for name, v in values.items()}

    def through_merge(self, values: Values, items: Tensor) -> Values:
        """The same, with the rows of the merged part merged with the downloaded ones (Eq. 9–10)."""
        found, merge, name = self.plain(values, items), self.learner.merge, self.learner.merged
        assert self.received is not None and self.pooled is not None
        own, glob = found[name], self.received[items]
        if merge.mode == "scalar":
            rho = self._rho(values["adapter"], *(row.unsqueeze(0) for row in self.pooled))
        elif merge.mode == "elastic":
            rho = self._rho(values["adapter"], own, glob)
        else:
            rho = torch.tensor([merge.rho])
        return {**found, name: own + rho.unsqueeze(1) * (glob - own)}

    def _rho(self, theta: Tensor, own: Tensor, glob: Tensor) -> Tensor:
        x = torch.cat([own, glob - own], 1)
        *hidden, (weight, bias) = self.learner.merge.adapter.layers(theta.unsqueeze(0))
        for w, b in hidden:
            x = torch.relu(x @ w[0].T + b[0])
        return torch.sigmoid(x @ weight[0].T + bias[0]).squeeze(1)

    def minimised(self, seen: Values, sign: Tensor) -> tuple[Tensor, Tensor]:
        """What a batch minimises, and its mean cross-entropy."""
        learner, valid = self.learner, torch.ones(1, len(sign))
        one = {name: value.unsqueeze(0) for name, value in seen.items()}  # the leading client axis
        logits = learner.score(one)
        loss, more = learner.loss(logits, sign.unsqueeze(0), valid), learner.penalty(one, valid, self.round)
        entropy = binary_cross_entropy_with_logits(logits[0], (sign < 0).to(logits.dtype))
        return (loss if more is None else loss + more).sum(), entropy

    def step(self, update: Update, optimiser: torch.optim.Optimizer, rows: Rows, items: Tensor, sign: Tensor) -> float:
        """One update; returns the mean cross-entropy before it."""
        optimiser.zero_grad()
        loss, entropy = self.minimised(rows(self.values, items), sign)
        loss.backward()
        if update.by == "frequency-sgd":
            often = torch.bincount(items, minlength=int(items.max()) + 1)
            for name in update.rates:
                gradient = self.values[name].grad
                if self.parts[name].axis == "item" and gradient is not None:
                    gradient[: len(often)] *= (len(items) / often.clamp(min=1)).unsqueeze(1)
        optimiser.step()
        return float(entropy.detach())

    def optimiser(self, update: Update) -> torch.optim.Optimizer:
        """A fresh one."""
        groups = [{"params": [self.values[name]], "lr": rate} for name, rate in update.rates.items()]
        return torch.optim.Adam(groups) if update.by == "adam" else torch.optim.SGD(groups)


def train_alone(cohort: Cohort, who: Tensor, downloads: Downloads, round_: int, merging: bool, keep: bool) -> Trained:
    """One user's round; arguments and result as in `Cohort`, for a block of one.

    Args:
        who: (1,) its position. merging: whether it trains through a merge. keep: return its rows before, too.
    """
    learner, merge = cohort.learner, cohort.learner.merge
    draws = Draws(learner.seed, cohort.data.secret)
    samples = draw_samples(cohort.data, who, learner.local.negatives, draws, round_)
    values = {name: value[0] for name, value in cohort.seen(who, downloads, merge=False)[0].items()}
    received = downloads[learner.merged].of(who)[0] if merging else None
    block = cohort.block_of(who, downloads, samples, round_, merging=False)
    before = {name: block.parts[name].clone() for name in block.parts} if keep else {}
    client = Client(learner, values, received, round_)
    through = merging and merge.schedule == "released"
    adapter = [Update({"adapter": merge.lr})] if merging and merge.learned else []
    if merging and not through:  # Eq. 11, Eq. 10
        _epochs(
            client,
            adapter,
            client.through_merge,
            samples,
            block.users,
            draws,
            round_,
            merge.epochs,
            learner.local.epochs,
        )
        everything = torch.arange(cohort.data.items)
        with torch.no_grad():
            merged = client.through_merge(client.values, everything)[learner.merged]
            client.values[learner.merged].copy_(merged)
            cohort.state[learner.merged][who] = merged.unsqueeze(0)
    rows = client.through_merge if through else client.plain
    updates = [*(adapter if through else []), *learner.updates(round_)]
    loss = _epochs(client, updates, rows, samples, block.users, draws, round_, learner.local.epochs, 0)
    touched = samples.touched[0]
    for name, value in client.values.items():
        trained = value.detach()
        block.parts[name] = (trained[touched] if block.axes[name] == "item" else trained).unsqueeze(0)
    cohort.write_back(who, block)
    return Trained(torch.tensor([loss], dtype=torch.float64), who, block, before)


def _epochs(
    client: Client,
    updates: list[Update],
    rows: Rows,
    samples: RoundSamples,
    users: Tensor,
    draws: Draws,
    round_: int,
    epochs: int,
    first_epoch: int,
) -> float:
    """Go through the samples; returns the mean cross-entropy a sample, before each batch's first update."""
    local, count = client.learner.local, int(samples.size[0])
    optimisers = [(update, client.optimiser(update)) for update in updates]
    total = mean = 0.0
    for epoch in range(epochs):
        beat()
        order = shuffled_rows(samples, users, draws, round_, first_epoch + epoch)[0, :count]
        for batch in order.split(local.batch_size):
            items, sign = samples.touched[0][batch], samples.sign[0][batch]
            losses = [client.step(update, optimiser, rows, items, sign) for update, optimiser in optimisers]
            total += losses[0] * len(batch)
            beat()
        before, mean = mean, total / (count * (epoch + 1))
        if local.early_stop and 0 < epoch < epochs - 1 and abs(mean - before) / abs(before + 1e-5) < local.early_stop:
            break
    return mean
