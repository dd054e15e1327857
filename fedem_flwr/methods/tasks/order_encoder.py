"""The phase of the causal encoder: gradients of a round's participants, and the server's Adam."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from fedem_flwr.aggregation.adam import ServerAdam, cosine_rate
from fedem_flwr.config.least_squares import OrderConfig
from fedem_flwr.contract import Asked, Device, Field, Gathered, State, Task, Upload, indexed
from fedem_flwr.engine.order import OrderTask, order_sums
from fedem_flwr.models.encoder import unit_rows


class OrderEncoder(Task):
    """Weights (W,) and item rows (m, d) of the encoder, with their moments.

    Args:
        order: settings. task: what devices minimise. items: m. steps: rounds that train it; the learning rate is a
            function of their number. max_norm: the largest entry that a position may add to a gradient.
    """

    least_items = 2  # one to predict from, one to predict

    def __init__(self, order: OrderConfig, task: OrderTask, items: int, steps: int, max_norm: float) -> None:
        self.order, self.task, self.items, self.steps, self.max_norm = order, task, items, steps, max_norm

    def start(self) -> State:
        """Initial weights; rows of zeros until the table is finished."""
        weights = ServerAdam.start(self.task.encoder.initial(self.task.seed))
        return {**weights.state("weights"), **self.rows_from(torch.zeros(self.items, self.task.encoder.dim))}

    def rows_from(self, rows: torch.Tensor) -> State:
        """Rows (m, d) to start from."""
        return ServerAdam.start(rows).state("rows")

    def from_table(self, table: torch.Tensor) -> State:
        """The finished table's rows (m, d) to start from."""
        return self.rows_from(unit_rows(table.float()))

    def fields(self) -> dict[str, Field]:
        """Sums of gradients, and the number of positions behind them."""
        encoder = self.task.encoder
        rows = indexed("items", self.items, rows=Field((None, encoder.dim)))
        positions = Field((1,), "int64", least=0)
        return {**rows, "weights": Field((encoder.size,)), "positions": positions}

    def needs(self) -> Sequence[str]:
        """Rows and weights."""
        return ["rows", "weights"]

    def contribute(self, device: Device, asked: Asked) -> Upload:
        """See `engine.order.OrderSums`."""
        rows, weights = asked.tensor("rows"), asked.tensor("weights")
        task = replace(self.task, secret=device.secret)
        sums = order_sums(task, weights, rows, device.history, asked.who, asked.round)
        found = {"items": sums.touched.int(), "rows": sums.rows.float(), "weights": sums.weights.float()}
        arrays = {name: values.cpu().numpy() for name, values in found.items()}
        return Upload({**arrays, "positions": np.array([sums.positions])}, sums.positions, sums.loss)

    def problem(self, arrays: dict[str, np.ndarray], users: int, samples: int) -> str:
        """Positions that these users cannot have."""
        positions, most = int(arrays["positions"][0]), users * self.order.window
        if positions > most:
            return f"'positions' is {positions}, not between 0 and {most}"
        limit = self.max_norm * max(1, positions)
        for name in self.needs():
            if (size := float(np.abs(arrays[name]).max(initial=0.0))) > limit:
                return f"'{name}' has an entry of {size:.3g}, more than {limit:.3g}"
        idle = not positions and (arrays["rows"].any() or arrays["weights"].any())
        return "gradients of no position" if idle else ""

    def fold(self, state: State, gathered: Gathered) -> State:
        """A step of Adam on the mean gradient of a position."""
        positions = float(gathered.sums["positions"])
        if not positions:
            return state
        rate = cosine_rate(self.order.lr, gathered.step, self.steps)
        mean = {name: (gathered.sums[name] / positions).float() for name in self.needs()}
        trained = ("rows", "weights") if self.order.fine_tune else ("weights",)
        new = {**state}
        for name in trained:
            new |= ServerAdam.of(name, state).step(mean[name], rate).state(name)
        return new

    def typical_length(self, items: float) -> int:
        """Rows in the upload of a user with so many items: those of the window and of the negatives."""
        if not self.order.fine_tune:
            return 0
        if not self.order.negatives:
            return self.items
        window = min(round(items), self.order.window + 1)
        # an item is in the union unless it is missed by the window and by every draw
        return round(self.items * (1 - (1 - window / self.items) * (1 - 1 / self.items) ** self.order.negatives))
