"""What the loop asks of a strategy, beyond Flower's four methods: to be met, watched, stopped and resumed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from fedem_flwr.messages.admission import Admission


@runtime_checkable
class Resumable(Protocol):
    """Our strategies are (`strategies.base.CohortStrategy`); any other of Flower's becomes one in `StockStrategy`.

    The model is the strategy's own: it takes and returns no arrays in Flower's methods.

    Attributes:
        users: n, how many users there are; set before the first `meet`.
        failures: contributions left out so far, as dataclasses with round, node and reason.
        samples: (n,) training interactions of each user, known after `meet`; empty where nodes are not asked.
        stateless: whether clients keep nothing between rounds: then the state of any round can be served.
        on_receipt: whether clients evaluate a round's model on receipt, in answer to the next round's training message;
            else every round that is evaluated has a second phase.
    """

    users: int
    failures: list[Any]
    samples: np.ndarray
    stateless: bool
    on_receipt: bool

    def meet(self, grid: Grid, timeout: float, welcome: Admission | None = None, round_: int = 0) -> None:
        """Learn which users live where, after `round_`. Called again before every round where nodes come and go."""

    def participants(self, round_: int) -> np.ndarray:
        """The users that train in a round."""

    def evaluates(self, round_: int) -> bool:
        """Whether a round's model is evaluated; the last round's is in any case."""

    @property
    def sampled(self) -> int:
        """How many users the rounds are evaluated on, where that is a sample; 0: all."""

    def everybody(self, round_: int) -> bool:
        """Whether a round is evaluated on everybody, though others are on a sample."""

    def message_bytes(self, round_: int) -> tuple[float, float] | None:
        """Bytes up and down that a user's own training messages would take; None: as many as its node's.

        Asked between `configure_train` and `aggregate_train`.
        """

    def download(self, users: np.ndarray) -> dict[str, np.ndarray]:
        """What a node with these users is sent."""

    def settings(self, round_: int) -> Mapping[str, int | float | str]:
        """Numbers and words that go with it."""

    def state(self) -> dict[str, np.ndarray]:
        """What a checkpoint holds."""

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from a checkpoint."""

    def diagnostics(self) -> dict[str, object]:
        """What the report shows of the server."""

    def caveats(self) -> list[str]:
        """What a reader of the results must be warned of."""

    # Flower's own four.

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The round's messages."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take in the replies; no metrics: nothing could be made of them."""

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages that ask for an evaluation of the newest model alone."""

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Metric sums over users, with their number as `users`; or their means. None: there are none."""
