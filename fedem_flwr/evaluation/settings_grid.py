"""Settings chosen on validation: each client evaluates a grid locally, and only metric sums leave it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.engine.parallel import in_parallel
from fedem_flwr.evaluation.cohort import Scorer, Sums
from fedem_flwr.evaluation.ranking import MetricSums, Targets
from fedem_flwr.evaluation.scorers import HistoryScorer, added_up
from fedem_flwr.evaluation.some import OfSome, asked_only
from fedem_flwr.evaluation.stages import around, coarse
from fedem_flwr.protocol.split import IntArray
from fedem_flwr.protocol.splits import Split

METRIC = "ndcg@10"
Settings = Mapping[str, float]


def grid_sums(scorers: Mapping[int, Scorer], split: Split, prefix: str, who: IntArray | None = None) -> Sums:
    """Sums of the validation NDCG@10 under each of several scorers of the same users.

    In the whole catalogue; among 99 negatives under `paper`, whose figures are of these.

    Args:
        scorers: by the number of their settings in the grid.
        prefix: of the sums' names: `PREFIX/000`, …, and `PREFIX/users`.
        who: positions of the users that are scored; None: all.
    """
    totals: dict[int, float] = {}
    users = 0
    for done, (row, whole) in enumerate(scorers.items(), 1):
        scorer = asked_only(whole, split) if who is None else OfSome(whole, who)

        def evaluate(part: Tensor, scorer: Scorer = scorer) -> float:
            scores = scorer.scores(part, "validation")[0]
            return _gains(split, scorer.users[np.asarray(part.cpu())], [scores], scorer.device)[0]

        blocks, what = list(scorer.blocks()), f"trying settings, {done} of {len(scorers)}"
        totals[row] = sum(in_parallel(evaluate, blocks, scorer.device, what), 0.0)
        users = sum(map(len, blocks))
    return _named(prefix, totals, users)


def mixture_sums(
    whole: HistoryScorer, weights: Mapping[int, Sequence[float]], split: Split, prefix: str, who: IntArray | None = None
) -> Sums:
    """The same for several weights (one a component) of one scorer, whose components are computed once."""
    scorer = asked_only(whole, split) if who is None else OfSome(whole, who)

    def evaluate(part: Tensor) -> list[float]:
        users, found = whole.users[np.asarray(part.cpu())], whole.standardised(part, "validation")
        return _gains(split, users, (added_up(row, found) for row in weights.values()), whole.device)

    totals, blocks = np.zeros(len(weights)), list(scorer.blocks())
    for found in in_parallel(evaluate, blocks, scorer.device, "trying settings"):
        totals += found
    return _named(prefix, dict(zip(weights, totals.tolist(), strict=True)), sum(map(len, blocks)))


def _gains(split: Split, users: IntArray, scored: Iterable[Tensor], device: torch.device) -> list[float]:
    """Sums over users (k,) of the NDCG@10 of the validation item, for each of several (k, m) scores on a device."""
    way, targets = (
        "sampled99" if split.protocol == "paper" else "full",
        Targets(split, users, device, which="validation"),
    )
    ranks = [targets.ranks(scores, [way])[way] for scores in scored]
    return [sums.sums[METRIC] for sums in MetricSums.of_each(torch.stack(ranks))] if ranks else []


def _named(prefix: str, totals: Mapping[int, float], users: int) -> Sums:
    return {**{f"{prefix}/{row:03d}": total for row, total in totals.items()}, f"{prefix}/users": float(users)}


@dataclass
class SettingsGrid:
    """The server's side: a grid of settings, and what came of it.

    Where rounds are evaluated on a sample of many users, a grid is searched from coarse to fine: first every other
    value, then, with the next round's model, the neighbours of the best. Else all rows are tried at once.

    Attributes:
        name: prefix of the clients' sums.
        rows: settings in the order of the clients' sums.
        chosen: the settings in force.
        means: (rows,) of the validation NDCG@10, once known; NaN for what was not tried. users: behind them. round: of
            the model that was measured last; or 0.
        staged: whether it is searched from coarse to fine.
        best: number of the chosen row; None before one was.
        refining: whether the neighbours of what was chosen are still to be tried.
    """

    name: str
    rows: Sequence[Settings]
    chosen: Settings
    means: list[float] = field(default_factory=list)
    users: float = 0.0
    round: int = 0
    staged: bool = False
    best: int | None = None
    refining: bool = False

    def wanted(self) -> list[int]:
        """Numbers of the rows that are tried next."""
        if not self.staged:
            return list(range(len(self.rows)))
        rows = [tuple(row.values()) for row in self.rows]
        return coarse(rows) if self.best is None else around(rows, self.best)

    def take(self, sums: Sums, round_: int) -> Sums:
        """Choose by the sums of a round, the first best; returns the sums without those of the grid."""
        users = sums.get(f"{self.name}/users", 0.0)
        tried = [row for row in range(len(self.rows)) if f"{self.name}/{row:03d}" in sums]
        if users and tried:
            found = {row: sums[f"{self.name}/{row:03d}"] / users for row in tried}
            known = self.means or [float("nan")] * len(self.rows)
            self.means = [found.get(row, mean) for row, mean in enumerate(known)]
            self.users, self.round = users, round_
            self.refining = self.staged and self.best is None
            self._choose(max(found, key=lambda row: found[row]))
        return {key: value for key, value in sums.items() if not key.startswith(f"{self.name}/")}

    def _choose(self, row: int) -> None:
        self.best, self.chosen = row, self.rows[row]

    def shown(self) -> dict[str, object] | None:
        """For the report: what was tried; None where nothing was measured."""
        if self.best is None:
            return None
        tried = [(row, mean) for row, mean in zip(self.rows, self.means, strict=True) if not np.isnan(mean)]
        rows = [{**row, METRIC: mean, "users": self.users} for row, mean in tried]
        return {"rows": rows, "chosen": dict(self.chosen), "round": self.round}

    def state(self) -> dict[str, np.ndarray]:
        """What a checkpoint needs: the means; and round, users, the chosen row and whether it is to be refined."""
        best = -1 if self.best is None else self.best
        last = np.array([self.round, self.users, best, self.refining], np.float64)
        return {f"{self.name}-means": np.array(self.means, np.float64), f"{self.name}-last": last}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See `state`; checkpoints of earlier versions tell the best row by its mean alone."""
        round_, users, *later = state[f"{self.name}-last"].tolist()
        self.means, self.users, self.round = state[f"{self.name}-means"].tolist(), users, int(round_)
        best, refining = later or ((int(np.argmax(self.means)) if self.means else -1), False)
        self.refining = bool(refining)
        if best >= 0:
            self._choose(int(best))
