"""The rounds of a run: one loop for every strategy (ours or stock Flower) and every runtime.

Flower's own `Strategy.start` cannot be stopped and resumed; this loop calls the same four methods of the strategy and
adds checkpoints, metrics lines and byte counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedem_flwr.errors import FedemError
from fedem_flwr.messages.admission import Admission, TooFewContributions, greetings, meeting_seconds, sessions_of
from fedem_flwr.messages.wire import pack_arrays, plain_numbers, unpack_arrays
from fedem_flwr.report.run_directory import number_at
from fedem_flwr.report.selection import evaluated_users
from fedem_flwr.runtime.checkpoint import Best, Checkpoint
from fedem_flwr.runtime.lines import (
    Failure,
    Line,
    Meter,
    Sums,
    evaluated_line,
    trained_line,
    unevaluated_line,
    weigh,
)
from fedem_flwr.runtime.stock import give_memory, memory_of

REPEAT_PAUSE = 1.0  # seconds until a round with too few contributions is repeated


@runtime_checkable
class Resumable(Protocol):
    """What our strategies offer beyond Flower's interface."""

    users: int
    failures: list[Any]
    samples: np.ndarray
    stateless: bool  # clients keep nothing between rounds: the state of any round can be served

    def meet(self, grid: Grid, timeout: float, welcome: Admission | None = None, round_: int = 0) -> None:
        """Learn which users live where, after `round_`."""

    def participants(self, round_: int) -> np.ndarray:
        """The users that train in a round."""

    def evaluates(self, round_: int) -> bool:
        """Whether a round's model is evaluated; the last round's is in any case."""

    def message_bytes(self, round_: int) -> tuple[float, float]:
        """Bytes up and down that a user's own messages would take."""

    def download(self, users: np.ndarray) -> dict[str, np.ndarray]:
        """What a node with these users is sent."""

    def settings(self, round_: int) -> dict[str, int | float | str]:
        """Numbers and words that go with it."""

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
        evaluate_every: rounds between evaluations of stock strategies; ours say themselves which rounds they evaluate.
        welcome: how nodes are met, where they come and go; None: they are known.
        patience: seconds that a round with too few contributions is repeated.
    """

    rounds: int
    timeout: float
    checkpoint_every: int
    protocol: str
    users: int
    emit: Callable[[Line], None]
    save: Callable[[Checkpoint], None] | None = None
    evaluate_every: int = 1
    welcome: Admission | None = None
    patience: float = 0.0


@dataclass
class Outcome:
    """What is known after the last round, beyond the metrics lines.

    Attributes:
        final_sums: metric sums of the last model, those of the groups of users included.
        failures: contributions left out, of the whole run.
        diagnostics: what the strategy shows; empty if there was no round left to carry out.
        peak_rss_bytes: see `run.peak_rss_bytes`; 0 where it was not measured.
        served_round: the round whose model is served: the best one where clients keep nothing, else the last.
    """

    final_sums: Sums = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    diagnostics: dict[str, object] = field(default_factory=dict)
    peak_rss_bytes: int = 0
    served_round: int = 0


class _Served:
    """The best round's state so far, of strategies whose clients keep nothing between rounds.

    Best by validation NDCG@10 among the rounds that were evaluated on the most users, as `selection.best_line` has it.
    A round's state waits here until the round's evaluation is known, which is a round later.
    """

    def __init__(self, strategy: Resumable | None, best: Best | None) -> None:
        self._strategy = strategy if strategy is not None and strategy.stateless else None
        self._waiting: dict[str, np.ndarray] = {}
        self.best = best

    def hold(self) -> None:
        """Note the strategy's state of a round that will be evaluated."""
        if self._strategy is not None:
            self._waiting = self._strategy.state()

    def evaluated(self, line: Line) -> None:
        """Take the state that waits for this line if it is the best."""
        waiting, self._waiting = self._waiting, {}
        score = number_at(line, "validation", "ndcg@10")
        if self._strategy is None or score is None:
            return
        users = int(evaluated_users(line))
        if self.best is None or (users, score) > (self.best.users, self.best.score):
            self.best = Best(line["round"], users, score, waiting)


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
    meeting = _Meeting(grid, plan, ours)
    if ours:
        ours.users = plan.users
        meeting.before(done)
        if start is not None:
            ours.restore(start.arrays)
    served = _Served(ours, start.best if start else None)
    if pending is not None:
        served.hold()

    def lost() -> list[Failure]:
        news = [asdict(failure) for failure in ours.failures] if ours else fresh
        before = {tuple(sorted(failure.items())) for failure in known}  # nodes are met again on resuming
        return known + [failure for failure in news if tuple(sorted(failure.items())) not in before]

    def finish(line: Line) -> None:
        plan.emit(line)
        served.evaluated(line)

    final: Sums | None = None
    for round_ in range(done + 1, plan.rounds + 1):
        began = time.perf_counter()
        last = round_ == plan.rounds
        due = last or (ours.evaluates(round_) if ours else round_ % plan.evaluate_every == 0)
        persist = plan.save is not None and (last or round_ % plan.checkpoint_every == 0)
        config = ConfigRecord({"persist": int(persist), "keep-from": kept})
        while True:
            meeting.before(round_ - 1)
            meter = Meter(round_)
            messages = strategy.configure_train(round_, arrays, config, grid)
            if ours is None:
                messages = meter.expected(messages)
            each = ours.message_bytes(round_) if ours else None
            replies = grid.send_and_receive(meter.sent(messages), timeout=plan.timeout)
            try:
                aggregated, metrics = strategy.aggregate_train(round_, meter.received(replies))
                break
            except TooFewContributions:
                if time.perf_counter() - began > plan.patience:
                    raise
                time.sleep(REPEAT_PAUSE)
        if metrics is None or (ours is None and aggregated is None):
            raise FedemError(f"no usable reply in round {round_}: nothing was aggregated{meter.why()}")
        if ours is None and aggregated is not None:
            fresh += meter.failures()
            arrays = pack_arrays(unpack_arrays(aggregated))  # unpacked once, not by every node
        sums = plain_numbers(metrics)
        participants = len(ours.participants(round_)) if ours else plan.users
        line = trained_line(round_, sums, participants, time.perf_counter() - began)
        weigh(line, meter, each or meter.each())
        if pending is not None:  # this round's messages evaluated the previous round's model on receipt
            finish(evaluated_line(pending, sums, plan.protocol))
        pending = line if due else None
        if due:
            served.hold()
        else:
            finish(unevaluated_line(line))
        if pending is not None and (ours is None or last):
            meeting.before(round_)
            began, meter = time.perf_counter(), Meter(round_)
            final = _evaluate(strategy, grid, arrays, plan, meter, ours)
            fresh += meter.failures()
            weigh(line, meter, (0.0, 0.0) if ours else meter.each())
            line["seconds"] += time.perf_counter() - began
            finish(evaluated_line(line, final, plan.protocol, meter.examples))
            pending = None
        if persist and plan.save is not None:
            server = ours.state() if ours else {**unpack_arrays(arrays), **memory_of(strategy)}
            plan.save(Checkpoint(round_, server, pending, lost(), served.best))
            kept = round_
    if final is None:  # resumed after the last checkpoint: only the final sums are missing
        meter = Meter(plan.rounds)
        final = _evaluate(strategy, grid, arrays, plan, meter, ours)
        fresh += meter.failures()
    served_round = served.best.round if served.best else plan.rounds
    return Outcome(final, lost(), ours.diagnostics() if ours else {}, served_round=served_round)


class _Meeting:
    """Meets nodes between rounds where they come and go; else ours once, and those of stock strategies never."""

    def __init__(self, grid: Grid, plan: Plan, ours: Resumable | None) -> None:
        self._grid, self._plan, self._ours = grid, plan, ours
        self._greeted: dict[int, Hashable] = {}
        self._met = False

    def before(self, done: int) -> None:
        """Meet whoever came since the last time; `done` rounds are over."""
        plan, ours = self._plan, self._ours
        if ours is not None and (plan.welcome is not None or not self._met):
            ours.meet(self._grid, plan.timeout, plan.welcome, done)
        elif ours is None and plan.welcome is not None:
            present = sessions_of(self._grid)
            new = [node for node, session in present.items() if self._greeted.get(node) != session]
            if new:
                seconds = meeting_seconds(len(new), plan.timeout)
                list(self._grid.send_and_receive(greetings(plan.welcome, new, done), timeout=seconds))
            self._greeted = dict(present)
        self._met = True


def group_edges(samples: np.ndarray) -> list[float]:
    """The four numbers of training interactions that cut the users into five groups of about equal size."""
    return [float(x) for x in np.quantile(samples[samples > 0], [0.2, 0.4, 0.6, 0.8])]


def _evaluate(
    strategy: Strategy, grid: Grid, arrays: ArrayRecord, plan: Plan, meter: Meter, ours: Resumable | None
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
