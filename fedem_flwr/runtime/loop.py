"""The rounds of a run, the same for every strategy and every runtime.

Flower's own `Strategy.start` cannot be stopped and resumed; this loop calls the same four methods of the strategy and
adds checkpoints, metrics lines and byte counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid

from fedem_flwr.errors import FedemError
from fedem_flwr.messages.admission import Admission, TooFewContributions
from fedem_flwr.messages.wire import plain_numbers
from fedem_flwr.runtime.best import BestRound
from fedem_flwr.runtime.checkpoint import Best, Checkpoint
from fedem_flwr.runtime.lines import (
    Failure,
    Line,
    Meter,
    Sums,
    evaluated_line,
    measured_again,
    trained_line,
    unevaluated_line,
    weigh,
)
from fedem_flwr.runtime.resumable import Resumable

REPEAT_PAUSE = 1.0  # seconds until a round with too few contributions is repeated


@dataclass
class Plan:
    """How many rounds, and what happens around them.

    Attributes:
        emit: called with each round's finished metrics line.
        amend: called with a round whose line was handed out, and how it changes.
        save: called with each checkpoint; not called without one.
        welcome: how nodes are met, where they come and go; None: they are known.
        patience: seconds that a round with too few contributions is repeated.
        kept: rounds of the checkpoints that are there, ascending. keep: how many stay.
    """

    rounds: int
    timeout: float
    checkpoint_every: int
    protocol: str
    users: int
    emit: Callable[[Line], None]
    amend: Callable[[int, Callable[[Line], Line]], None] | None = None
    save: Callable[[Checkpoint], None] | None = None
    welcome: Admission | None = None
    patience: float = 0.0
    kept: tuple[int, ...] = ()
    keep: int = 1


@dataclass
class Outcome:
    """What is known after the last round, beyond the metrics lines.

    Attributes:
        final_sums: metric sums of the last model, those of the groups of users included.
        failures: contributions left out, of the whole run.
        diagnostics: what the strategy shows; empty if there was no round left to carry out.
        peak_rss_bytes: see `surroundings.peak_rss_bytes`; 0 where it was not measured.
        served_round: the round whose model is served: the best one where clients keep nothing, else the last.
        caveats: what a reader of the results must be warned of.
    """

    final_sums: Sums = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    diagnostics: dict[str, object] = field(default_factory=dict)
    peak_rss_bytes: int = 0
    served_round: int = 0
    caveats: list[str] = field(default_factory=list)


def run_rounds(strategy: Resumable, grid: Grid, plan: Plan, start: Checkpoint | None = None) -> Outcome:
    """Carry out the rounds that are left.

    Args:
        strategy: new, whatever `start` is.
        grid: reaches the nodes.
        plan: see `Plan`.
        start: the checkpoint to go on from.

    Raises:
        FedemError: no node answers, or the strategy stops.
    """
    run = _Rounds(strategy, grid, plan, start)
    for round_ in range(run.kept + 1, plan.rounds + 1):
        run.carry_out(round_)
    return run.outcome()


class _Rounds:
    """A run under way.

    Attributes:
        kept: the last round with a checkpoint.
        pending: the line of a round that is over and whose model is not evaluated yet.
        final: metric sums of the last model that was evaluated in messages of its own.
    """

    def __init__(self, strategy: Resumable, grid: Grid, plan: Plan, start: Checkpoint | None) -> None:
        self.strategy, self.grid, self.plan = strategy, grid, plan
        self.kept = start.round if start else 0
        self.kept_rounds = plan.kept or (self.kept,)
        self.pending = start.pending if start else None
        self.final: Sums | None = None
        self._lost_before = list(start.failures) if start else list[Failure]()
        self._met = False
        strategy.users = plan.users
        self._meet(self.kept)
        if start is not None:
            strategy.restore(start.arrays)
        self.best = BestRound(strategy, start.best if start else None)
        if self.pending is not None:
            self.best.hold()

    def carry_out(self, round_: int) -> None:
        """One round: train, evaluate where that is due, and keep what is needed to go on from here."""
        strategy, plan = self.strategy, self.plan
        last = round_ == plan.rounds
        due = last or strategy.evaluates(round_)
        persist = plan.save is not None and (last or round_ % plan.checkpoint_every == 0)
        line = self._train(round_, persist)
        if due:
            self.pending = line
            self.best.hold()
        else:
            self._finish(unevaluated_line(line))
        if due and (last or not strategy.on_receipt):
            self._evaluate_apart(line)
        if persist and plan.save is not None:
            plan.save(Checkpoint(round_, strategy.state(), self.pending, self._lost(), self.best.best))
            self.kept, self.kept_rounds = round_, (*self.kept_rounds, round_)[-plan.keep :]

    def outcome(self) -> Outcome:
        """What is left to say, after the last round."""
        strategy, rounds = self.strategy, self.plan.rounds
        if self.final is None:  # resumed after the last checkpoint: only the final sums are missing
            self.final, _ = self._evaluate(rounds)
        served = self.best.best.round if self.best.best else rounds
        if self.best.best and served != rounds and strategy.sampled:
            self._measure_again(self.best.best)
        return Outcome(
            self.final, self._lost(), strategy.diagnostics(), served_round=served, caveats=strategy.caveats()
        )

    def _measure_again(self, best: Best) -> None:
        """Evaluate the best round on everybody, where it was found on a sample of the users."""
        last = self.strategy.state()
        self.strategy.restore(best.arrays)
        self._meet(best.round)
        sums, _ = self._evaluate(best.round, grouped=False)
        self.strategy.restore(last)
        if self.plan.amend is not None:
            self.plan.amend(best.round, lambda line: measured_again(line, sums, self.plan.protocol))

    def _meet(self, done: int) -> None:
        """Meet whoever came since the last time, after `done` rounds; once, where nodes do not come and go."""
        if self.plan.welcome is not None or not self._met:
            self.strategy.meet(self.grid, self.plan.timeout, self.plan.welcome, done)
            self._met = True

    def _train(self, round_: int, persist: bool) -> Line:
        """Train, as often as it takes; the replies also complete the line that is pending."""
        began = time.perf_counter()
        rounds = ",".join(map(str, self.kept_rounds))  # whose states nodes keep
        config = ConfigRecord({"persist": int(persist), "keep-from": rounds})
        while True:
            self._meet(round_ - 1)
            try:
                metrics, meter, each = self._ask_to_train(round_, config)
                break
            except TooFewContributions:
                if time.perf_counter() - began > self.plan.patience:
                    raise
                time.sleep(REPEAT_PAUSE)
        if metrics is None:
            raise FedemError(f"no usable reply in round {round_}: nothing was aggregated{self._why(round_)}")
        sums = plain_numbers(metrics)
        participants = len(self.strategy.participants(round_))
        line = trained_line(round_, sums, participants, time.perf_counter() - began)
        weigh(line, meter, each)
        if self.pending is not None:
            sampled = 0 if self.strategy.everybody(self.pending["round"]) else self.strategy.sampled
            self._finish(evaluated_line(self.pending, sums, self.plan.protocol, sampled=sampled))
        return line

    def _ask_to_train(
        self, round_: int, config: ConfigRecord
    ) -> tuple[MetricRecord | None, Meter, tuple[float, float] | None]:
        """One attempt: its metrics, what crossed, and what a user's own messages would take."""
        meter = Meter()
        messages = self.strategy.configure_train(round_, ArrayRecord(), config, self.grid)
        each = self.strategy.message_bytes(round_)
        replies = self.grid.send_and_receive(meter.sent(messages), timeout=self.plan.timeout)
        _, metrics = self.strategy.aggregate_train(round_, meter.received(replies))
        return metrics, meter, each

    def _evaluate_apart(self, line: Line) -> None:
        """The second phase of a round, which completes its line."""
        began = time.perf_counter()
        self._meet(line["round"])
        self.final, meter = self._evaluate(line["round"])
        weigh(line, meter, (0.0, 0.0) if self.strategy.on_receipt else None)  # there it is not part of a round
        line["seconds"] += time.perf_counter() - began
        sampled = 0 if self._on_everybody(line["round"]) else self.strategy.sampled
        self._finish(evaluated_line(line, self.final, self.plan.protocol, meter.examples, sampled))

    def _on_everybody(self, round_: int) -> bool:
        """Whether messages that only evaluate ask for everybody: of the last round, or one that comes back."""
        return self.strategy.on_receipt or round_ == self.plan.rounds or self.strategy.everybody(round_)

    def _evaluate(self, round_: int, *, grouped: bool = True) -> tuple[Sums, Meter]:
        """Evaluate the model in messages of its own; where users' activity is known, also five groups of it."""
        meter, config = Meter(), ConfigRecord({"final": 1, "everybody": int(self._on_everybody(round_))})
        edges = group_edges(self.strategy.samples) if grouped else []
        if edges:
            config["group-edges"] = ",".join(map(str, edges))
        messages = self.strategy.configure_evaluate(round_, ArrayRecord(), config, self.grid)
        replies = self.grid.send_and_receive(meter.sent(messages), timeout=self.plan.timeout)
        metrics = self.strategy.aggregate_evaluate(round_, meter.received(replies))
        if metrics is None:
            raise FedemError(f"no node evaluated round {round_}{self._why(round_)}")
        return plain_numbers(metrics), meter

    def _finish(self, line: Line) -> None:
        """Hand out a line that is complete."""
        self.pending = None
        self.plan.emit(line)
        self.best.evaluated(line)

    def _lost(self) -> list[Failure]:
        """Contributions left out, of the whole run."""
        before = {tuple(sorted(failure.items())) for failure in self._lost_before}  # nodes are met again on resuming
        news = [asdict(failure) for failure in self.strategy.failures]
        return self._lost_before + [failure for failure in news if tuple(sorted(failure.items())) not in before]

    def _why(self, round_: int) -> str:
        """The last failure of a round, to end a message with."""
        reasons = [failure.reason for failure in self.strategy.failures if failure.round == round_]
        return f": {reasons[-1]}" if reasons else ""


def group_edges(samples: np.ndarray) -> list[float]:
    """The four numbers of training interactions that cut the users into five groups of about equal size, if known."""
    known = samples[samples > 0]
    return [float(edge) for edge in np.quantile(known, [0.2, 0.4, 0.6, 0.8])] if len(known) else []
