"""fedials: federated implicit ALS with second-order item steps (after Hu et al. 2008 and Chien et al. 2021).

Private: the history, which is all that a client keeps. Up: a cohort's sums over its users, of the rows they touched and
of one d × d matrix. Server: a Newton-like step in the eigenbasis of P. Down: the table. Objective: see `engine.ials`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedem_flwr.aggregation.newton import Newton, nearest_gram, newton_step
from fedem_flwr.config import Config
from fedem_flwr.contract import Asked, Device, Field, Gathered, Phase, State, Task, Tuning, Upload, Wanted, indexed
from fedem_flwr.contract.fields import Named
from fedem_flwr.contract.from_history import FromHistory, history_scorer
from fedem_flwr.contract.phases import Sender
from fedem_flwr.engine.ials import FoldIn, FoldInScores, Objective, Recency, TableSums, beyond_users, sums_of
from fedem_flwr.evaluation.cohort import Sums
from fedem_flwr.evaluation.scorers import Component, HistoryScorer
from fedem_flwr.evaluation.settings_grid import grid_sums
from fedem_flwr.models.mf import initial_table
from fedem_flwr.protocol.splits import Split

_RATE_EXPONENT = 0.9  # η of a share of the users: 0.13 with 10 %, 0.03 with 2 %


class Fedials(FromHistory):
    """One global item table; users are solved from their histories on the device."""

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        self.objective = Objective(config.ials.weight, config.ials.ridge)

    @property
    def table_rounds(self) -> int:
        """Rounds that train the table before anything else does: all."""
        return self.config.run.rounds

    def phases(self) -> Sequence[Phase]:
        """One."""
        return [Phase("table", self.table_rounds, TableStep(self))]

    def start(self) -> State:
        """The table, float64; c and P, means over rounds of sums scaled to all users; and the steps taken."""
        model = self.config.model
        table = initial_table(self.items, model.dim, model.init_std, self.seed).double()
        counts, gram = table.new_zeros(self.items), table.new_zeros((model.dim, model.dim))
        return {"table": table, "counts": counts, "gram": gram, "steps": torch.zeros(1, dtype=torch.int64)}

    def sends(self) -> Sequence[str]:
        """The table."""
        return ["table"]

    def tunings(self) -> Sequence[Tuning]:
        """How users are folded in, chosen halfway through the table, where the best settings are known already."""
        fold_in = self.config.fold_in
        first = {"half_life": fold_in.half_life, "ridge": fold_in.ridge}
        grid = fold_in.grid()
        tunes, halfway = fold_in.tune and len(grid) > 1, (self.table_rounds + 1) // 2
        return [Tuning("fold-in", grid, first, lambda round_: tunes and round_ == halfway, self._measure)]

    def _measure(self, device: Device, asked: Asked, split: Split, wanted: Wanted) -> Sums:
        grid, fold_in = self.config.fold_in.grid(), self.fold_in(asked)

        def scorer(row: dict[str, float]) -> HistoryScorer:
            scores = FoldInScores(fold_in, Recency.of(row["half_life"], row["ridge"]))
            return history_scorer(device, [(1.0, scores)])

        return grid_sums({row: scorer(grid[row]) for row in wanted.rows}, split, "fold-in", wanted.who)

    def components(self, asked: Asked) -> list[tuple[float, Component]]:
        """The fold-in, with the settings of the message."""
        return [(1.0, FoldInScores(self.fold_in(asked), self.recency(asked)))]

    def fold_in(self, asked: Asked) -> FoldIn:
        """What solves users against the message's table; made once a message."""
        return asked.once("fold-in", lambda: FoldIn(asked.tensor("table"), self.objective))

    def recency(self, asked: Asked) -> Recency:
        """As the message says."""
        return Recency.of(asked.number("half_life"), asked.number("ridge"))

    def rate(self, steps: int) -> float:
        """η of a step."""
        share = self.config.run.participants
        return float(self.config.ials.rate or max(1 / steps, share**_RATE_EXPONENT))

    def newton(self, steps: int) -> Newton:
        """The settings of a step."""
        ials = self.config.ials
        return Newton(ials.weight, ials.ridge, ials.kappa, self.rate(steps))


class TableStep(Task):
    """Row sums of the touched items and P; a Newton-like step."""

    def __init__(self, method: Fedials) -> None:
        self.method = method

    def fields(self) -> dict[str, Field]:
        """See `engine.ials.TableSums`."""
        dim = self.method.config.model.dim
        rows = indexed("items", self.method.items, rows=Field((None, dim), terms=1), counts=_COUNTS)
        return {**rows, "gram": Field((dim, dim), terms=1, gram=not self.method.stages())}

    def needs(self) -> Sequence[str]:
        """The table."""
        return ["table"]

    def contribute(self, device: Device, asked: Asked) -> Upload:
        """Solve the participants and sum up."""
        sums = sums_of(self.method.fold_in(asked), device.history, asked.who)
        return Upload(packed(sums), sums.samples, sums.error)

    def impossible(self, arrays: Named, state: State, sender: Sender) -> str:
        """See `engine.ials.beyond_users`."""
        return self.beyond(arrays, sender, "rows", "counts", "gram")

    def beyond(self, arrays: Named, sender: Sender, *names: str) -> str:
        """The same of the sums of a table, or of several; stages may have done anything to them."""
        method, sums = self.method, {name: arrays[name] for name in names}
        return "" if method.stages() else beyond_users(sums, sender.samples, method.items, method.objective)

    def weighs(self) -> Mapping[str, float] | None:
        """Rows as they are; a user's counts and its p pᵀ as `[ldp]` says."""
        ldp = self.method.config.ldp
        return {"rows": 1.0, "counts": ldp.count, "gram": ldp.gram}

    def denoised(self, sums: Mapping[str, Tensor], users: int) -> Mapping[str, Tensor]:
        """Noise makes counts that nobody can have, and a P that is no sum of p pᵀ: the nearest that there can be."""
        return {**sums, "counts": sums["counts"].clamp(0, users), "gram": nearest_gram(sums["gram"])}

    def newton(self, state: State, steps: int) -> Newton:
        """The settings of a step."""
        return self.method.newton(steps)

    def fold(self, state: State, gathered: Gathered) -> State:
        """A Newton-like step; with some of the users, a small one with running means of c and P."""
        if not gathered.trained:
            return state
        steps, scale = int(state["steps"]) + 1, gathered.users / gathered.trained
        step, sums = self.newton(state, steps), {name: total * scale for name, total in gathered.sums.items()}
        everybody = gathered.trained == gathered.users
        counts = _remembered(state["counts"], sums["counts"], 1 / steps, everybody=everybody)
        gram = _remembered(state["gram"], sums["gram"], max(1 / steps, step.rate), everybody=everybody)
        table = newton_step(state["table"], sums["rows"], counts, gram, gathered.users, step)
        return {**state, "table": table, "counts": counts, "gram": gram, "steps": torch.tensor([steps])}


_COUNTS = Field((None,), "int32", count=True)


def packed(sums: TableSums) -> Named:
    """The touched rows and P, as they go up."""
    touched = torch.nonzero(sums.counts).squeeze(1)
    found = {"items": touched.int(), "rows": sums.gradient[touched].float(), "counts": sums.counts[touched].int()}
    return {name: values.cpu().numpy() for name, values in {**found, "gram": sums.gram.float()}.items()}


def _remembered(old: Tensor, new: Tensor, memory: float, *, everybody: bool) -> Tensor:
    return new if everybody else old + memory * (new - old)
