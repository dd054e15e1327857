"""auto: `fedials` whose settings are found in the run, with order where the data have times; or popularity.

Private: the history. First rounds: tables with several settings side by side (`tasks.search_tables`), compared by sums
of the clients' validation NDCG@10. Then the best one's table, and, where there are times, map and encoder of
`fedials-order`. What is served, a mixture of these or popularity, is chosen by such sums, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from fedem_flwr.config import Config
from fedem_flwr.contract import Asked, Device, Phase, State, Tuning, Wanted
from fedem_flwr.engine.ials import FoldIn
from fedem_flwr.evaluation.cohort import Sums
from fedem_flwr.evaluation.scorers import Component, SameForAll
from fedem_flwr.evaluation.settings_grid import mixture_sums
from fedem_flwr.methods.fedials_order import FedialsOrder
from fedem_flwr.methods.tasks.fitted_rounds import fitted
from fedem_flwr.methods.tasks.search_tables import (
    TRIED,
    SideBySide,
    comparison,
    folds_of,
    searched_users,
    stages_of,
    told,
)
from fedem_flwr.methods.tasks.serving_mixtures import ALONE, FOLD_IN, POPULAR, mixture_weights, mixtures
from fedem_flwr.protocol.split import SplitFacts
from fedem_flwr.protocol.splits import Split


class Auto(FedialsOrder):
    """`search.rounds` of search and table, then `FedialsOrder`'s rounds.

    Attributes:
        SEARCHES: that it has a use for `[search]`.
    """

    SEARCHES, NEEDS_TIMES = True, False
    TUNES = ("ials.kappa", "order.lr", "order.dropout")  # the search finds ials.weight and ials.ridge

    def __init__(self, config: Config, items: int) -> None:
        order = min(config.order.rounds, max(0, config.run.rounds - config.search.rounds))
        room = order > bool(config.order.map)
        super().__init__(config.changed("order", rounds=order if room else 0), items)
        search, fold_in = config.search, config.fold_in
        self.half_lives = search.half_lives if fold_in.tune else [fold_in.half_life]
        self.search = stages_of(len(search.grid()), self.table_rounds, search.learn, len(search.near(1.0, 1.0)))
        searches = any(stage.searches for stage in self.search)
        self.candidates = search.grid() if searches else [(config.ials.weight, config.ials.ridge)]

    @classmethod
    def fitted(cls, config: Config, facts: SplitFacts, given: frozenset[str]) -> Config:
        """Rounds of the encoder by the number of users; none without times, and a narrower map of many items."""
        return super().fitted(fitted(config, facts, given), facts, given)

    # The search.

    @property
    def search_rounds(self) -> int:
        """Rounds with several tables."""
        return sum(stage.rounds for stage in self.search if stage.searches)

    def phases(self) -> Sequence[Phase]:
        """The stages of the search, the table, and those of order."""
        tables = [Phase(stage.name, stage.rounds, SideBySide(self, stage)) for stage in self.search]
        return [*tables, *super().phases()[1:]]

    def participants(self, state: State, samples: np.ndarray, round_: int) -> np.ndarray | None:
        """In the search the same users in each round: all, or a keyed share of many."""
        return searched_users(samples, self.config.run) if round_ <= self.search_rounds else None

    def start(self) -> State:
        """All tables start from the same values; `tried` are rows of `search_tables.TRIED`."""
        found, wide = super().start(), len(self.candidates)
        return {
            **found,
            "table": found["table"].repeat(1, wide),
            "gram": found["gram"].repeat(wide, 1, 1),
            "candidates": torch.tensor(self.candidates, dtype=torch.float64),
            "popularity": found["counts"].log1p(),
            "tried": torch.zeros((0, len(TRIED)), dtype=torch.float64),
        }

    def finished(self, state: State, round_: int) -> State:
        """When the table is finished, the encoder's rows start from it."""
        done = self.ordered and round_ == self.table_rounds
        return {**state, **self.encoder.from_table(state["table"])} if done else state

    def folds(self, asked: Asked) -> list[FoldIn]:
        """What solves users against each of the message's tables, best first."""
        return asked.once("fold-ins", lambda: folds_of(asked, self.config.model.dim))

    def fold_in(self, asked: Asked) -> FoldIn:
        """The best table's."""
        return self.folds(asked)[0]

    # What is served.

    def sends(self) -> Sequence[str]:
        """Also the settings, and the logarithm of how many users have each item."""
        return [*super().sends(), "candidates", "popularity"]

    def scored_with(self, done: int) -> Sequence[str]:
        """Also these."""
        return [*super().scored_with(done), "candidates", "popularity"]

    def tunings(self) -> Sequence[Tuning]:
        """The comparisons of tables, how users are folded in with the one that is left, and the mixture."""
        fold_in, mixing = super().tunings()
        tables, last = [comparison(self, stage) for stage in self.search if stage.searches], self.config.run.rounds - 1
        middle = (self.search_rounds + self.table_rounds) // 2
        tunes = self.config.fold_in.tune and len(fold_in.rows) > 1

        def due(round_: int) -> bool:
            return mixing.due(round_) or (self.order.tune and round_ == last)

        plain = dict.fromkeys(mixing.first, 0.0)
        return [
            *tables,
            replace(fold_in, due=lambda round_: tunes and round_ == middle),
            replace(
                mixing,
                rows=mixtures(self.order.grid() if self.ordered else [plain]),
                first={**mixing.first, **ALONE},
                due=due,
                idle=lambda done: {**plain, **ALONE} if self.ordered and done < self.first_step else None,
            ),
        ]

    def _mixtures(self, device: Device, asked: Asked, split: Split, wanted: Wanted) -> Sums:
        scorer, rows = self.scorer(device, asked), self.tunings()[-1].rows
        weights = mixture_weights(rows, wanted.rows, len(scorer.components))
        return mixture_sums(scorer, weights, split, "order", wanted.who)

    def components(self, asked: Asked) -> list[tuple[float, Component]]:
        """Also popularity, the last one."""
        (_, fold_in), *of_order = super().components(asked)
        popularity = SameForAll(asked.tensor("popularity"))
        return [(asked.number(FOLD_IN), fold_in), *of_order, (asked.number(POPULAR), popularity)]

    def diagnostics(self, state: State) -> dict[str, object]:
        """What the search tried."""
        found = told(state["tried"], state["candidates"])
        return {"search": {**found, "rounds": self.search_rounds}} if found else {}
