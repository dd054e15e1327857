"""fedials: federated implicit ALS with second-order item steps (after Hu et al. 2008 and Chien et al. 2021).

Private: the history, which is all that a client keeps. Up: a cohort's sums over its users, of the rows they touched and
of one d × d matrix. Server: a Newton-like step in the eigenbasis of P. Down: the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, MetricRecord

from fedem_flwr.aggregation.newton import Newton, newton_step
from fedem_flwr.config import Config
from fedem_flwr.engine.ials import TableSums
from fedem_flwr.evaluation.settings_grid import SettingsGrid
from fedem_flwr.messages.wire import plain_numbers
from fedem_flwr.models.mf import initial_table
from fedem_flwr.nodes.host import as_tensor
from strategies.base import CohortStrategy
from strategies.uploads import Named, Spec, refuse_fraction, sparse_problem

_RATE_EXPONENT = 0.9  # η of a share of the users: 0.13 with 10 %, 0.03 with 2 %


class Fedials(CohortStrategy):
    """One global item table; users are solved from their histories on the device."""

    upload = "sums"
    stateless = True

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        model, self.ials, self.fold_in = config.model, config.ials, config.fold_in
        refuse_fraction(config)
        self.table = initial_table(items, model.dim, model.init_std, config.run.seed).double()  # (m, d)
        self.counts = torch.zeros(items, dtype=torch.float64)  # c and P: means over rounds, of sums scaled to all users
        self.gram = torch.zeros(model.dim, model.dim, dtype=torch.float64)
        self.steps = 0
        self._begin()
        chosen = {"half_life": self.fold_in.half_life, "ridge": self.fold_in.ridge}
        self.tuning = SettingsGrid("fold-in", self.fold_in.grid(), chosen)

    @property
    def table_rounds(self) -> int:
        """Rounds that train the table: all."""
        return self.config.run.rounds

    def evaluates(self, round_: int) -> bool:
        """Also where the grid of the fold-in is evaluated."""
        return super().evaluates(round_) or self.tunes(round_)

    def tunes(self, round_: int) -> bool:
        """Whether the grid is evaluated with a round's table: halfway, where the best settings are known already."""
        return self.fold_in.tune and len(self.tuning.rows) > 1 and round_ == (self.table_rounds + 1) // 2

    def settings(self, round_: int) -> dict[str, int | float | str]:
        """How users are folded in, and whether the grid is to be evaluated with what was received."""
        return {**self.tuning.chosen, "tune": int(self.tunes(round_ - 1))}

    def download(self, users: np.ndarray) -> Named:
        """The one table, for everybody."""
        return {"table": self.table.float().numpy()}

    def expected(self, uploaders: np.ndarray) -> dict[str, Spec]:
        """Row sums of the touched items, and P."""
        dim = self.config.model.dim
        return {
            "items": Spec((None,), "int32"),
            "rows": Spec((None, dim)),
            "counts": Spec((None,), "int32"),
            "gram": Spec((dim, dim)),
        }

    def typical(self) -> dict[str, Spec]:
        """The upload of an average user, for the count of bytes: it touches as many rows as it has items."""
        return {name: spec.filled(self.average_items()) for name, spec in self.expected(np.zeros(1, np.int64)).items()}

    def average_items(self) -> int:
        """Training items of a user, rounded."""
        return round(float(self.samples[self.samples > 0].mean()))

    def problem(self, arrays: Named, uploaders: np.ndarray) -> str:
        """Also refuse rows that are not of the catalogue, and sums that are too large for the users behind them."""
        fault = super().problem(arrays, uploaders) or sparse_problem(
            arrays["items"], arrays["counts"], {"rows": arrays["rows"]}, self.items, len(uploaders)
        )
        return fault or self.too_large(arrays, ("rows", "gram"), len(uploaders))

    def too_large(self, arrays: Named, names: Sequence[str], terms: int) -> str:
        """Which array has an entry that no sum of so many sane terms can have; empty if none has."""
        limit = self.config.aggregate.max_norm * max(1, terms)
        for name in names:
            size = float(np.abs(arrays[name]).max(initial=0.0))
            if size > limit:
                return f"'{name}' has an entry of {size:.3g}, more than {limit:.3g}"
        return ""

    def receive(self, arrays: Named, participants: np.ndarray) -> None:
        """Add a cohort's sums to the round's. An empty upload was withheld."""
        if not len(arrays["items"]):
            return
        items = torch.from_numpy(arrays["items"].astype(np.int64))
        self._sums.gradient.index_add_(0, items, as_tensor(arrays["rows"]).double())
        self._sums.counts[items] += as_tensor(arrays["counts"])
        self._sums.gram += as_tensor(arrays["gram"])
        self._trained += len(participants)

    def _begin(self) -> None:
        self._sums = TableSums.zeros(self.items, self.config.model.dim, torch.device("cpu"))  # of the round
        self._trained = 0

    def combine(self, round_: int) -> None:
        """A Newton-like step; with some of the users, a small one with running means of c and P."""
        if not self._trained:
            return
        self.steps += 1
        users = int((self.samples > 0).sum())
        scale = users / self._trained
        rate = self.rate()
        for name, memory in (("counts", 1 / self.steps), ("gram", max(1 / self.steps, rate))):
            new = getattr(self._sums, name) * scale
            old = getattr(self, name)
            setattr(self, name, new if self._trained == users else old + memory * (new - old))
        step = Newton(self.ials.weight, self.ials.ridge, self.ials.kappa, rate)
        self.table = newton_step(self.table, self._sums.gradient * scale, self.counts, self.gram, users, step)
        self._begin()

    def rate(self) -> float:
        """η of the current step."""
        share = self.config.run.participants
        if self.ials.rate is not None:
            return self.ials.rate
        return float(max(1 / self.steps, share**_RATE_EXPONENT))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Also choose among the grid's sums, which are of the previous round's table."""
        arrays, record = super().aggregate_train(server_round, replies)
        sums = {} if record is None else plain_numbers(record)
        return arrays, MetricRecord(dict(self.chosen_from(sums, server_round - 1)))

    def chosen_from(self, sums: dict[str, float], round_: int) -> dict[str, float]:
        """Choose by a round's sums; returns those that are not of a grid."""
        return self.tuning.take(sums, round_)

    def diagnostics(self) -> dict[str, object]:
        """The grid of the fold-in."""
        return {"tuning": self.tuning.shown()}

    def state(self) -> Named:
        """The table, the running means, and what was chosen."""
        return {
            "table": self.table.numpy(),
            "counts": self.counts.numpy(),
            "gram": self.gram.numpy(),
            "steps": np.array([self.steps]),
            **self.tuning.state(),
        }

    def restore(self, state: Named) -> None:
        """See `state`."""
        self.table, self.counts, self.gram = (as_tensor(state[name]) for name in ("table", "counts", "gram"))
        self.steps = int(state["steps"][0])
        self.tuning.restore(state)
