"""Which round's state is served where clients keep nothing between rounds."""

from __future__ import annotations

import numpy as np

from fedem_flwr.report.run_directory import number_at
from fedem_flwr.report.selection import compared, evaluated_users
from fedem_flwr.runtime.checkpoint import Best
from fedem_flwr.runtime.lines import Line
from fedem_flwr.runtime.resumable import Resumable


class BestRound:
    """The best round's state so far, of stateless strategies; there is none of others.

    Best by validation NDCG@10 among the rounds that were evaluated on the most users; on the sample, where rounds are
    evaluated on one: then `selection.best_line` has the same, once the best one was evaluated on everybody.
    A round's state waits here until the round's evaluation is known, which may be a round later.
    """

    def __init__(self, strategy: Resumable, best: Best | None) -> None:
        self._strategy = strategy
        self._waiting: dict[str, np.ndarray] = {}
        self.best = best

    def hold(self) -> None:
        """Note the strategy's state of a round that will be evaluated."""
        if self._strategy.stateless:
            self._waiting = self._strategy.state()

    def evaluated(self, line: Line) -> None:
        """Take the state that waits for this line if it is the best."""
        waiting, self._waiting = self._waiting, {}
        figures = compared(line)
        score = number_at(figures, "validation", "ndcg@10")
        if not self._strategy.stateless or score is None:
            return
        users = int(evaluated_users(figures))
        if self.best is None or (users, score) > (self.best.users, self.best.score):
            self.best = Best(line["round"], users, score, waiting)
