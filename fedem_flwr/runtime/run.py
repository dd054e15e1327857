"""A whole run: prepare the directory, reach the clients, carry out the rounds, write down what came out."""

from __future__ import annotations

import inspect
import math
import os
import resource
import shlex
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedem_flwr.client_app import build_client_app
from fedem_flwr.config import Config, load_resolved
from fedem_flwr.data import KNOWN_DATASETS, Columns, Interactions, load_dataset
from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.evaluation.cohort import means_of, nested
from fedem_flwr.models.mf import initial_table
from fedem_flwr.protocol.splits import Split, make_split
from fedem_flwr.registry import STOCK_PREFIX, find
from fedem_flwr.report.run_directory import CONFIG, METRICS, RunDirectory
from fedem_flwr.report.selection import Selected, best_line, reported_key
from fedem_flwr.runtime.checkpoint import Checkpoint, Checkpoints
from fedem_flwr.runtime.inprocess import run_inprocess
from fedem_flwr.runtime.loop import Line, Outcome, Plan, run_rounds
from fedem_flwr.runtime.node import SPLIT_FOLDER, STATE_FOLDER, NodeHost, node_count
from fedem_flwr.runtime.state_store import DiskStateStore
from fedem_flwr.settings import resolve_device

GROUPS = 5
BYTES = ("bytes_up", "bytes_down", "node_bytes_up", "node_bytes_down")  # of a metrics line
DEFAULT_MIN_INTERACTIONS = 10


def load_interactions(config: Config) -> Interactions:
    """The data set that a configuration names."""
    data = config.data
    layout = Columns(
        user=data.user_column,
        item=data.item_column,
        rating=data.rating_column,
        time=data.time_column,
        separator=data.separator,
        header=data.header,
    )
    columns = None if layout == Columns() else layout
    folder = Path(data.data_dir) if data.data_dir else None
    return load_dataset(data.dataset, folder, columns=columns, seed=config.run.seed, synthetic=data.synthetic)


def split_of(config: Config, interactions: Interactions) -> Split:
    """The leave-one-out split under the configuration's protocol."""
    data, known = config.data, KNOWN_DATASETS.get(config.data.dataset)
    minimum = data.min_interactions or (known.min_interactions(data.protocol) if known else DEFAULT_MIN_INTERACTIONS)
    return make_split(interactions, data.protocol, seed=config.run.seed, min_interactions=minimum)


def build_strategy(config: Config, items: int) -> Strategy:
    """The strategy a configuration names: ours take the configuration, stock ones their keyword arguments.

    Raises:
        InputError: there is no such strategy, or it does not take these options.
    """
    name = config.method.strategy
    kind = find("strategies", name)
    options = dict(config.method.options)
    stock = name.startswith(STOCK_PREFIX)
    if stock:
        parameters = inspect.signature(kind).parameters
        for minimum in ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"):
            if minimum in parameters:
                options.setdefault(minimum, 1)  # Flower's default of 2 waits for ever where one node hosts everybody
    try:
        built: Strategy = kind(**options) if stock else kind(config, items, **options)
    except (TypeError, ValueError) as error:
        raise InputError(f"[method.options] does not fit the strategy '{name}': {error}") from None
    return built


def check_method(config: Config) -> None:
    """Find out before anything is read or written whether the strategy and the client can be made.

    Raises:
        InputError: they cannot.
    """
    build_strategy(config, 1)
    find("clients", config.method.client)


@dataclass
class PreparedRun:
    """A run whose directory holds its configuration and split."""

    directory: RunDirectory
    config: Config
    split: Split

    @classmethod
    def create(cls, directory: RunDirectory, config: Config, split: Split, command: str = "") -> PreparedRun:
        """Write the inputs of a new run; the configuration last, as it says that all is there.

        Args:
            command: what the report says made the run; by default this process's `fedem` command.
        """
        split.save(directory.path / SPLIT_FOLDER)
        directory.write_command(command or shlex.join(["fedem", *sys.argv[1:]]))
        directory.write_config(config.to_toml())
        return cls(directory, config, split)

    @classmethod
    def open(cls, directory: RunDirectory) -> PreparedRun:
        """Read the inputs of a run.

        Raises:
            InputError: they are missing or damaged.
        """
        return cls(directory, load_resolved(directory.path / CONFIG), Split.load(directory.path / SPLIT_FOLDER))

    @property
    def nodes(self) -> int:
        """Flower nodes of the run; Ray gets two where nothing is said, as each is a process."""
        run = self.config.run
        each = run.users_per_node or (math.ceil(self.split.users / 2) if run.runtime == "ray" else 0)
        return node_count(self.split.users, each)

    def server(self, on_line: Callable[[Line], None], *, resume: bool = False) -> Callable[[Grid], Outcome]:
        """What the server does once it has a grid: the rounds that are left, with lines and checkpoints written.

        Args:
            on_line: called with every finished metrics line, after it was written.
            resume: go on from the newest checkpoint, if there is one.
        """
        config, run, model = self.config, self.config.run, self.config.model
        checkpoints = Checkpoints(self.directory.checkpoint_dir)
        start = checkpoints.load() if resume else None
        if resume:
            # A node that misses its next round must not go on from what the dead run made of that.
            DiskStateStore(self.directory.path / STATE_FOLDER).drop_after(start.round if start else 0)
            first = 1 if start is None else start.round + (0 if start.pending else 1)  # line that is written next
            if self.directory.truncate_metrics(first) != first - 1:
                raise InputError(
                    f"{self.directory.path / METRICS} lacks lines of rounds before {first}: the run cannot be resumed; "
                    "start it again"
                )

        def emit(line: Line) -> None:
            self.directory.append_metrics(line)
            on_line(line)

        plan = Plan(
            rounds=run.rounds,
            timeout=run.round_timeout,
            checkpoint_every=run.checkpoint_every,
            protocol=config.data.protocol,
            users=self.split.users,
            emit=emit,
            save=checkpoints.save,
        )

        def serve(grid: Grid) -> Outcome:
            table = initial_table(self.split.items, model.dim, model.init_std, run.seed).numpy()
            strategy = build_strategy(config, self.split.items)
            return run_rounds(strategy, grid, {"item_table": table}, plan, start)

        return serve

    def carry_out(self, on_line: Callable[[Line], None], *, resume: bool = False) -> Outcome:
        """Run the rounds that are left, on the configured runtime; arguments as for `server`."""
        outcome = self._on_runtime(self.server(on_line, resume=resume))
        return replace(outcome, peak_rss_bytes=peak_rss_bytes())  # now: controls may need more

    def _on_runtime(self, server: Callable[[Grid], Outcome]) -> Outcome:
        run = self.config.run
        device = resolve_device(run.device)
        run_dir = self.directory.path.resolve()
        if run.runtime == "inprocess":
            host = NodeHost(run_dir, self.nodes, run.threads, resident=True)
            return run_inprocess(build_client_app(host), server, nodes=self.nodes, run_config={})
        from fedem_flwr.runtime.simulation import run_simulation_runtime  # Ray takes seconds to import

        threads = max(1, run.threads)
        host = NodeHost(run_dir, self.nodes, threads)
        gpus = 0.0 if device.type == "cpu" else 1.0 / min(self.nodes, os.cpu_count() or 1)
        return run_simulation_runtime(
            build_client_app(host), server, nodes=self.nodes, run_config={}, cpus_per_node=threads, gpus_per_node=gpus
        )


def summarise(
    run: PreparedRun, lines: list[Line], outcome: Outcome, controls: dict[str, Any], notes: list[str]
) -> dict[str, Any]:
    """summary.json of a finished run."""
    config, split = run.config, run.split
    rules: tuple[Selected, Selected] = ("best_validation", "best_test")
    shown: dict[str, Line] = {rule: best_line(lines, rule) for rule in rules} | {"last": lines[-1]}
    warmed = [line["seconds"] for line in lines[1:]] or [line["seconds"] for line in lines]
    return {
        "dataset": split.dataset,
        "method": config.method.name,
        "title": config.method.title,
        "protocol": split.protocol,
        "runtime": config.run.runtime,
        "nodes": run.nodes,
        "seed": config.run.seed,
        "rounds": len(lines),
        "users": split.users,
        "items": split.items,
        "interactions": split.interactions,
        "has_times": split.has_times,
        "selected": reported_key(split.protocol),
        "metrics": {name: {"round": line["round"], **line["test"]} for name, line in shown.items()},
        "controls": controls,
        "seconds_per_round": statistics.median(warmed),
        **{name: statistics.mean(line[name] for line in lines) for name in BYTES},
        "peak_rss_bytes": outcome.peak_rss_bytes,
        "failures": len(outcome.failures),
        "device": str(resolve_device(config.run.device)),
        "command": run.directory.read_command(),
        "notes": notes,
    }


def diagnose(run: PreparedRun, lines: list[Line], outcome: Outcome) -> dict[str, Any]:
    """diagnostics.json: what the report draws beyond the metrics lines.

    A strategy that had no round left to carry out has no weights: those that were written before are kept.
    """
    with_rho = {line["round"]: line["rho"]["histogram"] for line in lines if line.get("rho")}
    shown = sorted({_nearest(with_rho, target) for target in (2, 10, 30, 100)}) if with_rho else []
    rho = {"edges": np.linspace(0, 1, 21).tolist(), "histograms": {str(r): with_rho[r] for r in shown}}
    groups = []
    for index in range(GROUPS):
        prefix = f"group-{index}/"
        means = means_of(outcome.final_sums, prefix)
        if means:
            users = outcome.final_sums[f"{prefix}users"]
            mean_interactions = outcome.final_sums[f"{prefix}interactions"] / users
            test = nested(means, run.split.protocol)["test"]
            groups.append(
                {"label": str(index + 1), "users": int(users), "mean_interactions": mean_interactions, **test}
            )
    if len(groups) > 1:  # ties may leave fewer than five
        groups[0]["label"] += " (sparsest)"
        groups[-1]["label"] += " (most active)"
    return {
        "weights": None if outcome.diagnostics else _weights_before(run.directory),
        **outcome.diagnostics,
        "rho": rho if with_rho else None,
        "groups": groups or None,
        "failures": outcome.failures,
    }


def _weights_before(directory: RunDirectory) -> object:
    try:
        return directory.read_diagnostics().get("weights")
    except FedemError:  # not there, or damaged
        return None


def _nearest(rounds: Iterable[int], target: int) -> int:
    return min(rounds, key=lambda round_: abs(round_ - target))


def peak_rss_bytes() -> int:
    """The largest resident memory of this process so far; of a child that has ended where that is more.

    In one process it covers reading the data, training and evaluation, and all that the process did before: also runs
    that were carried out earlier beside this one. Ray's own processes are nobody's children and not covered.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return int(max(own, children)) * unit


def checkpointed(directory: RunDirectory) -> Checkpoint | None:
    """The newest checkpoint of a run, or None."""
    return Checkpoints(directory.checkpoint_dir).load()
