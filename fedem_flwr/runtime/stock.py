"""Any Flower strategy in the loop: what it lacks to be met, watched, stopped and resumed.

Flower's strategies offer no way of saving themselves. What those of Flower 1.41 and 1.42 keep are attributes that hold
arrays by name (`m_t`, `v_t` of FedAdam) or in a list (`momentum_vector` of FedAvgM); the model itself is handed to them
anew in every round.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedem_flwr.config import Config
from fedem_flwr.evaluation.looking import LooksAtRounds
from fedem_flwr.messages.admission import Admission, greetings, meeting_seconds, sessions_of
from fedem_flwr.messages.uploads import Failure, Spec, arrays_of, problem_of
from fedem_flwr.messages.wire import pack_arrays, plain_numbers, unpack_arrays
from fedem_flwr.text import one_line

_PREFIX = "strategy:"
_MOST_METRICS = 1000  # of a reply
_NOBODY = np.empty(0, dtype=np.int64)


class StockStrategy(LooksAtRounds):
    """A strategy that knows Flower's interface alone, as a `Resumable`: it sees nodes, not users, and one model.

    Args:
        inner: the strategy.
        model: the global model that it starts from.
        config: of the run.
    """

    stateless = False
    on_receipt = False

    def __init__(self, inner: Strategy, model: Mapping[str, np.ndarray], config: Config) -> None:
        self.users = 0
        self.failures: list[Failure] = []
        self.samples: np.ndarray = np.empty(0, dtype=np.int64)  # nobody is asked
        self._inner, self._model, self.config = inner, pack_arrays(model), config
        self._greeted: dict[int, Hashable] = {}
        self._waiting: dict[int, None] = {}  # nodes that have not answered yet

    def meet(self, grid: Grid, timeout: float, welcome: Admission | None = None, round_: int = 0) -> None:
        """Greet nodes that came since the last time, where they come and go: they must know the run."""
        if welcome is None:
            return
        present = sessions_of(grid)
        new = [node for node, session in present.items() if self._greeted.get(node) != session]
        if new:
            seconds = meeting_seconds(len(new), timeout)
            list(grid.send_and_receive(greetings(welcome, new, round_), timeout=seconds))
        self._greeted = dict(present)

    def participants(self, round_: int) -> np.ndarray:
        """Everybody."""
        return np.arange(self.users)

    def message_bytes(self, round_: int) -> None:
        """The nodes' messages are all that is known."""

    def download(self, users: np.ndarray) -> dict[str, np.ndarray]:
        """The one model, for everybody."""
        return unpack_arrays(self._model)

    def settings(self, round_: int) -> dict[str, int | float | str]:
        """None."""
        return {}

    def state(self) -> dict[str, np.ndarray]:
        """The model, and what the strategy remembers."""
        return {**unpack_arrays(self._model), **memory_of(self._inner)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """See `state`."""
        self._model = pack_arrays(give_memory(self._inner, state))

    def diagnostics(self) -> dict[str, object]:
        """Nothing."""
        return {}

    def caveats(self) -> list[str]:
        """Those of the strategy, if it has any."""
        said: list[str] = getattr(self._inner, "caveats", list)()
        return said

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """The strategy's messages, with the model as it is."""
        return self._asking(self._inner.configure_train(server_round, self._model, config, grid))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the new model, if one was made."""
        model, metrics = self._inner.aggregate_train(server_round, self._answers(server_round, replies))
        self._note_silence(server_round)
        if model is None:
            return None, None
        self._model = pack_arrays(unpack_arrays(model))  # unpacked once, not by every node
        return None, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """The strategy's messages, with the model as it is."""
        return self._asking(self._inner.configure_evaluate(server_round, self._model, config, grid))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The strategy's means."""
        metrics = self._inner.aggregate_evaluate(server_round, self._answers(server_round, replies))
        self._note_silence(server_round)
        return metrics

    # A stock strategy tells nobody which nodes it did without.

    def _asking(self, messages: Iterable[Message]) -> list[Message]:
        """Note who is asked, also where time runs out before a node gets its message."""
        asked = list(messages)
        self._waiting = dict.fromkeys(message.metadata.dst_node_id for message in asked)
        return asked

    def _answers(self, round_: int, replies: Iterable[Message]) -> Iterator[Message]:
        """Replies, with errors noted; what no strategy can use is left out."""
        for reply in replies:
            node = reply.metadata.src_node_id
            self._waiting.pop(node, None)
            if reply.has_error():
                self._fail(round_, node, reply.error.reason or "no reason given")
            elif problem := self._problem(reply):
                self._fail(round_, node, problem)
                continue
            yield reply

    def _problem(self, reply: Message) -> str:
        """What is wrong with a reply, whatever the strategy; empty if nothing is."""
        for record in reply.content.metric_records.values():
            if len(record) > _MOST_METRICS:
                return f"{len(record):,} metrics, more than {_MOST_METRICS:,}"
            if not all(math.isfinite(value) for value in plain_numbers(record).values()):
                return "a metric that is not finite"
        expected = {name: Spec(values.shape, str(values.dtype)) for name, values in self.download(_NOBODY).items()}
        for name in reply.content.array_records:
            arrays = arrays_of(reply, name)
            if arrays is None or arrays.keys() != expected.keys():
                return "holds no arrays like the model's"
            if problem := problem_of(arrays, expected, math.inf, same_type=False):
                return problem
        return ""

    def _note_silence(self, round_: int) -> None:
        for node in self._waiting:
            self._fail(round_, node, "no reply within the round's time")
        self._waiting = {}

    def _fail(self, round_: int, node: int, reason: str) -> None:
        self.failures.append(Failure(round_, f"node {node}", one_line(reason)))


def memory_of(strategy: Strategy) -> dict[str, np.ndarray]:
    """The arrays of a strategy's attributes, named `strategy:ATTRIBUTE:KEY`; in lists the key is a number."""
    out: dict[str, np.ndarray] = {}
    for attribute, value in vars(strategy).items():
        entries = dict(enumerate(value)) if isinstance(value, list) else value
        if type(entries) is dict and entries and all(isinstance(array, np.ndarray) for array in entries.values()):
            out |= {f"{_PREFIX}{attribute}:{key}": array for key, array in entries.items()}
    return out


def give_memory(strategy: Strategy, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Undo `memory_of`; returns the arrays that are not the strategy's: the model."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        if name.startswith(_PREFIX):
            attribute, _, key = name.removeprefix(_PREFIX).partition(":")
            found.setdefault(attribute, {})[key] = np.array(array)
    for attribute, entries in found.items():
        numbered = all(key.isdecimal() for key in entries)
        value = [entries[key] for key in sorted(entries, key=int)] if numbered else entries
        setattr(strategy, attribute, value)
    return {name: array for name, array in arrays.items() if not name.startswith(_PREFIX)}
