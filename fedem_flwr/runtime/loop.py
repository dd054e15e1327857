"""The rounds of a run: one loop for every strategy (ours or stock Flower) and every runtime.

Flower's own `Strategy.start` cannot be stopped and resumed; this loop calls the same four methods of the strategy and
adds checkpoints, metrics lines and byte counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedem_flwr.errors import FedemError
from fedem_flwr.evaluation.cohort import means_of, nested, rho_statistics
from fedem_flwr.runtime.checkpoint import Checkpoint
from fedem_flwr.runtime.stock import give_memory, memory_of
from fedem_flwr.runtime.wire import pack_arrays, payload_bytes, plain_numbers, unpack_arrays

Line = dict[str, Any]
Sums = dict[str, float]
Failure = dict[str, Any]


@runtime_checkable
class Resumable(Protocol):
    """What our strategies offer beyond Flower's interface."""

    users: int
    failures: list[Any]
    samples: np.ndarray

    def meet(self, grid: Grid, timeout: float) -> None:
        """Learn which users live where."""

    def participants(self, round_: int) -> np.ndarray:
        """The users that train in a round."""

    def message_bytes(self, round_: int) -> tuple[float, float]:
        """Bytes up and down that a user's own messages would take."""

    def download(self, users: np.ndarray) -> dict[str, np.ndarray]:
        """What a node with these users is sent."""

    def state(self) -> dict[str, np.ndarray]:
        """What a checkpoint holds."""

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from a checkpoint."""

    def diagnostics(self) -> dict[str, object]:
        """What the report shows of the server."""


@dataclass
class Plan:
    """How many rounds, and what happens around them.

    Attributes:
        emit: called with each round's finished metrics line.
        save: called with each checkpoint; not called without one.
    """

    rounds: int
    timeout: float
    checkpoint_every: int
    protocol: str
    users: int
    emit: Callable[[Line], None]
    save: Callable[[Checkpoint], None] | None = None


@dataclass
class Outcome:
    """What is known after the last round, beyond the metrics lines.

    Attributes:
        final_sums: metric sums of the last model, those of the groups of users included.
        failures: contributions left out, of the whole run.
        diagnostics: what the strategy shows; empty if there was no round left to carry out.
        peak_rss_bytes: see `run.peak_rss_bytes`; 0 where it was not measured.
    """

    final_sums: Sums = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    diagnostics: dict[str, object] = field(default_factory=dict)
    peak_rss_bytes: int = 0


class _Meter:
    """Counts the array bytes of a phase's messages as they pass, and notes what stock strategies do not count."""

    def __init__(self, round_: int) -> None:
        self.down = self.up = self.messages = self.replies = 0
        self.examples = 0.0
        self.round, self._waiting = round_, dict[int, None]()
        self._errors: list[tuple[int, str]] = []  # node, reason

    def expected(self, messages: Iterable[Message]) -> list[Message]:
        """Note who is asked, also where time runs out before a node gets its message."""
        asked = list(messages)
        self._waiting = dict.fromkeys(message.metadata.dst_node_id for message in asked)
        return asked

    def sent(self, messages: Iterable[Message]) -> Iterator[Message]:
        for message in messages:
            self.down += payload_bytes(message)
            self.messages += 1
            yield message

    def received(self, replies: Iterable[Message]) -> Iterator[Message]:
        for reply in replies:
            node = reply.metadata.src_node_id
            self._waiting.pop(node, None)
            if reply.has_error():
                self._errors.append((node, " ".join((reply.error.reason or "no reason given").split())))
            else:
                self.up += payload_bytes(reply)
                self.replies += 1
                numbers = plain_numbers(reply.content.metric_records.get("metrics", MetricRecord()))
                self.examples += np.nan_to_num(numbers.get("num-examples", 0.0), posinf=0.0, neginf=0.0)
            yield reply

    def failures(self) -> list[Failure]:
        """Errors, and nodes that did not answer, in the form of our strategies' failures."""
        lost = [*self._errors, *((node, "no reply within the round's time") for node in self._waiting)]
        return [{"round": self.round, "node": f"node {node}", "reason": reason} for node, reason in lost]

    def each(self) -> tuple[float, float]:
        """Mean bytes up and down of a node's messages."""
        return self.up / max(1, self.replies), self.down / max(1, self.messages)

    def why(self) -> str:
        """The first failure, to end a message with."""
        lost = self.failures()
        return f": {lost[0]['reason']}" if lost else ""


def run_rounds(
    strategy: Strategy, grid: Grid, initial: dict[str, np.ndarray], plan: Plan, start: Checkpoint | None = None
) -> Outcome:
    """Carry out the rounds that are left.

    Args:
        strategy: ours (`Resumable`), or any Flower strategy whose model is `initial`.
        grid: reaches the nodes.
        initial: the global model that a stock strategy starts from.
        plan: see `Plan`.
        start: the checkpoint to go on from.

    Raises:
        FedemError: no node answers, or the strategy stops.
    """
    ours = strategy if isinstance(strategy, Resumable) else None
    model = initial if ours or start is None else give_memory(strategy, start.arrays)
    arrays = ArrayRecord() if ours else pack_arrays(model)
    done = kept = start.round if start else 0
    pending = start.pending if start else None  # the line of the last round, whose model is not evaluated yet
    known, fresh = list(start.failures) if start else [], list[Failure]()  # until the checkpoint, and since
    if ours:
        ours.users = plan.users
        ours.meet(grid, plan.timeout)
        if start is not None:
            ours.restore(start.arrays)

    def lost() -> list[Failure]:
        news = [asdict(failure) for failure in ours.failures] if ours else fresh
        return known + [failure for failure in news if failure not in known]  # nodes are met again on resuming

    final: Sums | None = None
    for round_ in range(done + 1, plan.rounds + 1):
        began, meter = time.perf_counter(), _Meter(round_)
        last = round_ == plan.rounds
        persist = plan.save is not None and (last or round_ % plan.checkpoint_every == 0)
        config = ConfigRecord({"persist": int(persist), "keep-from": kept})
        messages = strategy.configure_train(round_, arrays, config, grid)
        if ours is None:
            messages = meter.expected(messages)
        each = ours.message_bytes(round_) if ours else None
        replies = grid.send_and_receive(meter.sent(messages), timeout=plan.timeout)
        aggregated, metrics = strategy.aggregate_train(round_, meter.received(replies))
        if metrics is None or (ours is None and aggregated is None):
            raise FedemError(f"no usable reply in round {round_}: nothing was aggregated{meter.why()}")
        if ours is None and aggregated is not None:
            fresh += meter.failures()
            arrays = pack_arrays(unpack_arrays(aggregated))  # unpacked once, not by every node
        sums = plain_numbers(metrics)
        participants = len(ours.participants(round_)) if ours else plan.users
        line = _trained(round_, sums, participants, time.perf_counter() - began)
        _weigh(line, meter, each or meter.each())
        if pending is not None:  # this round's messages evaluated the previous round's model on receipt
            plan.emit(_evaluated(pending, sums, plan.protocol))
        pending = line
        if ours is None or last:
            began, meter = time.perf_counter(), _Meter(round_)
            final = _evaluate(strategy, grid, arrays, plan, meter, ours)
            fresh += meter.failures()
            _weigh(line, meter, (0.0, 0.0) if ours else meter.each())
            line["seconds"] += time.perf_counter() - began
            plan.emit(_evaluated(line, final, plan.protocol, meter.examples))
            pending = None
        if persist and plan.save is not None:
            server = ours.state() if ours else {**unpack_arrays(arrays), **memory_of(strategy)}
            plan.save(Checkpoint(round_, server, pending, lost()))
            kept = round_
    if final is None:  # resumed after the last checkpoint: only the final sums are missing
        meter = _Meter(plan.rounds)
        final = _evaluate(strategy, grid, arrays, plan, meter, ours)
        fresh += meter.failures()
    return Outcome(final, lost(), ours.diagnostics() if ours else {})


def group_edges(samples: np.ndarray) -> list[float]:
    """The four numbers of training interactions that cut the users into five groups of about equal size."""
    return [float(x) for x in np.quantile(samples[samples > 0], [0.2, 0.4, 0.6, 0.8])]


def _evaluate(
    strategy: Strategy, grid: Grid, arrays: ArrayRecord, plan: Plan, meter: _Meter, ours: Resumable | None
) -> Sums:
    """Evaluate the newest model in messages of its own; our strategies' clients also return the sums of five groups."""
    config = ConfigRecord({"final": 1})
    if ours:
        config["group-edges"] = ",".join(str(edge) for edge in group_edges(ours.samples))
    messages = strategy.configure_evaluate(meter.round, arrays, config, grid)
    if ours is None:
        messages = meter.expected(messages)
    replies = grid.send_and_receive(meter.sent(messages), timeout=plan.timeout)
    metrics = strategy.aggregate_evaluate(meter.round, meter.received(replies))
    if metrics is None:
        raise FedemError(f"no node evaluated round {meter.round}{meter.why()}")
    return plain_numbers(metrics)


def _trained(round_: int, sums: Sums, participants: int, seconds: float) -> Line:
    """The part of a metrics line that is known when training ends; see `_weigh` for the bytes."""
    loss = sums["loss-total"] / max(1.0, sums["num-examples"]) if "loss-total" in sums else sums.get("train-loss")
    return {
        "round": round_,
        "train_loss": loss,
        "seconds": seconds,
        "participants": participants,
        "bytes_up": 0.0,
        "bytes_down": 0.0,
        "node_bytes_up": 0,
        "node_bytes_down": 0,
    }


def _weigh(line: Line, meter: _Meter, each: tuple[float, float]) -> None:
    """Add a phase's bytes to a line: those of a user's own messages, and what really crossed in all."""
    line["bytes_up"] += each[0]
    line["bytes_down"] += each[1]
    line["node_bytes_up"] += meter.up
    line["node_bytes_down"] += meter.down


def _evaluated(line: Line, sums: Sums, protocol: str, users: float = 0.0) -> Line:
    """Complete a metrics line. Stock strategies give means over `users`, ours sums and the number of users behind."""
    means = means_of(sums) if "users" in sums else sums
    out = {
        **line,
        "evaluated_users": int(sums.get("users", users)),
        **nested(means, protocol),
        "rho": rho_statistics(sums),
    }
    if sums.get("nonfinite"):
        out["nonfinite_scores"] = int(sums["nonfinite"])
    return out
