"""All methods on a Ray cluster of two machines, in one simulation: a message says which run it is of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import ConfigRecord, Context, Message
from flwr.serverapp import Grid
from worlds import Done, done, prepare

from conformance.methods import GUARDED, NARROW, SUBJECTS, Subject
from fedem_flwr.client_app import build_client_app
from fedem_flwr.nodes.host import NodeHost
from fedem_flwr.runtime.simulation import run_simulation_runtime

if TYPE_CHECKING:
    from conformance.runs import Runs

NODES, WHICH = 3, "which-run"


@dataclass(frozen=True)
class AnyHost:
    """Nodes of whatever run a message names; see `client_app.Hosts`."""

    def welcome(self, message: Message, context: Context) -> Mapping[str, np.ndarray]:
        """Nothing has to be said."""
        return {}

    def of(self, message: Message, context: Context) -> NodeHost:
        """That of the run."""
        return NodeHost(Path(str(message.content.config_records[WHICH]["path"])), NODES, 1)

    def node(self, context: Context) -> int:
        """Flower's number of the partition."""
        return int(context.node_config["partition-id"])


class Naming:
    """A grid that names the run in every message."""

    def __init__(self, grid: Grid, path: Path) -> None:
        self._grid, self._path = grid, path

    def get_node_ids(self) -> Iterable[int]:
        """Of the grid."""
        return self._grid.get_node_ids()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """See the class."""

        def named() -> Iterator[Message]:
            for message in messages:
                message.content[WHICH] = ConfigRecord({"path": str(self._path)})
                yield message

        return iter(self._grid.send_and_receive(named(), timeout=timeout))


def carry_out_on_ray(runs: Runs, address: str) -> dict[Subject, Done]:
    """A run of every method with 7 users a node, in the cluster at an address."""
    subjects, each = (*SUBJECTS, *NARROW, GUARDED), {"users_per_node": 7}
    prepared = {subject: prepare(runs.path(), subject.config(run=each)) for subject in subjects}

    def main(grid: Grid) -> dict[Subject, Done]:
        found = {}
        for subject, run in prepared.items():
            naming = Naming(grid, run.directory.path.resolve())
            found[subject] = done(run, run.server(lambda _: None)(naming))  # type: ignore[arg-type]
        return found

    app = build_client_app(AnyHost())
    return run_simulation_runtime(app, main, nodes=NODES, run_config={}, address=address)
