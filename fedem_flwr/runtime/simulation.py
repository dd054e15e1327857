"""Flower's Ray simulation as a runtime: the nodes, answers and errors of one process, spread over actors.

Flower's nodes are carriers of ours (``bundles``). Flower's ``run_simulation`` gives nodes an empty ``run_config``, so
ours is bound to the carriers' client app, which Ray pickles to its actors; so are the ways errors are told
(``inprocess.answer``). An actor is a process of its own, and a node's messages may go to a different one each time: a
client has its ``Context``, its message and the disk, nothing else.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.runtime.bundles import PROCESS_LOST, Bundles, CarrierApp
from fedem_flwr.runtime.cluster import join, room
from fedem_flwr.runtime.inprocess import RunConfig, task_identity
from fedem_flwr.runtime.ordered import PULL_INTERVAL, OrderedGrid
from fedem_flwr.runtime.surroundings import environment, quiet, short_directory
from fedem_flwr.text import one_line

T = TypeVar("T")

RESTART_SECONDS = 30.0  # how long a message is sent again to a node whose process died
RESTART_PAUSE = 0.5  # seconds between two such attempts
CARRIERS = 4  # of an actor: so many bundles are under way, one of which it works on
BUNDLES = 8  # of an actor in a round, so that none waits long for the last one
MOST_MESSAGES = 64  # of a bundle
_SHORTEST_PAUSE, _LOOK = 0.005, 0.0005  # seconds between looks for replies: at least, and for each that is waited for


def run_simulation_runtime(
    client_app: ClientApp,
    server_main: Callable[[Grid], T],
    *,
    nodes: int,
    run_config: RunConfig,
    cpus_per_node: int = 1,
    gpus_per_node: float = 0.0,
    address: str = "",
) -> T:
    """Run ``server_main`` over nodes simulated by Ray and return what it returns, as ``run_inprocess`` does.

    As many actors are started as there are nodes and the machine has room for; in a cluster as many as it has room
    for. ``os.environ`` is as before on return, and Ray is shut down, or the cluster left.

    Args:
        client_app: must be picklable by cloudpickle, and is pickled for every bundle of messages: bind paths to it,
            not data.
        server_main: gets the grid, in a thread of its own; its exceptions pass through.
        nodes: how many nodes; node ``i`` has ``node_config`` ``{"partition-id": i, "num-partitions":
            nodes}``.
        run_config: what every node finds in ``Context.run_config``.
        cpus_per_node: CPU cores, and so threads of torch, that a node works with.
        gpus_per_node: GPUs that a node works with; a fraction lets nodes share one. 0 hides GPUs from the
            nodes.
        address: HOST:PORT of a Ray cluster that is running, of which this machine is one; empty: Ray is started here.

    Raises:
        InputError: no node, an impossible share, Ray missing or already running in this process, no cluster at the
            address, or no usable temporary directory.
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
            results.append(server_main(_bundles(grid, nodes, actors, stopped)))
        except BaseException as error:  # carried to the caller's thread
            failures.append(error)

    with surroundings_of(nodes, cpus_per_node, gpus_per_node, address) as (actors, backend):
        try:
            app = CarrierApp(client_app, nodes, run_config)
            run_simulation(server_app, app, min(nodes, CARRIERS * actors), backend_config=backend)
        except Exception as error:
            if not failures:
                raise FedemError(f"the Ray simulation broke down: {one_line(str(_root(error)))}") from error
        finally:
            stopped.set()  # the server's thread must not wait for replies that will never come
    if failures:
        raise failures[0]
    if not results:
        raise FedemError("the Ray simulation ended before the server did")
    return results[0]


@contextmanager
def surroundings_of(
    nodes: int, cpus_per_node: int = 1, gpus_per_node: float = 0.0, address: str = ""
) -> Iterator[tuple[int, dict[str, Any]]]:
    """What a simulation by Flower is carried out in: gives the number of its actors, and Flower's settings for them.

    Raises:
        InputError: see `run_simulation_runtime`.
    """
    import ray  # takes a second, and the other runtimes do not need it

    with task_identity(), quiet(), short_directory() as directory, _environment(directory, cpus_per_node):
        try:
            if address:
                join(address, cpus_per_node)
            actors = room(cpus_per_node) if address else _actors_here(nodes, cpus_per_node)
            yield actors, _backend_config(actors, cpus_per_node, gpus_per_node, directory)
        finally:
            ray.shutdown()


class SimulationGrid(OrderedGrid):
    """Flower's grid, with replies handed over in the order of the messages.

    A node whose process dies (of memory, say) is sent its message again, as rounds can be repeated, until its process
    has been started anew; only if it keeps dying its reply is an error.

    Args:
        repeats: whether that is so; else what is lost comes back as an error at once.
    """

    def __init__(
        self, grid: Grid, stopped: threading.Event, at_a_time: int = sys.maxsize, *, repeats: bool = True
    ) -> None:
        super().__init__(stopped, at_a_time)
        self._grid, self._repeats = grid, repeats

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

    def shortest_pause(self, waiting: int) -> float:
        """Flower's answer takes longer, the more messages it is asked for."""
        return min(PULL_INTERVAL, max(_SHORTEST_PAUSE, _LOOK * waiting))

    def again_at(self, reply: Message, since: float, now: float) -> float | None:
        """After a pause, where the node's process died not long ago."""
        died = self._repeats and reply.has_error() and reply.error.code == PROCESS_LOST
        return now + RESTART_PAUSE if died and now - since < RESTART_SECONDS else None


def _bundles(grid: Grid, nodes: int, actors: int, stopped: threading.Event) -> Bundles:
    """Our nodes, on carriers; Flower starts the server before it registers the first, and those before Ray."""
    import ray

    wanted = min(nodes, CARRIERS * actors)
    while len(carriers := sorted(grid.get_node_ids())) < wanted or not ray.is_initialized():
        if stopped.wait(PULL_INTERVAL):
            raise FedemError("the simulation was stopped before its nodes had started")
    most = min(MOST_MESSAGES, math.ceil(nodes / (BUNDLES * actors)))
    once = SimulationGrid(grid, stopped, wanted, repeats=False)
    return Bundles(once, SimulationGrid(grid, stopped), carriers, nodes, most)


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


def _actors_here(nodes: int, cpus_per_node: int) -> int:
    return max(1, min(nodes, (os.cpu_count() or 1) // cpus_per_node))


def _backend_config(actors: int, cpus_per_node: int, gpus_per_node: float, directory: Path) -> dict[str, Any]:
    initialise = {  # of no effect in a cluster
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
