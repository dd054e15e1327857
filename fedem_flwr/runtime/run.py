"""A whole run: prepare the directory, reach the clients, carry out the rounds."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

from flwr.serverapp import Grid

from fedem_flwr.client_app import build_client_app
from fedem_flwr.config import Config, load_resolved
from fedem_flwr.errors import InputError
from fedem_flwr.models.mf import initial_table
from fedem_flwr.protocol.splits import Split
from fedem_flwr.report.run_directory import CONFIG, METRICS, RunDirectory
from fedem_flwr.runtime.checkpoint import Checkpoint, Checkpoints
from fedem_flwr.runtime.inprocess import run_inprocess
from fedem_flwr.runtime.inputs import build_strategy
from fedem_flwr.runtime.lines import Line
from fedem_flwr.runtime.loop import Outcome, Plan, run_rounds
from fedem_flwr.runtime.node import SPLIT_FOLDER, STATE_FOLDER, NodeHost, node_count
from fedem_flwr.runtime.state_store import DiskStateStore
from fedem_flwr.runtime.surroundings import peak_rss_bytes
from fedem_flwr.settings import resolve_device


@dataclass
class PreparedRun:
    """A run whose directory holds its configuration and split."""

    directory: RunDirectory
    config: Config
    split: Split

    @classmethod
    def create(
        cls, directory: RunDirectory, config: Config, split: Split, command: str = "", *, saved: bool = False
    ) -> PreparedRun:
        """Write the inputs of a new run; the configuration last, as it says that all is there.

        Args:
            saved: whether the split is in its folder already.
            command: what the report says made the run; by default this process's `fedem` command.
        """
        if not saved:
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
            evaluate_every=config.evaluation.every,
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


def checkpointed(directory: RunDirectory) -> Checkpoint | None:
    """The newest checkpoint of a run, or None."""
    return Checkpoints(directory.checkpoint_dir).load()
