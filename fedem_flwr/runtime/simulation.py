"""Flower's Ray simulation as a runtime: the nodes, answers and errors of one process, spread over actors.

Flower's ``run_simulation`` gives nodes an empty ``run_config``, so ours is bound to the client app, which Ray
pickles to its actors; so are the ways errors are told (``inprocess.answer``). An actor is a process of its
own, and a node's messages may go to a different one each time: a client has its ``Context``, its message and
the disk, nothing else. Flower numbers the nodes at random: a node is known by ``partition-id`` in its
``node_config``, not by its id.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.runtime.inprocess import BoundClientApp, RunConfig, task_identity
from fedem_flwr.runtime.ordered import PULL_INTERVAL, OrderedGrid
from fedem_flwr.runtime.surroundings import environment, quiet, short_directory
from fedem_flwr.text import one_line

T = TypeVar("T")

RESTART_SECONDS = 30.0  # how long a message is sent again to a node whose process died
RESTART_PAUSE = 0.5  # seconds between two such attempts
PROCESS_LOST = 0  # Flower's ErrorCode.UNKNOWN: the error was Ray's, not the client's


def run_simulation_runtime(
    client_app: ClientApp,
    server_main: Callable[[Grid], T],
    *,
    nodes: int,
    run_config: RunConfig,
    cpus_per_node: int = 1,
    gpus_per_node: float = 0.0,
) -> T:
    """Run ``server_main`` over nodes simulated by Ray and return what it returns, as ``run_inprocess`` does.

    As many actors are started as there are nodes and the machine has room for. ``os.environ`` is as before on
    return, and Ray is shut down.

    Args:
        client_app: must be picklable by cloudpickle, and is pickled for every message: bind paths to it, not
            data.
        server_main: gets the grid, in a thread of its own; its exceptions pass through.
        nodes: how many nodes; node ``i`` has ``node_config`` ``{"partition-id": i, "num-partitions":
            nodes}``.
        run_config: what every node finds in ``Context.run_config``.
        cpus_per_node: CPU cores, and so threads of torch, that a node works with.
        gpus_per_node: GPUs that a node works with; a fraction lets nodes share one. 0 hides GPUs from the
            nodes.

    Raises:
        InputError: no node, an impossible share, Ray missing or already running, or no usable temporary
            directory.
        FedemError: Ray or Flower broke down.
    """
    _check_request(nodes, cpus_per_node, gpus_per_node)
    results: list[T] = []
    failures: list[BaseException] = []
    stopped = threading.Event()
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            _await_nodes(grid, nodes, stopped)
            results.append(server_main(SimulationGrid(grid, stopped)))
        except BaseException as error:  # carried to the caller's thread
            failures.append(error)

    import ray  # takes a second, and the other runtimes do not need it

    with task_identity(), quiet(), short_directory() as directory, _environment(directory, cpus_per_node):
        try:
            run_simulation(
                server_app,
                BoundClientApp(client_app, run_config),
                nodes,
                backend_config=_backend_config(nodes, cpus_per_node, gpus_per_node, directory),
            )
        except Exception as error:
            if not failures:
                raise FedemError(f"the Ray simulation broke down: {one_line(str(_root(error)))}") from error
        finally:
            stopped.set()  # the server's thread must not wait for replies that will never come
            ray.shutdown()
    if failures:
        raise failures[0]
    if not results:
        raise FedemError("the Ray simulation ended before the server did")
    return results[0]


class SimulationGrid(OrderedGrid):
    """Flower's grid, with replies handed over in the order of the messages.

    A node whose process dies (of memory, say) is sent its message again, as rounds can be repeated, until its process
    has been started anew; only if it keeps dying its reply is an error.
    """

    def __init__(self, grid: Grid, stopped: threading.Event) -> None:
        super().__init__(stopped)
        self._grid = grid

    def get_node_ids(self) -> list[int]:
        """All node ids, sorted; they are random numbers, new in each run."""
        return sorted(self._grid.get_node_ids())

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages and return their ids.

        Raises:
            FedemError: a message is to a node that does not exist.
        """
        known = set(self._grid.get_node_ids())
        return list(self._grid.push_messages([*_checked(messages, known)]))

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that are there, to messages with these ids."""
        return [_with_short_reason(reply) for reply in self._grid.pull_messages(message_ids)]

    def again_at(self, reply: Message, since: float, now: float) -> float | None:
        """After a pause, where the node's process died not long ago."""
        died = reply.has_error() and reply.error.code == PROCESS_LOST
        return now + RESTART_PAUSE if died and now - since < RESTART_SECONDS else None


def _await_nodes(grid: Grid, nodes: int, stopped: threading.Event) -> None:
    """Wait for all nodes: Flower starts the server before it registers the first."""
    while len(list(grid.get_node_ids())) < nodes:
        if stopped.wait(PULL_INTERVAL):
            raise FedemError("the simulation was stopped before its nodes had started")


def _checked(messages: Iterable[Message], known: set[int]) -> Iterator[Message]:
    for message in messages:
        if message.metadata.dst_node_id not in known:  # Flower would only log it, and the reply never come
            raise FedemError(f"there is no node {message.metadata.dst_node_id} to send a message to")
        yield message


def _with_short_reason(reply: Message) -> Message:
    if reply.has_error():  # of an actor that died, for instance: several lines
        reply.error = Error(reply.error.code, one_line(reply.error.reason or "no reason given"))
    return reply


def _check_request(nodes: int, cpus_per_node: int, gpus_per_node: float) -> None:
    if nodes < 1:
        raise InputError(f"a run needs at least one node, not {nodes}: raise the number of users or nodes")
    if cpus_per_node < 1 or gpus_per_node < 0:
        raise InputError(
            f"a node cannot work with {cpus_per_node} CPU cores and {gpus_per_node} GPUs: "
            "give it at least 1 core and at least 0 GPUs"
        )
    if importlib.util.find_spec("ray") is None:
        raise InputError("the Ray runtime needs Ray: pip install 'flwr[simulation]', or use the in-process runtime")
    import ray

    if ray.is_initialized():
        raise InputError("Ray is already running in this process: call ray.shutdown() before this run")
    if gpus_per_node > 0:
        import torch

        if torch.cuda.device_count() < gpus_per_node:
            raise InputError(
                f"a node asks for {gpus_per_node} GPUs, this machine has {torch.cuda.device_count()}: "
                "set gpus_per_node to 0 or to a smaller share"
            )


def _backend_config(nodes: int, cpus_per_node: int, gpus_per_node: float, directory: Path) -> dict[str, Any]:
    actors = max(1, min(nodes, (os.cpu_count() or 1) // cpus_per_node))
    initialise = {
        "address": "local",  # never a cluster that happens to be running
        "num_cpus": actors * cpus_per_node,  # else an actor for every core, however few the nodes
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "_temp_dir": str(directory),
    }
    if gpus_per_node == 0:
        initialise["num_gpus"] = 0
    restarts = {"max_restarts": -1}  # without limit, of processes that died
    resources = {"num_cpus": cpus_per_node, "num_gpus": gpus_per_node, **restarts}
    return {"init_args": initialise, "client_resources": resources, "actor": {"tensorflow": 0}}


def _root(error: BaseException) -> BaseException:
    """What went wrong first: Flower wraps it in general errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _environment(directory: Path, cpus_per_node: int) -> AbstractContextManager[None]:
    """What Flower, Ray and its actors are to find in the environment."""
    return environment(
        FLWR_TELEMETRY_ENABLED="0",
        FLWR_HOME=str(directory),  # else ~/.flwr is made
        RAY_USAGE_STATS_ENABLED="0",
        OMP_NUM_THREADS=str(cpus_per_node),
        MKL_NUM_THREADS=str(cpus_per_node),
    )
