"""Whole rounds and whole runs of FedEM, against the plain per-client loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch

from fedem_flwr.bench.plain_loop import PlainFedEM, load
from fedem_flwr.bench.rows import Row, Series
from fedem_flwr.bench.suite import Benchmark, Setting
from fedem_flwr.bench.timing import Clock, Side, yardstick
from fedem_flwr.bench.worlds import config_of, shape, write_ratings
from fedem_flwr.config import Config
from fedem_flwr.experiment.flow import carry_out, prepare
from fedem_flwr.experiment.plan import plan
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.pulse import watched_by
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.inputs import load_interactions, split_of
from fedem_flwr.runtime.prepared import PreparedRun

_METHOD = "fedem-released"


def rounds_in_turns(
    config: Config,
    others: Sequence[Callable[[], object]],
    folder: Path,
    clock: Clock,
    on_turn: Callable[[list[list[tuple[float, float]]]], None] = lambda taken: None,
) -> list[list[tuple[float, float]]]:
    """Carry out a run, and between two of its rounds each of the others once.

    Args:
        others: what is called after each round.
        on_turn: called after each turn with what is returned in the end.

    Returns:
        seconds by the clock and of the processor: of each round of ours, then of each call of the others. The first
        of each are a warm-up.
    """
    directory = RunDirectory(folder).create()
    split = split_of(config, load_interactions(config))
    taken: list[list[tuple[float, float]]] = [[] for _ in range(1 + len(others))]
    began = (clock.wall(), clock.cpu())

    def take_turns(line: dict[str, Any]) -> None:
        nonlocal began
        for place, call in enumerate((None, *others)):
            if call is not None:
                call()
            now = (clock.wall(), clock.cpu())
            taken[place].append((now[0] - began[0], now[1] - began[1]))
            began = now
        on_turn(taken)
        began = (clock.wall(), clock.cpu())

    run = PreparedRun.create(directory, config, split)
    began = (clock.wall(), clock.cpu())
    carry_out_rounds(run, take_turns)
    return taken


def _world(setting: Setting) -> tuple[dict[str, Any], str]:
    users, items, mean = setting.either((30, 300, 30.0), (943, 1682, 106.0))
    return shape(users, items, mean), f"{users} users, {items} items, {mean:g} rows a user"


def _ratings(setting: Setting) -> tuple[Path, str]:
    data, words = _world(setting)
    return write_ratings(config_of(_METHOD, data), setting.folder / "ratings.csv"), words


def _settings(setting: Setting, rounds: int) -> dict[str, dict[str, Any]]:
    return {"run": {"rounds": rounds, "threads": setting.threads, "device": "cpu"}}


def on_one_thread(call: Callable[[], object]) -> None:
    """The plain loop's small operations are slower on two threads than on one: it gets what is best for it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        call()
    finally:
        torch.set_num_threads(threads)


def _round(benchmark: Benchmark, setting: Setting) -> Row:
    path, words = _ratings(setting)
    plain = PlainFedEM(*load(path), weights="closed", fetch="batches")
    data = {"dataset": str(path), "protocol": "paper"}
    config = config_of(_METHOD, data, _settings(setting, setting.turns + 1))
    stick = yardstick()
    repeated = range(max(1, round(setting.least / 0.002)))  # it takes about 2 ms
    others = [lambda: on_one_thread(plain.round), lambda: [stick.call() for _ in repeated]]
    with watched_by(None):
        taken = rounds_in_turns(
            config, others, setting.folder / "run", setting.clock, lambda taken: setting.tell(len(taken[-1]) - 1)
        )
    ours, theirs, sticks = (
        Series(label=label, wall=tuple(w for w, _ in one[1:]), cpu=tuple(c for _, c in one[1:]))
        for label, one in zip(("in one process", "plain loop", stick.label), taken, strict=True)
    )
    return benchmark.row(
        words,
        [ours, theirs],
        sticks,
        "ours evaluates and sends messages, too; the plain loop has one thread, which is best for it",
    )


def _run(benchmark: Benchmark, setting: Setting) -> Row:
    path, words = _ratings(setting)
    rounds, number = 3, count()
    options = {
        "data": {"dataset": str(path), "protocol": "paper"},
        "method": {"name": _METHOD},
        "evaluation": {"controls": False, "local_only": False},
        **_settings(setting, rounds),
    }

    def ours() -> None:
        with prepare(
            plan({}, options, origin="bench"), setting.folder / f"run-{next(number)}", command="bench"
        ) as runs:
            carry_out(runs)

    def plain() -> None:
        method = PlainFedEM(*load(path), weights="closed", fetch="batches")
        for _ in range(rounds):
            method.round()
            method.evaluate()

    return benchmark.ratio(
        setting,
        Side("fedem run", ours),
        Side("plain loop", lambda: on_one_thread(plain)),
        f"{words}, {rounds} rounds",
        "from a file to the report, which the plain loop does not write",
    )


WHOLE = (
    Benchmark(
        "whole/round", f"a round of {_METHOD}: ours, with messages and evaluation, against the plain loop", _round
    ),
    Benchmark(
        "whole/run", f"a whole run of {_METHOD}, from a file to its report, against the plain loop", _run, quick=False
    ),
)
