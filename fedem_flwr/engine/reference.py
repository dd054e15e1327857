"""The reference back end: one client at a time, whole tables, automatic differentiation and torch's own optimisers.

Slow, and obviously right. Only the keyed draws are shared with the fast back end, which is tested against it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from fedem_flwr.engine.block import Trained
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.merge import ADAPTER
from fedem_flwr.engine.optimizer import Optimiser, Update
from fedem_flwr.engine.samples import RoundSamples, draw_samples, shuffled_rows
from fedem_flwr.pulse import beat

if TYPE_CHECKING:
    from fedem_flwr.engine.cohort import Cohort
    from fedem_flwr.engine.downloads import Downloads
    from fedem_flwr.engine.learner import Learner

Values = dict[str, Tensor]  # whole parts of one user: (width,), or (m, width)
Optimisers = dict[str, torch.optim.Optimizer]  # one a part
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
        self.left: dict[tuple[str, str], Tensor] = {}
        self.pool()

    def pool(self) -> None:
        """What `scalar` merging looks at, from here on: the mean rows as they are now."""
        name, received = self.learner.merged, self.received
        self.pooled = None if received is None else (self.values[name].detach().mean(0), received.mean(0))

    def plain(self, values: Values, items: Tensor) -> Values:
        """Rows of the items as they lie."""
        return {name: v[items] if self.parts[name].axis == "item" else v for name, v in values.items()}

    def through_merge(self, values: Values, items: Tensor) -> Values:
        """The same, with the rows of the merged part merged with the downloaded ones (Eq. 9–10)."""
        found, merge, name = self.plain(values, items), self.learner.merge, self.learner.merged
        assert self.received is not None and self.pooled is not None
        own, glob = found[name], self.received[items]
        if merge.mode == "scalar":
            rho = self._rho(values[ADAPTER], *(row.unsqueeze(0) for row in self.pooled))
        elif merge.mode == "elastic":
            rho = self._rho(values[ADAPTER], own, glob)
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

    def step(self, update: Update, optimisers: Optimisers, rows: Rows, items: Tensor, sign: Tensor) -> float:
        """One update; returns the mean cross-entropy before it."""

        def gradients(names: Iterable[str]) -> tuple[Values, Tensor]:
            loss, entropy = self.minimised(rows(self.values, items), sign)
            wanted = [self.values[name] for name in names]
            found = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
            return dict(zip(names, found, strict=True)), entropy.detach()

        found, entropy = gradients(update.rates)
        if ADAPTER not in found and any(map(self.learner.sharpness, found)):
            found = self.sharp(found, lambda names: gradients(names)[0])
        short = [name for name in found if self.learner.clipped(name) < math.inf]
        if short:
            most, length = self.learner.clipped(short[0]), torch.cat([found[n].flatten() for n in short]).norm()
            found = {**found, **{n: found[n] * min(1.0, most / max(float(length), most)) for n in short}}
        for name, gradient in found.items():
            self.values[name].grad = gradient
            if update.kind(name) == "frequency-sgd" and self.parts[name].axis == "item":
                often = torch.bincount(items, minlength=len(gradient)).clamp(min=1)
                gradient.mul_((len(items) / often).unsqueeze(1))
            if name in update.pulls:
                pull = update.pulls[name]
                anchor = self.values[pull.to].detach() if pull.to else 0.0
                gradient.add_(pull.strength * (self.values[name].detach() - anchor))
                (group,) = optimisers[name].param_groups
                left = self.left.get((name, pull.to), torch.ones(1))
                self.left[name, pull.to] = left * (1 - group["lr"] * pull.strength)
            optimisers[name].step()
            optimisers[name].param_groups[0]["lr"] *= update.fading
            if update.kind(name) == "kept-adam":
                self._remember(name, optimisers[name])
        return float(entropy)

    def sharp(self, plain: Values, gradients: Callable[[Sequence[str]], Values]) -> Values:
        """Sharpness-aware ones: each group of parts moved by ρ along its own gradient, the others as they are."""
        found: Values = {}
        for group in self.learner.perturbed(list(plain)):
            norm = torch.cat([plain[name].flatten() for name in group]).norm()
            there = {name: self.values[name] for name in group}
            for name, value in there.items():
                moved = value.detach() + self.learner.sharpness(name) * plain[name] / norm.clamp(min=1e-12)
                self.values[name] = moved.requires_grad_()
            found |= gradients(group)
            self.values.update(there)
        return found

    def optimisers(self, update: Update) -> Optimisers:
        """Torch's own; only what is kept goes on from the round before."""
        found = {name: _optimiser(update.kind(name), self.values[name], lr) for name, lr in update.rates.items()}
        for name, one in found.items():
            if update.kind(name) == "kept-adam":
                *both, steps = self.values[f"{name}-moments"].detach().split([*[len(self.values[name])] * 2, 1])
                kept = dict(zip(("exp_avg", "exp_avg_sq"), (x.clone() for x in both), strict=True))
                one.state[self.values[name]] = {"step": steps[0].clone(), **kept}
        return found

    def _remember(self, name: str, optimiser: torch.optim.Optimizer) -> None:
        state = optimiser.state[self.values[name]]
        both = torch.cat([state["exp_avg"], state["exp_avg_sq"], state["step"].reshape(1)])
        self.values[f"{name}-moments"].data.copy_(both)


def _optimiser(kind: Optimiser, value: Tensor, rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam([value], lr=rate) if "adam" in kind else torch.optim.SGD([value], lr=rate)


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
    client = Client(learner, values, received, round_)
    adapter = [Update({ADAPTER: merge.lr})] if merging and merge.learned else []
    epochs = learner.local.epochs
    if merging and merge.fits_first:  # Eq. 11, Eq. 10
        own, order = cohort.merging.gate_samples(who, round_) or (samples, draws)
        if int(own.size[0]):
            _epochs(client, adapter, client.through_merge, own, block.users, order, round_, merge.epochs, epochs)
        everything = torch.arange(cohort.data.items)
        with torch.no_grad():
            merged = client.through_merge(client.values, everything)[learner.merged]
            client.values[learner.merged].copy_(merged)
            cohort.state[learner.merged][who] = merged.unsqueeze(0)
        client.pool()
        block = cohort.block_of(who, downloads, samples, round_, merging=False)
    before = {name: block.parts[name].clone() for name in block.parts} if keep else {}
    rows = client.through_merge if merging and merge.in_batches else client.plain
    updates = [*(adapter if merge.fits_in_batches else []), *learner.updates(round_)]
    loss = _epochs(client, updates, rows, samples, block.users, draws, round_, epochs, 0)
    touched = samples.touched[0]
    for name, value in client.values.items():
        trained = value.detach()
        block.parts[name] = (trained[touched] if block.axes[name] == "item" else trained).unsqueeze(0)
        if cohort.parts[name].own:  # a pull moves untouched rows, too
            cohort.state[name][who] = trained.unsqueeze(0)
    block.left = {names: left for names, left in client.left.items() if block.axes[names[0]] == "item"}
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
    """Go through the samples; returns the mean cross-entropy a sample, before a batch's first update of the method."""
    local, count = client.learner.local, int(samples.size[0])
    optimisers = [(update, client.optimisers(update)) for update in updates]
    total = mean = 0.0
    for epoch in range(epochs):
        beat()
        order = shuffled_rows(samples, users, draws, round_, first_epoch + epoch)[0, :count]
        for batch in order.split(local.batch_size or count):
            items, sign = samples.touched[0][batch], samples.sign[0][batch]
            losses = [client.step(update, each, rows, items, sign) for update, each in optimisers]
            own = [loss for loss, update in zip(losses, updates, strict=True) if ADAPTER not in update.rates]
            total += (own or losses)[0] * len(batch)
            beat()
        before, mean = mean, total / (count * (epoch + 1))
        if local.early_stop and 0 < epoch < epochs - 1 and abs(mean - before) / abs(before + 1e-5) < local.early_stop:
            break
    return mean
