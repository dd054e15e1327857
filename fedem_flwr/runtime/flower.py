"""The nodes that Flower starts for `flwr run`: simulated ones, or its own SuperNodes. They share the run's directory.

Every message names that directory: the process that meets it may be new, and Flower lets a ServerApp change nobody's
run configuration.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedem_flwr.errors import FedemError
from fedem_flwr.messages.wire import unpack_arrays
from fedem_flwr.nodes.host import RUN_RECORD
from fedem_flwr.runtime.simulation import SimulationGrid

_LOOK = 1.0  # seconds between looks whether further nodes have come


class FlowerGrid(SimulationGrid):
    """The grid of a ServerApp that Flower started.

    Args:
        grid: Flower's.
        run_dir: the run's directory, which server and nodes see under this path.
    """

    def __init__(self, grid: Grid, run_dir: Path) -> None:
        super().__init__(grid, threading.Event())
        self._run_dir = run_dir

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages and return their ids."""
        return super().push_messages([*self._addressed(messages)])

    def _addressed(self, messages: Iterable[Message]) -> Iterator[Message]:
        for message in messages:
            message.content[RUN_RECORD] = ConfigRecord({"run-dir": str(self._run_dir)})
            message.metadata.created_at = time.time()  # else a repeated message is the first one to a SuperLink
            yield message

    def await_users(self, users: int, seconds: float) -> int:
        """Wait until the nodes that are there host all users; returns how many users the fullest one hosts.

        Raises:
            FedemError: some users are still missing after `seconds`.
        """
        deadline, found, each, problem = time.monotonic() + seconds, np.zeros(users, dtype=bool), 0, ""
        asked: set[int] = set()
        while not found.all():
            new = [node for node in self.get_node_ids() if node not in asked]
            queries = [Message(RecordDict(), node, "query") for node in new]
            for reply in self.send_and_receive(queries, timeout=max(0.0, deadline - time.monotonic())):
                if reply.has_error():
                    problem = f"; node {reply.metadata.src_node_id}: {reply.error.reason}"
                    continue  # and is asked again
                asked.add(reply.metadata.src_node_id)
                hosted = unpack_arrays(reply.content.array_records["arrays"])["users"]
                found[hosted], each = True, max(each, len(hosted))
            if found.all():
                break
            if time.monotonic() > deadline:
                raise FedemError(
                    f"after {seconds:.0f} s {found.sum()} of {users} users are on nodes that are there: each node is "
                    f"started with --node-config 'partition-id=I num-partitions=N', for all I below N{problem}"
                )
            time.sleep(_LOOK)
        return each


def is_simulated(grid: Grid) -> bool:
    """Whether Flower simulates the nodes, in Ray; else they are processes that reach a SuperLink."""
    from flwr.superlink.grid import InMemoryGrid

    return isinstance(grid, InMemoryGrid)
