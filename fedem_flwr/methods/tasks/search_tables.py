"""The phases of a search: tables with settings of their own, trained by the same messages, of which the best stay.

A table of C candidates is (m, C · d), its P (C, d, d), and `candidates` (C, 2) are a and λ of each, best first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.aggregation.newton import Newton
from fedem_flwr.config.sections import RunConfig
from fedem_flwr.contract import Asked, Device, Field, Gathered, State, Tuning, Upload, Wanted
from fedem_flwr.contract.fields import Named
from fedem_flwr.contract.phases import Sender
from fedem_flwr.contract.tuning import Row
from fedem_flwr.engine.ials import FoldIn, FoldInScores, Objective, Recency, beyond_users, sums_of
from fedem_flwr.evaluation.cohort import Sums
from fedem_flwr.evaluation.scorers import HistoryScorer
from fedem_flwr.evaluation.settings_grid import grid_sums
from fedem_flwr.methods.fedials import TableStep, packed
from fedem_flwr.protocol.splits import Split
from fedem_flwr.randomness import keyed_permutation

if TYPE_CHECKING:
    from fedem_flwr.methods.auto import Auto

TRIED = ("stage", "weight", "ridge", "half_life", "ndcg@10", "kept")  # of a table that was compared
UNKNOWN = -1.0  # in the place of an NDCG@10 that nobody has measured
_SEARCHED = 20_000  # users that a search takes at the most
GRID = "search"  # of the sums: `search-1`, of the first stage


@dataclass(frozen=True)
class Stage:
    """Rounds with so many tables.

    Attributes:
        name: of the phase, and of its sums. tables: C. rounds: how many. kept: tables that stay.
        first: number of its first round. searches: whether tables are compared.
        near: tables that then go on from the best one, with settings near its own, beside those that stay.
    """

    name: str
    tables: int
    rounds: int
    kept: int
    first: int
    searches: bool
    near: int = 0

    @property
    def compared(self) -> int:
        """The round whose model the tables are compared with, in the messages of the next and last one."""
        return self.first + self.rounds - 2


def stages_of(tables: int, rounds: int, learn: int, near: int = 0) -> list[Stage]:
    """Successive halving (Jamieson and Talwalkar 2016): all tables, then a quarter of them, then one.

    Where rounds are few there is one comparison, or none.

    Args:
        tables: at first. rounds: of the search and the table. learn: rounds before the first comparison.
        near: tables near the best one that join the quarter, as far as no stage has more tables than the first.
    """
    few, wide, short = max(2, -(-tables // 4)), learn + 1, max(1, learn - 1) + 1
    near = max(0, min(near, tables - few))
    plans = [[(tables, wide, few, near), (few + near, short, 1, 0)]] if few < tables else []
    plans += [[(tables, wide, 1, 0)]] if tables > 1 else []
    plan = next((plan for plan in plans if sum(length for _, length, *_ in plan) <= rounds), [])
    found, done = list[Stage](), 0
    for at, (size, length, kept, more) in enumerate(plan, 1):
        found.append(Stage(f"{GRID}-{at}", size, length, kept, done + 1, searches=True, near=more))
        done += length
    left = [Stage("table", 1, rounds - done, 1, done + 1, searches=False)] if rounds > done else []
    return [*found, *left]


class SideBySide(TableStep):
    """Row sums and P of every table; a Newton-like step each; in the stage's last round the best stay.

    From the best one others go on, with settings near its own, where the stage says so: a step of Newton's finds its
    way from there, and no table has to begin anew.
    """

    method: Auto

    def __init__(self, method: Auto, stage: Stage) -> None:
        super().__init__(method)
        self.stage, self.dim = stage, method.config.model.dim

    def fields(self) -> dict[str, Field]:
        """Those of `TableStep`, side by side."""
        fields, wide = super().fields(), self.stage.tables
        rows = replace(fields["rows"], shape=(None, wide * self.dim))
        return {**fields, "rows": rows, "gram": replace(fields["gram"], shape=(wide, self.dim, self.dim))}

    def needs(self) -> Sequence[str]:
        """The tables and their settings."""
        return ["table", "candidates"]

    def contribute(self, device: Device, asked: Asked) -> Upload:
        """Solve the participants once a table; the loss is that of the first."""
        folds = self.method.folds(asked)[: self.stage.tables]
        every = [sums_of(fold_in, device.history, asked.who) for fold_in in folds]
        one, *_ = named = [packed(sums) for sums in every]
        rows = np.concatenate([each["rows"] for each in named], axis=1)
        arrays = {**one, "rows": rows, "gram": np.stack([each["gram"] for each in named])}
        return Upload(arrays, every[0].samples, every[0].error)

    def impossible(self, arrays: Named, state: State, sender: Sender) -> str:
        """See `engine.ials.beyond_users`; of each table by its own settings."""
        if self.method.stages():
            return ""
        for at, (part, objective) in enumerate(zip(self._columns(), objectives(state["candidates"]), strict=False)):
            sums = {"rows": arrays["rows"][:, part], "counts": arrays["counts"], "gram": arrays["gram"][at]}
            if problem := beyond_users(sums, sender.samples, self.method.items, objective):
                return problem
        return ""

    def newton(self, state: State, steps: int) -> Newton:
        """With the settings of the state's first table; a search takes whole steps, as the same users are in each."""
        own, step = objectives(state["candidates"])[0], super().newton(state, steps)
        rate = (self.method.config.ials.rate or 1.0) if self.stage.searches else step.rate
        return replace(step, weight=own.weight, ridge=own.ridge, rate=rate)

    def fold(self, state: State, gathered: Gathered) -> State:
        """A step of every table, each by itself; then the comparison, where it is due."""
        state = self._first(state)
        if self.stage.searches:  # whoever takes part is everybody: the same users in each round
            gathered = replace(gathered, users=gathered.trained or gathered.users)
        stepped = [super(SideBySide, self).fold(*each) for each in self._apart(state, gathered)]
        together: State = {
            **stepped[0],
            "table": torch.cat([one["table"] for one in stepped], dim=1),
            "gram": torch.stack([one["gram"] for one in stepped]),
            "candidates": state["candidates"],
            "popularity": stepped[0]["counts"].log1p(),
        }
        over = self.stage.searches and gathered.step == self.stage.rounds
        return self.method.finished(self._best(together, gathered) if over else together, gathered.round)

    def _first(self, state: State) -> State:
        """As many tables as the stage has: more are left where a stage's last round came to nothing."""
        wide = self.stage.tables
        cut = {name: state[name][:wide] for name in ("gram", "candidates")}
        return {**state, **cut, "table": state["table"][:, : wide * self.dim]}

    def _apart(self, state: State, gathered: Gathered) -> Iterator[tuple[State, Gathered]]:
        """State and sums of each table, in the shape of `TableStep`'s."""
        for at, part in enumerate(self._columns()):
            one = {"table": state["table"][:, part], "gram": state["gram"][at]}
            sums = {**gathered.sums, "rows": gathered.sums["rows"][:, part], "gram": gathered.sums["gram"][at]}
            own = {**state, **one, "candidates": state["candidates"][at : at + 1]}
            yield own, replace(gathered, sums=sums)

    def _columns(self) -> list[slice]:
        return [slice(at * self.dim, (at + 1) * self.dim) for at in range(self.stage.tables)]

    def _best(self, state: State, gathered: Gathered) -> State:
        """Keep the best tables, best first, and those near it; where nobody has measured any, the first ones."""
        half_lives = self.method.half_lives
        means = gathered.measured.get(self.stage.name, [float("nan")] * (self.stage.tables * len(half_lives)))
        values = torch.tensor(means, dtype=torch.float64).view(self.stage.tables, len(half_lives))
        value, with_age = values.nan_to_num(nan=UNKNOWN).max(dim=1)
        order = value.sort(descending=True, stable=True).indices[: self.stage.kept]
        kept = torch.zeros(self.stage.tables, dtype=torch.float64)
        kept[order] = 1
        number = torch.full_like(kept, int(self.stage.name.rpartition("-")[2]))
        ages = torch.tensor(half_lives, dtype=torch.float64)[with_age]
        rows = torch.stack([number, *state["candidates"].T, ages, value, kept], dim=1)
        near = self.method.config.search.near(*state["candidates"][order[0]].tolist())[: self.stage.near]
        settings = torch.cat([state["candidates"][order], torch.tensor(near, dtype=torch.float64).view(-1, 2)])
        order = torch.cat([order, order[:1].expand(len(near))])
        return {
            **state,
            "table": torch.cat([state["table"][:, self._columns()[at]] for at in order], dim=1),
            "gram": state["gram"][order],
            "candidates": settings,
            "steps": torch.zeros(1, dtype=torch.int64),
            "tried": torch.cat([state["tried"], rows]),
        }


def comparison(method: Auto, stage: Stage) -> Tuning:
    """Each table of a stage under each half-life."""
    rows = [{"table": float(at), "age": h} for at in range(stage.tables) for h in method.half_lives]

    def measure(device: Device, asked: Asked, split: Split, wanted: Wanted) -> Sums:
        def scorer(row: Row) -> HistoryScorer:
            scores = FoldInScores(method.folds(asked)[int(row["table"])], Recency.of(row["age"], 1.0))
            return HistoryScorer(device.history, device.place, [(1.0, scores)], device.newest)

        return grid_sums({row: scorer(rows[row]) for row in wanted.rows}, split, stage.name, wanted.who)

    return Tuning(stage.name, rows, rows[0], lambda round_: round_ == stage.compared, measure, compares=True)


def searched_users(samples: np.ndarray, run: RunConfig) -> np.ndarray:
    """(p,) who takes part in a search, ascending: a keyed share of the users that have data, at most so many.

    Args:
        samples: (n,) training interactions of each user.
    """
    able = np.flatnonzero(samples)
    most = min(_SEARCHED, max(1, int(run.participants * len(able) + 1e-9)))
    return np.sort(able[keyed_permutation(len(able), run.seed, "search/users").numpy()[:most]])


def folds_of(asked: Asked, dim: int) -> list[FoldIn]:
    """What solves users against each of a message's tables."""
    parts, own = asked.tensor("table").split(dim, dim=1), objectives(asked.tensor("candidates"))
    return [FoldIn(part.contiguous(), one) for part, one in zip(parts, own, strict=True)]


def objectives(candidates: Tensor) -> list[Objective]:
    """Of tables' settings (C, 2)."""
    return [Objective(*row) for row in candidates.tolist()]


def told(tried: Tensor, candidates: Tensor) -> dict[str, object]:
    """What was compared (rows of `TRIED`) and what was chosen, for the report; empty where nothing was compared."""
    rows = [dict(zip(TRIED, row, strict=True)) for row in tried.tolist()]
    shown = [{**row, TRIED[4]: None if row[TRIED[4]] == UNKNOWN else row[TRIED[4]]} for row in rows]
    chosen = dict(zip(TRIED[1:3], candidates[0].tolist(), strict=True))
    return {"rows": shown, "chosen": chosen} if rows else {}
