"""Settings chosen on validation: each client evaluates a grid locally, and only metric sums leave it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from fedem_flwr.engine.parallel import in_parallel
from fedem_flwr.evaluation.cohort import Scorer, Sums
from fedem_flwr.evaluation.ranking import evaluate_scores
from fedem_flwr.evaluation.scorers import HistoryScorer
from fedem_flwr.protocol.splits import Split

METRIC = "ndcg@10"
Settings = Mapping[str, float]


def grid_sums(scorers: Sequence[Scorer], split: Split, prefix: str) -> Sums:
    """Sums of the validation NDCG@10 in the whole catalogue under each of several scorers of the same users.

    Args:
        prefix: of the sums' names: `PREFIX/000`, …, and `PREFIX/users`.
    """
    totals = []
    for scorer in scorers:

        def evaluate(part: Tensor, scorer: Scorer = scorer) -> float:
            return _validation(split, scorer.users[np.asarray(part.cpu())], scorer.scores(part, "validation")[0])

        totals.append(sum(in_parallel(evaluate, list(scorer.blocks()), scorer.device), 0.0))
    return _named(prefix, totals, len(scorers[0].users))


def mixture_sums(scorer: HistoryScorer, weights: Sequence[Sequence[float]], split: Split, prefix: str) -> Sums:
    """The same for several weights (one a component) of one scorer, whose components are computed once."""

    def evaluate(part: Tensor) -> list[float]:
        users, found = scorer.users[np.asarray(part.cpu())], scorer.standardised(part, "validation")
        zero = found[0].new_zeros(())
        mixed = (sum((w * scores for w, scores in zip(row, found, strict=True)), zero) for row in weights)
        return [_validation(split, users, scores) for scores in mixed]

    totals = np.zeros(len(weights))
    for found in in_parallel(evaluate, list(scorer.blocks()), scorer.device):
        totals += found
    return _named(prefix, totals.tolist(), len(scorer.users))


def _validation(split: Split, users: np.ndarray, scores: Tensor) -> float:
    return evaluate_scores(split, users, scores.cpu(), which="validation")["full"].sums[METRIC]


def _named(prefix: str, totals: Sequence[float], users: int) -> Sums:
    return {**{f"{prefix}/{index:03d}": total for index, total in enumerate(totals)}, f"{prefix}/users": float(users)}


@dataclass
class SettingsGrid:
    """The server's side: a grid of settings, and what came of it.

    Attributes:
        name: prefix of the clients' sums.
        rows: settings in the order of the clients' sums.
        chosen: the settings in force.
        means: (rows,) of the validation NDCG@10, once known. users: behind them. round: of the model measured; or 0.
    """

    name: str
    rows: Sequence[Settings]
    chosen: Settings
    means: list[float] = field(default_factory=list)
    users: float = 0.0
    round: int = 0

    def take(self, sums: Sums, round_: int) -> Sums:
        """Choose by the sums of a round, the first best; returns the sums without those of the grid."""
        users = sums.get(f"{self.name}/users", 0.0)
        if users:
            self._choose([sums[f"{self.name}/{index:03d}"] / users for index in range(len(self.rows))], users, round_)
        return {key: value for key, value in sums.items() if not key.startswith(f"{self.name}/")}

    def _choose(self, means: list[float], users: float, round_: int) -> None:
        self.means, self.users, self.round = means, users, round_
        self.chosen = self.rows[int(np.argmax(means))]

    def shown(self) -> dict[str, object] | None:
        """For the report; None where nothing was measured."""
        if not self.means:
            return None
        rows = [{**row, METRIC: mean, "users": self.users} for row, mean in zip(self.rows, self.means, strict=True)]
        return {"rows": rows, "chosen": dict(self.chosen), "round": self.round}

    def state(self) -> dict[str, np.ndarray]:
        """What a checkpoint needs: the means, and round and users."""
        last = np.array([self.round, self.users], np.float64)
        return {f"{self.name}-means": np.array(self.means, np.float64), f"{self.name}-last": last}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See `state`."""
        round_, users = state[f"{self.name}-last"].tolist()
        if users:
            self._choose(state[f"{self.name}-means"].tolist(), users, int(round_))
