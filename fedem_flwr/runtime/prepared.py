"""A run whose directory is prepared: its configuration, its data, and what the server does with a grid."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass

from flwr.serverapp import Grid

from fedem_flwr.config import Config
from fedem_flwr.errors import InputError
from fedem_flwr.files import close_to_others
from fedem_flwr.locking import Lock
from fedem_flwr.messages.admission import Admission
from fedem_flwr.nodes.host import SPLIT_FOLDER, STATE_FOLDER, node_count
from fedem_flwr.nodes.state_store import DiskStateStore
from fedem_flwr.protocol.shards import FEDERATION_FOLDER, Federation
from fedem_flwr.protocol.split import Split, SplitFacts
from fedem_flwr.report.run_directory import METRICS, RunDirectory
from fedem_flwr.runtime.checkpoint import Checkpoint, Checkpoints
from fedem_flwr.runtime.consent import read_config, write_config
from fedem_flwr.runtime.inputs import build_strategy
from fedem_flwr.runtime.lines import Line
from fedem_flwr.runtime.loop import Outcome, Plan, run_rounds


@dataclass
class PreparedRun:
    """A run whose directory holds its configuration and, for whoever has the data, the split.

    Attributes:
        facts: what the server knows of the split; or the split itself.
        lock: of the directory, for a process that is started to write there.
    """

    directory: RunDirectory
    config: Config
    facts: SplitFacts
    lock: Lock | None = None

    @classmethod
    def create(
        cls,
        directory: RunDirectory,
        config: Config,
        data: Split | Federation,
        command: str = "",
        *,
        saved: bool = False,
    ) -> PreparedRun:
        """Write the inputs of a new run; the configuration last, as it says that all is there.

        Args:
            data: the split, or what is known of one that is spread over nodes.
            saved: whether it is in its folder already.
            command: what the report says made the run; by default this process's `fedem` command.
        """
        if not saved:
            data.save(directory.path / (SPLIT_FOLDER if isinstance(data, Split) else FEDERATION_FOLDER))
        directory.write_command(command or shlex.join(["fedem", *sys.argv[1:]]))
        write_config(directory, config)
        return cls(directory, config, data if isinstance(data, Split) else data.facts)

    @classmethod
    def open(
        cls, directory: RunDirectory, *, trusted: bool = False, resumes: bool = False, processes: bool = False
    ) -> PreparedRun:
        """Read the inputs of a run; the data themselves are not opened before they are asked for.

        What is private in the directory is closed to other users of the machine, where it is not.

        Args:
            trusted, resumes, processes: see `runtime.consent.read_config`.

        Raises:
            InputError: they are missing or damaged, or want what needs a word.
        """
        config = read_config(directory, trusted=trusted, resumes=resumes, processes=processes)
        folder = directory.path / SPLIT_FOLDER
        for private in (folder, directory.checkpoint_dir):
            close_to_others(private)
        if (directory.path / FEDERATION_FOLDER).is_dir() and not folder.is_dir():
            return cls(directory, config, Federation.load(directory.path / FEDERATION_FOLDER).facts)
        return cls(directory, config, Split.load(folder))

    @property
    def split(self) -> Split:
        """The data.

        Raises:
            InputError: they are on the nodes, and not here.
        """
        if not isinstance(self.facts, Split):
            raise InputError(
                f"{self.directory.path} does not hold the data of its run: they are on the nodes. What needs them "
                "(controls, recommendations to known users) needs a run with --dataset"
            )
        return self.facts

    @property
    def has_data(self) -> bool:
        """Whether the data are here."""
        return isinstance(self.facts, Split)

    @property
    def nodes(self) -> int:
        """Flower nodes of the run; Ray and networks get two where nothing is said, as each is a process."""
        run, users = self.config.run, self.facts.users
        return node_count(users, run.users_per_node or (math.ceil(users / 2) if run.runtime != "inprocess" else 0))

    def server(
        self, on_line: Callable[[Line], None], *, resume: bool = False, welcome: Admission | None = None
    ) -> Callable[[Grid], Outcome]:
        """What the server does once it has a grid: the rounds that are left, with lines and checkpoints written.

        Args:
            on_line: called with every finished metrics line, after it was written.
            resume: go on from the newest checkpoint, if there is one.
            welcome: how nodes are met, where they come and go.
        """
        config, run = self.config, self.config.run
        checkpoints = Checkpoints(self.directory.checkpoint_dir, run.checkpoints_kept)
        start = checkpoints.load() if resume else None
        if resume:
            if welcome is None:  # else nodes do so themselves
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

        def amend(round_: int, change: Callable[[Line], Line]) -> None:
            self.directory.replace_metrics(lambda line: change(line) if line["round"] == round_ else line)

        plan = Plan(
            rounds=config.temporal.rounds or run.rounds,
            timeout=run.round_timeout,
            checkpoint_every=run.checkpoint_every,
            protocol=config.data.protocol,
            users=self.facts.users,
            emit=emit,
            amend=amend,
            save=checkpoints.save,
            welcome=welcome,
            patience=run.patience if welcome is not None else 0.0,
            kept=tuple(reversed(checkpoints.rounds())) if resume else (),
            keep=run.checkpoints_kept,
        )

        return lambda grid: run_rounds(build_strategy(config, self.facts.items), grid, plan, start)


def checkpointed(directory: RunDirectory) -> Checkpoint | None:
    """The newest checkpoint of a run, or None."""
    return Checkpoints(directory.checkpoint_dir).load()
