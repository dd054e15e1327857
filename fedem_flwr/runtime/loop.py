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
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedem_flwr.errors import FedemError
from fedem_flwr.evaluation.cohort import means_of, nested, rho_statistics
from fedem_flwr.runtime.checkpoint import Checkpoint
from fedem_flwr.runtime.stock import give_memory, memory_of
from fedem_flwr.runtime.wire import pack_arrays, payload_bytes, plain_numbers, unpack_arrays

Line = dict[str, Any]
Sums = dict[str, float]


@runtime_checkable
class Resumable(Protocol):
    """What our strategies offer beyond Flower's interface."""

    failures: list[Any]
    samples: np.ndarray

    def meet(self, grid: Grid, timeout: float) -> None:
        """Learn which users live where."""

    def participants(self, round_: int) -> np.ndarray:
        """The users that train in a round."""

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
    """What is known after the last round, beyond the metrics lines."""

    final_sums: Sums = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    diagnostics: dict[str, object] = field(default_factory=dict)


class _Meter:
    """Counts the array bytes of messages as they pass, and notes the replies that are errors."""

    def __init__(self) -> None:
        self.down = self.up = 0
        self.errors: list[tuple[int, str]] = []  # node, reason

    def sent(self, messages: Iterable[Message]) -> Iterator[Message]:
        for message in messages:
            self.down += payload_bytes(message)
            yield message

    def received(self, replies: Iterable[Message]) -> Iterator[Message]:
        for reply in replies:
            self.up += payload_bytes(reply)
            if reply.has_error():
                reason = " ".join((reply.error.reason or "no reason given").split())
                self.errors.append((reply.metadata.src_node_id, reason))
            yield reply

    def failures(self, round_: int) -> list[dict[str, Any]]:
        """The errors in the form of our strategies' failures."""
        return [{"round": round_, "node": f"node {node}", "reason": reason} for node, reason in self.errors]

    def why(self) -> str:
        """The first error, to end a message with."""
        return f": {self.errors[0][1]}" if self.errors else ""


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
    failures = list(start.failures) if start else []
    if ours:
        ours.meet(grid, plan.timeout)
        if start is not None:
            ours.restore(start.arrays)

    def lost() -> list[dict[str, Any]]:
        return failures + ([asdict(failure) for failure in ours.failures] if ours else [])

    final: Sums | None = None
    for round_ in range(done + 1, plan.rounds + 1):
        began, meter = time.perf_counter(), _Meter()
        last = round_ == plan.rounds
        persist = plan.save is not None and (last or round_ % plan.checkpoint_every == 0)
        config = ConfigRecord({"persist": int(persist), "keep-from": kept})
        messages = strategy.configure_train(round_, arrays, config, grid)
        replies = grid.send_and_receive(meter.sent(messages), timeout=plan.timeout)
        aggregated, metrics = strategy.aggregate_train(round_, meter.received(replies))
        if metrics is None or (ours is None and aggregated is None):
            raise FedemError(f"no usable reply in round {round_}: nothing was aggregated{meter.why()}")
        if ours is None:
            failures += meter.failures(round_)
        arrays = aggregated if aggregated is not None else arrays
        sums = plain_numbers(metrics)
        participants = len(ours.participants(round_)) if ours else plan.users
        line = _trained(round_, sums, participants, meter, time.perf_counter() - began)
        if pending is not None:  # this round's messages evaluated the previous round's model on receipt
            plan.emit(_evaluated(pending, sums, plan.protocol))
        pending = line
        if ours is None or last:
            final = _evaluate(strategy, grid, arrays, round_, plan.timeout, ours)
            line["seconds"] = time.perf_counter() - began
            plan.emit(_evaluated(line, final, plan.protocol))
            pending = None
        if persist and plan.save is not None:
            server = ours.state() if ours else {**unpack_arrays(arrays), **memory_of(strategy)}
            plan.save(Checkpoint(round_, server, pending, lost()))
            kept = round_
    if final is None:  # resumed after the last checkpoint: only the final sums are missing
        final = _evaluate(strategy, grid, arrays, plan.rounds, plan.timeout, ours)
    return Outcome(final, lost(), ours.diagnostics() if ours else {})


def group_edges(samples: np.ndarray) -> list[float]:
    """The four numbers of training interactions that cut the users into five groups of about equal size."""
    return [float(x) for x in np.quantile(samples[samples > 0], [0.2, 0.4, 0.6, 0.8])]


def _evaluate(
    strategy: Strategy, grid: Grid, arrays: ArrayRecord, round_: int, timeout: float, ours: Resumable | None
) -> Sums:
    """Evaluate the newest model in messages of its own; our strategies' clients also return the sums of five groups."""
    config = ConfigRecord({"final": 1})
    if ours:
        config["group-edges"] = ",".join(str(edge) for edge in group_edges(ours.samples))
    messages = strategy.configure_evaluate(round_, arrays, config, grid)
    meter = _Meter()
    replies = grid.send_and_receive(messages, timeout=timeout)
    metrics = strategy.aggregate_evaluate(round_, meter.received(replies))
    if metrics is None:
        raise FedemError(f"no node evaluated round {round_}{meter.why()}")
    return plain_numbers(metrics)


def _trained(round_: int, sums: Sums, participants: int, meter: _Meter, seconds: float) -> Line:
    """The part of a metrics line that is known when training ends. Bytes are a user's mean, over participants."""
    loss = sums["loss-total"] / max(1.0, sums["num-examples"]) if "loss-total" in sums else sums.get("train-loss")
    return {
        "round": round_,
        "train_loss": loss,
        "seconds": seconds,
        "participants": participants,
        "bytes_up": meter.up / max(1, participants),
        "bytes_down": meter.down / max(1, participants),
    }


def _evaluated(line: Line, sums: Sums, protocol: str) -> Line:
    """Complete a metrics line. Stock strategies give means, ours sums and the number of users behind them."""
    means = means_of(sums) if "users" in sums else sums
    out = {**line, **nested(means, protocol), "rho": rho_statistics(sums)}
    if sums.get("nonfinite"):
        out["nonfinite_scores"] = int(sums["nonfinite"])
    return out
