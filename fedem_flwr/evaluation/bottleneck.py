"""The aggregation bottleneck, looked at: what Lemmas 1 and 2 of FedEM (AAAI 2026) say, of the users of a cohort.

For a user's own loss L (Eq. 2) on samples that stay the same, its own table Q^l as training left it, the table G that
it has just received, the merged table Q^m, and its local optimum Q*:

- Lemma 1 says that ⟨∇L(G), G − Q*⟩ ≤ 0 may happen; Lemma 2 that merging makes up for it: the same at Q^m;
- a merge keeps its direction for ρ < A / (A + C), where A = ⟨∇L(Q^l), Q^l − Q*⟩ and C is bounded from below by
  ‖∇L(Q^l)‖ (‖Q^l − Q*‖ + ‖G − Q^l‖).

Q* is where local training ends that goes on by itself from the initial values, on all parts of the model together. The
other parts are the user's own of that moment. Were they those of Q*, a loss that is convex in Q could not have a
product below 0: ⟨∇L(Q), Q − Q*⟩ ≥ L(Q) − L(Q*). What is found is due to the parts having moved together.

Only rows that a user's samples touch count: ∇L is 0 in all others, and norms over the touched rows make C smallest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedem_flwr.engine.block import Batch, Block
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.downloads import Downloads
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.epochs import train_epochs
from fedem_flwr.engine.learner import Learner
from fedem_flwr.engine.merge import ADAPTER
from fedem_flwr.engine.samples import RoundSamples, TrainingItems, draw_samples
from fedem_flwr.pulse import tell

AT_ONCE = 32  # users whose whole tables are held
CONVERGED = 0.01  # share of the gradient's norm at the start that is left at Q*
_AT_A_TIME, _MOST = 10, 50  # epochs between looks, and looks
_PURPOSE = "bottleneck/"
SUMS = ("users", "global", "merged", "own", "rho", "bound", "within")
"""Of users who received a table: how many; whose product is ≤ 0 at G, at Q^m, at Q^l; ρ of their touched rows, a mean
each; A / (A + C), at least 0; and whose ρ is below it."""


@dataclass(frozen=True)
class _Optimum:
    """Of some users: their samples, the touched rows (k, t, d) of Q*, and the other parts that were trained with it."""

    who: Tensor
    samples: RoundSamples
    rows: Tensor
    others: Mapping[str, Tensor]


class Bottleneck:
    """Looks at some users of a cohort, round by round; Q* is found once.

    Args:
        data, learner: of the cohort, whose `merged` part is looked at.
        who: (k',) their positions.

    Attributes:
        converged: of how many users training came to rest within 500 epochs.
    """

    def __init__(self, data: TrainingItems, learner: Learner, who: Tensor) -> None:
        self.data, self.learner, self.name = data, learner, learner.merged
        self.converged, self._optima, chunks = 0, list[_Optimum](), who.split(AT_ONCE)
        for done, chunk in enumerate(chunks):
            self._optima.append(self._optimum(chunk))
            tell("local optima, users", min(len(who), (done + 1) * AT_ONCE), len(who))

    def look(self, cohort: Cohort, downloads: Downloads) -> dict[str, float]:
        """Sums over those of the users who have just received a table; see `SUMS`."""
        found = dict.fromkeys(SUMS, 0.0)
        if self.name not in downloads:
            return found
        for each in self._optima:
            got = downloads[self.name].received[each.who]
            if bool(got.any()):
                for name, values in zip(SUMS, self._of(_some(each, got), cohort, downloads), strict=True):
                    found[name] += float(values.double().sum())
        return found

    def _of(self, at: _Optimum, cohort: Cohort, downloads: Downloads) -> Iterator[Tensor]:
        """(k,) what is summed."""
        who, touched = at.who, at.samples.touched
        block = cohort.block_of(who, downloads, at.samples, 1, merging=False)
        seen, rho = cohort.seen(who, downloads)
        own, received = block.parts[self.name], downloads[self.name].rows(who, touched)
        real, rows = block.real, torch.arange(len(who), device=who.device).unsqueeze(1)
        gradient = partial_at(self.learner, block, self.name)
        slopes = {"global": gradient(received), "merged": gradient(seen[self.name][rows, touched])}
        at_own = gradient(own)

        def product(slope: Tensor, table: Tensor) -> Tensor:
            return (slope.double() * (table - at.rows).double()).sum((1, 2))

        towards = product(at_own, own)
        far = _norm(own - at.rows, real) + _norm(received - own, real)
        bound = (towards / (towards + _norm(at_own, real) * far).clamp(min=1e-300)).clamp(min=0)
        weights = torch.ones_like(touched) if rho is None else rho.expand(-1, cohort.data.items)[rows, touched]
        mean = (weights * real).double().sum(1) / real.sum(1).clamp(min=1)
        yield torch.ones(len(who))
        yield product(slopes["global"], received) <= 0
        yield product(slopes["merged"], seen[self.name][rows, touched]) <= 0
        yield towards <= 0
        yield mean
        yield bound
        yield mean < bound

    def _optimum(self, who: Tensor) -> _Optimum:
        """Local training by itself, until little of the gradient is left."""
        learner, draws = self.learner, Draws(self.learner.seed, self.data.secret, _PURPOSE)
        samples = draw_samples(self.data, who, learner.local.negatives, draws, 0)
        parts = {name: part for name, part in learner.parts().items() if name != ADAPTER}
        start = {name: part.initial(name, self.data.items, learner.seed).to(who.device) for name, part in parts.items()}
        axes = {name: part.axis for name, part in parts.items()}
        values = {
            name: x[samples.touched] if axes[name] == "item" else x.expand(len(who), -1).clone()
            for name, x in start.items()
        }
        block = Block(self.data.users[who], samples, values, axes)
        step, settings = learner.step(block, 1), replace(learner.local, early_stop=0.0)

        def left() -> Tensor:
            gradient = partial_at(learner, block, self.name)
            return _norm(gradient(block.parts[self.name]), block.real)

        first, rest = left(), torch.zeros(len(who), dtype=torch.bool)
        for turn in range(_MOST):
            train_epochs(step, block, settings, epochs=_AT_A_TIME, draws=draws, round_=0, first_epoch=turn * _AT_A_TIME)
            rest = left() <= CONVERGED * first
            if bool(rest.all()):
                break
        self.converged += int(rest.sum())
        others = {name: x for name, x in block.parts.items() if axes[name] != "item"}
        return _Optimum(who, samples, block.parts[self.name], others)


def partial_at(learner: Learner, block: Block, name: str) -> Callable[[Tensor], Tensor]:
    """The gradient (k, t, d) of each user's mean loss over all of a block's samples, by other rows of one part."""
    samples = block.samples
    valid = (torch.arange(samples.row.shape[1], device=block.users.device) < samples.size.unsqueeze(1)).float()

    def gradient(rows: Tensor) -> Tensor:
        other = replace(block, parts={**block.parts, name: rows})
        found: Tensor = learner.gradients(Batch(other, samples.row, valid), [name])[1][name]
        return found * block.real.unsqueeze(-1)

    return gradient


def _norm(rows: Tensor, real: Tensor) -> Tensor:
    """(k,) over real rows."""
    return (rows * real.unsqueeze(-1)).double().square().sum((1, 2)).sqrt()


def _some(at: _Optimum, index: Tensor) -> _Optimum:
    if bool(index.all()):
        return at
    s = at.samples
    chosen = (x[index] for x in (s.touched, s.touched_count, s.sign, s.row, s.size, s.weight))
    others = {name: values[index] for name, values in at.others.items()}
    return _Optimum(at.who[index], RoundSamples(*chosen), at.rows[index], others)
