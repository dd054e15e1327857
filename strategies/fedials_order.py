"""fedials with order: after the table, a causal encoder and, if wanted, a directional map learn what follows what.

Private: the history. Up: a cohort's sums over its users, of the table's rows, then once of pairs of items for the map,
then of gradients of the encoder, from few users a round. Down: what the round trains, and what users are scored with
where its model is evaluated.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from fedem_flwr.config import Config
from fedem_flwr.errors import InputError
from fedem_flwr.evaluation.settings_grid import SettingsGrid
from fedem_flwr.methods.settings import order_task
from strategies.base import CohortStrategy
from strategies.fedials import Fedials
from strategies.order_encoder import OrderEncoder
from strategies.order_map import OrderMap
from strategies.uploads import Failure, Named, Spec

_TYPICAL_PAIRS = 20  # of a position: pairs with the items before it


class FedialsOrder(Fedials):
    """`run.rounds - order.rounds` rounds of `Fedials`, one of the map where there is one, then those of the encoder."""

    NEEDS_TIMES = True

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        self.order = config.order
        self.map = OrderMap(items, self.order.map, self.order.map_ridge) if self.order.map else None
        before = self.table_rounds + (self.map is not None)
        if self.table_rounds < 1 or before >= config.run.rounds:
            raise InputError(
                f"order.rounds = {self.order.rounds} of run.rounds = {config.run.rounds} must leave some for the "
                "table, and be more than the map's one: change either, for instance "
                f"--set order.rounds={max(2, config.run.rounds - 10, config.run.rounds // 2)}"
            )
        self.first_step = before + 1  # round
        self.encoder = OrderEncoder(self.order, order_task(config), items, config.run.rounds - before)
        first = {"order_weight": self.order.weight, "map_weight": self.order.map_weight if self.map else 0.0}
        self.mixing = SettingsGrid("order", self.order.grid(), first)
        self.done = 0  # rounds
        self._scored = True  # whether what is sent next will be scored with

    @property
    def table_rounds(self) -> int:
        """The run's first rounds."""
        return self.config.run.rounds - self.config.order.rounds

    def phase(self, round_: int) -> str:
        """What a round trains, and asks for: `sums` for the table, `pairs` for the map, `order` for the encoder."""
        if round_ <= self.table_rounds:
            return "sums"
        return "order" if round_ >= self.first_step else "pairs"

    def participants(self, round_: int) -> np.ndarray:
        """All that train the table and the map; then the share that trains the encoder."""
        of_run, of_order = self.config.run.participants, self.order.participants
        return self.drawn(round_, of_order if self.phase(round_) == "order" else of_run)

    def evaluates(self, round_: int) -> bool:
        """Also the finished table."""
        return super().evaluates(round_) or round_ == self.table_rounds

    def settings(self, round_: int) -> dict[str, int | float | str]:
        """Also the weights in the score, 0 before there is something to add, and whether their grid is evaluated."""
        learnt = max(round_ - 1, self.done) >= self.first_step
        mixes = learnt and self.order.tune and len(self.mixing.rows) > 1 and self.evaluates(round_ - 1)
        weights = self.mixing.chosen if learnt else dict.fromkeys(self.mixing.chosen, 0.0)
        return {**super().settings(round_), **weights, "mix": int(mixes)}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterator[Message]:
        """The table goes down where it is trained, and where users are scored with it."""
        self._scored = server_round > 1 and self.evaluates(server_round - 1)
        return super().configure_train(server_round, arrays, config, grid)

    def download(self, users: np.ndarray) -> Named:
        """The table, the encoder and the map; those that are needed, the others empty."""
        following = self.phase(self.done + 1)
        named = {**super().download(users), **self.encoder.arrays(), **(self.map.arrays() if self.map else _NO_MAP)}
        if self._scored and following == "order":
            return named
        needed = {"sums": ("table",), "pairs": ("table",), "order": ("rows", "weights")}[following]
        return {name: array if name in needed else array[:0] for name, array in named.items()}

    def expected(self, uploaders: np.ndarray) -> dict[str, Spec]:
        """What the phase asks for."""
        if self.upload == "order":
            return self.encoder.expected()
        return self.map.expected() if self.upload == "pairs" and self.map else super().expected(uploaders)

    def typical(self) -> dict[str, Spec]:
        """See the base."""
        items = self.average_items()
        if self.upload == "sums":
            return super().typical()
        open_length = self.encoder.touched(items) if self.upload == "order" else items * min(items, _TYPICAL_PAIRS)
        return {name: spec.filled(open_length) for name, spec in self.expected(_NOBODY).items()}

    def problem(self, arrays: Named, uploaders: np.ndarray) -> str:
        """Also refuse what these users cannot have sent."""
        if self.upload == "sums":
            return super().problem(arrays, uploaders)
        fault = CohortStrategy.problem(self, arrays, uploaders)
        if self.upload == "pairs" and self.map:
            return fault or self.map.problem(arrays) or self.too_large(arrays, _PAIR_SUMS, len(uploaders))
        fault = fault or self.encoder.problem(arrays, len(uploaders) * self.order.window)
        return fault or self.too_large(arrays, ("rows", "weights"), int(arrays["positions"][0]))

    def receive(self, arrays: Named, participants: np.ndarray) -> None:
        """Add a cohort's sums to the round's."""
        if self.upload == "order":
            self.encoder.receive(arrays)
        elif self.upload == "pairs" and self.map:
            self.map.receive(arrays)
        else:
            super().receive(arrays, participants)

    def combine(self, round_: int) -> None:
        """A step of the phase; when the table is finished, the encoder's rows start from it."""
        if self.upload == "order":
            self.encoder.combine(round_ - self.first_step + 1)
        elif self.upload == "pairs" and self.map:
            reason = self.map.combine()
            if reason:
                self.failures.append(Failure(round_, "server", f"the run goes on without a map: {reason}"))
        else:
            super().combine(round_)
        if round_ == self.table_rounds:
            self.encoder.start(self.table)
        self._finished(round_)

    def _finished(self, round_: int) -> None:
        self.done, self._scored, self.upload = round_, True, self.phase(round_ + 1)

    def chosen_from(self, sums: dict[str, float], round_: int) -> dict[str, float]:
        """Also among the weights."""
        return self.mixing.take(super().chosen_from(sums, round_), round_)

    def diagnostics(self) -> dict[str, object]:
        """Both grids."""
        return {**super().diagnostics(), "mixing": self.mixing.shown()}

    def state(self) -> Named:
        """Also the encoder with its moments, and the map."""
        of_map = self.map.arrays() if self.map else {}
        of_order = {**self.encoder.state(), **of_map, **self.mixing.state()}
        return {**super().state(), **of_order, "done": np.array([self.done])}

    def restore(self, state: Named) -> None:
        """See `state`."""
        super().restore(state)
        self.encoder.restore(state)
        self.mixing.restore(state)
        if self.map:
            self.map.restore(state)
        self._finished(int(state["done"][0]))


_NOBODY = np.empty(0, dtype=np.int64)
_PAIR_SUMS = ("pair-gram", "pair-cross")
_NO_MAP = {"map-items": np.empty((0, 0), dtype=np.int32), "map-values": np.empty((0, 0), dtype=np.float32)}
