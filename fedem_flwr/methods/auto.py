"""auto: `fedials` whose settings are found in the run, with order where the data have times; or popularity.

Private: the history. First rounds: tables with several settings side by side (`tasks.side_by_side`), compared by sums
of the clients' validation NDCG@10. Then the best one's table, and, where there are times, map and encoder of
`fedials-order`. What is served is a mixture of these and of popularity, or one of them alone, chosen by such sums too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from fedem_flwr.config import Config
from fedem_flwr.contract import Asked, Device, Phase, State, Tuning, Wanted
from fedem_flwr.contract.tuning import Row
from fedem_flwr.engine.ials import FoldIn, FoldInScores, Recency
from fedem_flwr.evaluation.cohort import Sums
from fedem_flwr.evaluation.scorers import Component, HistoryScorer, SameForAll
from fedem_flwr.evaluation.settings_grid import grid_sums, mixture_sums
from fedem_flwr.methods.fedials_order import FedialsOrder
from fedem_flwr.methods.tasks.order_map import MOST_ITEMS
from fedem_flwr.methods.tasks.side_by_side import TRIED, UNKNOWN, SideBySide, Stage, objectives, stages_of
from fedem_flwr.protocol.split import SplitFacts
from fedem_flwr.protocol.splits import Split
from fedem_flwr.randomness import keyed_permutation

_PASSES, _TOGETHER, _ROUNDS = 15, 64, (150, 1500)  # of the encoder: over the users; users a round; fewest and most
_LOOKS = 5  # at the encoder
_SEARCHED = 20_000  # users that a search takes at the most
_POPULARITY = (0.25, 0.5, 1.0)  # weights beside the fold-in's
_FOLD_IN, _POPULAR = "fold_in_weight", "popularity_weight"
_ALONE: Row = {_FOLD_IN: 1.0, _POPULAR: 0.0}


class Auto(FedialsOrder):
    """`search.rounds` of search and table, then `FedialsOrder`'s rounds."""

    NEEDS_TIMES = False
    TUNES = ("ials.kappa",)

    def __init__(self, config: Config, items: int) -> None:
        order = min(config.order.rounds, max(0, config.run.rounds - config.search.rounds))
        room = order > bool(config.order.map)
        super().__init__(config.changed("order", rounds=order if room else 0), items)
        search, fold_in = config.search, config.fold_in
        self.half_lives = search.half_lives if fold_in.tune else [fold_in.half_life]
        self.search = stages_of(len(search.grid()), self.table_rounds, search.learn)
        searches = any(stage.searches for stage in self.search)
        self.candidates = search.grid() if searches else [(config.ials.weight, config.ials.ridge)]

    @classmethod
    def fitted(cls, config: Config, facts: SplitFacts, given: frozenset[str]) -> Config:
        """Rounds of the encoder by the number of users; none without times, and no map of too many items."""
        ordered, (fewest, most) = facts.has_times and config.search.order, _ROUNDS
        passes = _PASSES * facts.users / _TOGETHER
        order = {
            "rounds": round(min(most, max(fewest, passes))) if ordered else 0,
            "participants": min(1.0, _TOGETHER / max(1, facts.users)),
            "map": config.order.map if facts.items <= MOST_ITEMS else 0,
        }
        kept = {name: value for name, value in order.items() if f"order.{name}" not in given}
        config = config.changed("order", **(kept if ordered else order))
        if not facts.has_times:
            config = config.changed("search", half_lives=[0.0])
        if "run.rounds" not in given:
            config = config.changed("run", rounds=config.search.rounds + config.order.rounds)
        if "evaluation.every" not in given:
            config = config.changed("evaluation", every=max(config.search.rounds, config.run.rounds // _LOOKS))
        return config

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
        if round_ > self.search_rounds:
            return None
        able = np.flatnonzero(samples)
        most = min(_SEARCHED, max(1, int(self.config.run.participants * len(able) + 1e-9)))
        chosen = keyed_permutation(len(able), self.seed, "search/users").numpy()[:most]
        return able if most >= len(able) else np.sort(able[chosen])

    def start(self) -> State:
        """All tables start from the same values; `tried` are rows of `side_by_side.TRIED`."""
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
        dim = self.config.model.dim

        def made() -> list[FoldIn]:
            table, own = asked.tensor("table"), objectives(asked.tensor("candidates"))
            return [FoldIn(part.contiguous(), one) for part, one in zip(table.split(dim, dim=1), own, strict=True)]

        return asked.once("fold-ins", made)

    def fold_in(self, asked: Asked) -> FoldIn:
        """The best table's."""
        return self.folds(asked)[0]

    def _comparison(self, stage: Stage) -> Tuning:
        """Each table under each half-life."""
        rows = [{"table": float(at), "age": h} for at in range(stage.tables) for h in self.half_lives]

        def measure(device: Device, asked: Asked, split: Split, wanted: Wanted) -> Sums:
            def scorer(row: Row) -> HistoryScorer:
                scores = FoldInScores(self.folds(asked)[int(row["table"])], Recency.of(row["age"], 1.0))
                return HistoryScorer(device.history, device.place, [(1.0, scores)], device.newest)

            return grid_sums({row: scorer(rows[row]) for row in wanted.rows}, split, stage.name, wanted.who)

        return Tuning(stage.name, rows, {}, lambda round_: round_ == stage.compared, measure, staged=False)

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
        tables, last = [self._comparison(stage) for stage in self.search if stage.searches], self.config.run.rounds - 1
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
                first={**mixing.first, **_ALONE},
                due=due,
                idle=lambda done: {**plain, **_ALONE} if self.ordered and done < self.first_step else None,
            ),
        ]

    def _mixtures(self, device: Device, asked: Asked, split: Split, wanted: Wanted) -> Sums:
        scorer, rows = self.scorer(device, asked), self.tunings()[-1].rows
        names = [name for name, _ in self._named(asked)]
        weights = {row: [rows[row][name] for name in names] for row in wanted.rows}
        return mixture_sums(scorer, weights, split, "order", wanted.who)

    def _named(self, asked: Asked) -> list[tuple[str, Component]]:
        components = [component for _, component in super().components(asked)]
        names = [_FOLD_IN, "order_weight", "map_weight"][: len(components)]
        popularity = SameForAll(asked.tensor("popularity"))
        return [*zip(names, components, strict=True), (_POPULAR, popularity)]

    def components(self, asked: Asked) -> list[tuple[float, Component]]:
        """Also popularity."""
        return [(asked.number(name), component) for name, component in self._named(asked)]

    def diagnostics(self, state: State) -> dict[str, object]:
        """What the search tried."""
        rows = [dict(zip(TRIED, map(_known, row), strict=True)) for row in state["tried"].tolist()]
        chosen = dict(zip(TRIED[1:], state["candidates"][0].tolist(), strict=False))
        return {"search": {"rows": rows, "rounds": self.search_rounds, "chosen": chosen}} if rows else {}


def mixtures(grid: Sequence[Row]) -> list[Row]:
    """Weights that are tried: the fold-in's 1 with each row of order's, then with popularity; popularity alone."""
    plain = dict.fromkeys(grid[0], 0.0)
    popular = [{_FOLD_IN: 1.0, **plain, _POPULAR: weight} for weight in _POPULARITY]
    return [*({_FOLD_IN: 1.0, **row, _POPULAR: 0.0} for row in grid), *popular, {_FOLD_IN: 0.0, **plain, _POPULAR: 1.0}]


def _known(value: float) -> float | None:
    return None if value == UNKNOWN else value
