"""Flower's Ray simulation: our rounds against those of stock Flower, whose clients do nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from fedem_flwr.bench.rows import Row, Series
from fedem_flwr.bench.suite import Benchmark, Setting
from fedem_flwr.bench.worlds import config_of, shape
from fedem_flwr.config import Config
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.pulse import watched_by
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.inputs import adapted, load_interactions, split_of
from fedem_flwr.runtime.prepared import PreparedRun
from fedem_flwr.runtime.simulation import surroundings_of

_ITEMS, _DIM = 1600, 16  # a table of 100 KB
_BLOCKS = 2  # simulations of each side; each starts Ray anew


def stock_rounds(users: int, rounds: int, wall: Callable[[], float]) -> list[float]:
    """Seconds of rounds of FedAvg, one user a node, whose clients send back what they got; nothing is evaluated.

    Nothing of ours is in it: Flower's simulation with Flower's grid, on as many actors as ours.
    """
    app, main = ClientApp(), ServerApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message)

    moments: list[float] = []

    @main.main()
    def server(grid: Grid, context: Context) -> None:
        strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=users, min_available_nodes=users)
        start = ArrayRecord({"items": Array(np.zeros((_ITEMS, _DIM), np.float32))})
        # Called before the first round and after each.
        strategy.start(grid, start, rounds, evaluate_fn=lambda round_, arrays: moments.append(wall()))

    with surroundings_of(users) as (_, backend):
        run_simulation(main, app, users, backend_config=backend)
    return [after - before for before, after in pairwise(moments)]


def our_rounds(config: Config, folder: Path) -> list[float]:
    """Seconds of rounds of a run, by its own lines."""
    split = split_of(config, load_interactions(config))
    run = PreparedRun.create(RunDirectory(folder).create(), adapted(config, split), split)
    seconds: list[float] = []
    carry_out_rounds(run, lambda line: seconds.append(line["seconds"]))
    return seconds


def _against_stock(users_per_node: int, label: str, benchmark: Benchmark, setting: Setting) -> Row:
    users = setting.either(40, 1000)
    ours: list[float] = []
    stock: list[float] = []
    for block in range(_BLOCKS):
        rounds = math.ceil((setting.turns - len(ours)) / (_BLOCKS - block))  # the first of each block is not counted
        run = {"run": {"runtime": "ray", "users_per_node": users_per_node, "rounds": rounds + 1}}
        config = config_of("fedmf", shape(users, _ITEMS, 20.0), run)
        with watched_by(None):
            ours += our_rounds(config, setting.folder / f"ours-{block}")[1 : rounds + 1]
            stock += stock_rounds(users, rounds + 1, setting.clock.wall)[1:]
        setting.tell(len(ours))
    series = [Series(label=label, wall=tuple(ours)), Series(label="stock Flower", wall=tuple(stock))]
    words = f"{users} users, a table of {_ITEMS} rows of {_DIM}; {_BLOCKS} simulations of each; an actor a core"
    return benchmark.row(words, series, None, "ours trains and evaluates, stock clients do nothing")


SIMULATION = (
    Benchmark(
        "ray/cohorts",
        "a round of fedmf over Ray in two cohorts, against FedAvg of stock Flower, one user a node",
        partial(_against_stock, 0, "cohorts"),
        {"ray": "pip install 'flwr[simulation]'"},
    ),
    Benchmark(
        "ray/one-user",
        "a round of fedmf over Ray, one user a node, against FedAvg of stock Flower",
        partial(_against_stock, 1, "one user a node"),
        {"ray": "pip install 'flwr[simulation]'"},
        quick=False,
    ),
)
