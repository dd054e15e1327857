"""The server's side of the causal encoder: Adam on the sums of gradients of a round's participants."""

from __future__ import annotations

import numpy as np
import torch

from fedem_flwr.aggregation.adam import ServerAdam, cosine_rate
from fedem_flwr.config.sections import OrderConfig
from fedem_flwr.engine.order import OrderTask
from fedem_flwr.models.encoder import unit_rows
from fedem_flwr.nodes.host import as_tensor
from strategies.uploads import Named, Spec, sparse_problem


class OrderEncoder:
    """Weights (W,) and item rows (m, d) of the encoder, with their moments.

    Args:
        order: settings. task: see `settings.order_task`.
        items: m. steps: rounds that will train it; the learning rate is a function of their number.
    """

    def __init__(self, order: OrderConfig, task: OrderTask, items: int, steps: int) -> None:
        self.order, self.task, self.m, self.steps = order, task, items, steps
        self.weights = ServerAdam.start(task.encoder.initial(task.seed))
        self.rows = ServerAdam.start(torch.zeros(items, task.encoder.dim))  # from the table, when that is ready
        self._sum: dict[str, torch.Tensor] = {}
        self._positions = 0

    def start(self, table: torch.Tensor) -> None:
        """Take the finished table (m, d) as the rows to start from."""
        self.rows = ServerAdam.start(unit_rows(table.float()))

    def expected(self) -> dict[str, Spec]:
        """Sums of gradients, and the number of positions behind them."""
        return {
            "items": Spec((None,), "int32"),
            "rows": Spec((None, self.task.encoder.dim)),
            "weights": Spec((self.task.encoder.size,)),
            "positions": Spec((1,), "int64"),
        }

    def touched(self, items: int) -> int:
        """Rows in the upload of a user with so many items, on average: those of the window and of the negatives."""
        if not self.order.fine_tune:
            return 0
        if not self.order.negatives:
            return self.m
        window = min(items, self.order.window + 1)
        # an item is in the union unless it is missed by the window and by every draw
        return round(self.m * (1 - (1 - window / self.m) * (1 - 1 / self.m) ** self.order.negatives))

    def problem(self, arrays: Named, most: int) -> str:
        """What is wrong with an upload of the right shapes, of `most` positions at most; empty if nothing is."""
        items, positions = arrays["items"], int(arrays["positions"][0])
        fault = sparse_problem(items, np.ones(len(items)), {"rows": arrays["rows"]}, self.m, 1)
        if not fault and not 0 <= positions <= most:
            fault = f"'positions' is {positions}, not between 0 and {most}"
        if not fault and not positions and (arrays["rows"].any() or arrays["weights"].any()):
            fault = "gradients of no position"
        return fault

    def receive(self, arrays: Named) -> None:
        """Add a cohort's sums to the round's."""
        if not self._sum:
            like = {"rows": self.rows.value, "weights": self.weights.value}
            self._sum = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in like.items()}
        self._sum["rows"].index_add_(0, as_tensor(arrays["items"]).long(), as_tensor(arrays["rows"]).double())
        self._sum["weights"] += as_tensor(arrays["weights"])
        self._positions += int(arrays["positions"][0])

    def combine(self, step: int) -> None:
        """Step number `step`, from 1, on the mean gradient of a position."""
        if not self._positions:
            return
        rate = cosine_rate(self.order.lr, step, self.steps)
        mean = {name: (total / self._positions).float() for name, total in self._sum.items()}
        self.weights = self.weights.step(mean["weights"], rate)
        if self.order.fine_tune:
            self.rows = self.rows.step(mean["rows"], rate)
        self._sum, self._positions = {}, 0

    def arrays(self) -> Named:
        """What goes down."""
        return {"rows": self.rows.value.numpy(), "weights": self.weights.value.numpy()}

    def state(self) -> Named:
        """Values, moments and numbers of steps."""
        steps = np.array([self.rows.steps, self.weights.steps])
        return {**self.rows.arrays("rows"), **self.weights.arrays("weights"), "steps-taken": steps}

    def restore(self, state: Named) -> None:
        """See `state`."""
        rows, weights = state["steps-taken"].tolist()
        self.rows, self.weights = ServerAdam.of("rows", state, rows), ServerAdam.of("weights", state, weights)
