"""How users are scored: with the tables of a trained cohort, or from their history alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.downloads import Downloads
from fedem_flwr.engine.history import History, IntArray
from fedem_flwr.engine.parallel import budget
from fedem_flwr.evaluation.ranking import Part


@dataclass(frozen=True)
class CohortScorer:
    """Scores a cohort's users with what they keep and what they received; see `evaluation.cohort.Scorer`."""

    cohort: Cohort
    downloads: Downloads
    by_part: bool = False

    @property
    def users(self) -> np.ndarray:
        """(k,) codes of the users."""
        return np.asarray(self.cohort.data.users.cpu())

    @property
    def device(self) -> torch.device:
        """Where the cohort's state is."""
        return self.cohort.device

    def counts(self) -> np.ndarray:
        """(k,) training interactions of each user."""
        return np.asarray(self.cohort.data.counts().cpu())

    def blocks(self) -> list[Tensor]:
        """Positions in chunks that fit the merging budget."""
        return self.cohort.chunks(self.cohort.everyone, self.downloads)

    def scores(self, who: Tensor, part: Part) -> tuple[Tensor, Tensor | None]:
        """Logits (k', m), and ρ; the same for both parts."""
        return self.cohort.scores(who, self.downloads)


BLOCK_SCORES = 1 << 19  # 2 MiB, which stay in a core's cache, and blocks enough for all cores
LEAST, MOST_SCORES = 128, 1 << 22  # users of a block, be its scores more, as each block has its price; up to 16 MiB


class Component(Protocol):
    """One part of a score that needs the history alone."""

    def scores(self, history: History, who: IntArray) -> tuple[Tensor, Tensor | None]:
        """(k', m) scores of the users at positions `who` of a history, and merging weights ρ where there are any."""


@dataclass(frozen=True)
class SameForAll:
    """The same scores for everybody.

    Attributes:
        values: (m,), how popular items are, say.
    """

    values: Tensor

    def scores(self, history: History, who: IntArray) -> tuple[Tensor, None]:
        """(k', m)."""
        return self.values.repeat(len(who), 1), None


@dataclass(frozen=True)
class HistoryScorer:
    """Scores users from their histories; nothing was kept of them.

    With several components each is brought to mean 0 and standard deviation 1 over the catalogue, a user at a time, and
    they are added with their weights. A single one is left as it is.

    Attributes:
        history: training items. device: where the components compute.
        components: with their weights.
        newest: (k,) validation items, where they count as history when the test item is scored; else None.
        needs_history: whether who has none is not served: all scores are NaN.
    """

    history: History
    device: torch.device
    components: Sequence[tuple[float, Component]]
    newest: IntArray | None = None
    needs_history: bool = False

    @property
    def users(self) -> np.ndarray:
        """(k,) codes of the users."""
        return self.history.users

    @property
    def by_part(self) -> bool:
        """Whether the validation item is history when the test item is scored."""
        return self.newest is not None

    def counts(self) -> np.ndarray:
        """(k,) training interactions of each user."""
        return self.history.counts()

    def blocks(self) -> list[Tensor]:
        """Positions in chunks of about one size: `BLOCK_SCORES`, or `LEAST` users where they fit `MOST_SCORES`."""
        everyone = torch.arange(len(self.users), device=self.device)
        cached, most = (budget(scores, self.device) // self.history.items for scores in (BLOCK_SCORES, MOST_SCORES))
        size = max(1, cached, min(LEAST, most))
        return list(everyone.chunk(-(-len(everyone) // size))) if len(everyone) else []

    def scores(self, who: Tensor, part: Part) -> tuple[Tensor, Tensor | None]:
        """(k', m), and the first component's ρ."""
        found, rho = self._scores(who, part)
        if self.needs_history:
            none = torch.from_numpy(self.counts()[np.asarray(who.cpu())] == 0).to(found.device)
            found = found.masked_fill(none.unsqueeze(1), torch.nan)
        return found, rho

    def _scores(self, who: Tensor, part: Part) -> tuple[Tensor, Tensor | None]:
        history, position = self._asked(part), np.asarray(who.cpu())
        weighted = [(weight, *component.scores(history, position)) for weight, component in self.components if weight]
        rho = weighted[0][2]
        if len(weighted) == 1:
            return weighted[0][1], rho
        weights, parts = [weight for weight, *_ in weighted], [_standard(found) for _, found, _ in weighted]
        return added_up(weights, parts), rho

    def standardised(self, who: Tensor, part: Part) -> list[Tensor]:
        """Each component's (k', m) scores as they are added up; also of those whose weight is 0."""
        history, position = self._asked(part), np.asarray(who.cpu())
        return [_standard(component.scores(history, position)[0]) for _, component in self.components]

    def _asked(self, part: Part) -> History:
        return self._later if part == "test" else self.history

    @cached_property
    def _later(self) -> History:
        return self.history if self.newest is None else self.history.with_newest(self.newest)


def added_up(weights: Sequence[float], parts: Sequence[Tensor]) -> Tensor:
    """(k', m) standardised scores of several components, each times its weight; those of weight 0 are not looked at."""
    total: Tensor | None = None
    for weight, part in zip(weights, parts, strict=True):
        if weight:
            total = weight * part if total is None else total.add_(part, alpha=weight)
    return torch.zeros_like(parts[0]) if total is None else total


def _standard(scores: Tensor) -> Tensor:
    """Each row brought to mean 0 and standard deviation 1."""
    centred = scores - scores.mean(1, keepdim=True)
    deviation = torch.linalg.vector_norm(centred, dim=1, keepdim=True) / math.sqrt(max(1, scores.shape[1] - 1))
    return centred.div_(deviation.clamp(min=1e-12))
