"""Tiny worlds for end-to-end tests: runs that take a second, and a grid that sees and spoils what crosses it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message

from fedem_flwr.config import Config, merge_trees, resolve
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.messages.wire import unpack_arrays
from fedem_flwr.nodes.answering import build_client_app
from fedem_flwr.nodes.host import STATE_FOLDER, NodeHost
from fedem_flwr.nodes.policy import NodePolicy
from fedem_flwr.nodes.state_store import DiskStateStore
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.checkpoint import Checkpoints
from fedem_flwr.runtime.inprocess import FIRST_NODE_ID, InProcessGrid, task_identity
from fedem_flwr.runtime.inputs import load_interactions, split_of
from fedem_flwr.runtime.loop import Outcome
from fedem_flwr.runtime.prepared import PreparedRun

USERS, ITEMS = 40, 60
SYNTHETIC = {"users": USERS, "items": ITEMS, "mean_interactions": 15}
TINY = {
    "data": {"dataset": "synthetic", "synthetic": SYNTHETIC},
    "local": {"epochs": 2},
    "run": {"rounds": 3, "threads": 1, "device": "cpu"},
    "evaluation": {"controls": False, "local_only": False},
}
# The same as options of the command line.
TINY_OPTIONS = [
    *(f"--set=data.synthetic.{key}={value}" for key, value in SYNTHETIC.items()),
    *("--set=local.epochs=2", "--set=run.threads=1", "--device=cpu"),
    *("--set=evaluation.controls=false", "--set=evaluation.local_only=false"),
]

DEVICES = NodePolicy.simulation()
Tamper = Callable[[Message, Message], Iterable[Message]]  # of a reply and the message it answers


def config_of(name: str, /, **sections: dict[str, Any]) -> Config:
    """A method's preset on the tiny world, with some sections changed."""
    return resolve({}, merge_trees(TINY, {"method": {"name": name}}, sections))


@dataclass
class Done:
    """What a run left behind.

    `nodes` are the private arrays of all users, in the order of the users.
    """

    run: PreparedRun
    outcome: Outcome
    lines: list[dict[str, Any]]
    server: dict[str, np.ndarray]
    nodes: dict[str, np.ndarray]


def prepare(path: Path, config: Config) -> PreparedRun:
    """A new run's directory."""
    split = split_of(config, load_interactions(config))
    return PreparedRun.create(RunDirectory(path).create(), config, split)


def done(run: PreparedRun, outcome: Outcome) -> Done:
    """Read what a finished run wrote."""
    point = Checkpoints(run.directory.checkpoint_dir).load()
    assert point is not None
    store = DiskStateStore(run.directory.path / STATE_FOLDER)
    states = [store.load(f"node-{node:06d}", point.round) for node in range(run.nodes)]
    kept = [state for state in states if state is not None]
    names = [name for name in (kept[0] if kept else {}) if name != "format"]  # which is the file's
    nodes = {name: np.concatenate([state[name] for state in kept]) for name in names}
    return Done(run, outcome, run.directory.read_metrics(), dict(point.arrays), nodes)


def carry_out(path: Path, config: Config) -> Done:
    """A whole run on its own runtime."""
    run = prepare(path, config)
    return done(run, carry_out_rounds(run, lambda _: None))


@dataclass
class Crossing:
    """A message or reply as it crossed, with copies of its arrays."""

    kind: str  # query, train, evaluate
    round: str
    node: int  # partition
    arrays: dict[str, np.ndarray]
    metrics: dict[str, Any]
    config: dict[str, Any]
    records: set[str] = field(default_factory=set)


def crossing(message: Message, node: int) -> Crossing:
    """What a message carries."""
    content = message.content
    arrays = {
        name: np.array(values)
        for record in content.array_records.values()
        for name, values in unpack_arrays(record).items()
    }
    metrics = {name: value for record in content.metric_records.values() for name, value in record.items()}
    config = {name: value for record in content.config_records.values() for name, value in record.items()}
    kind = message.metadata.message_type
    return Crossing(kind, message.metadata.group_id, node, arrays, metrics, config, set(content))


class WatchedGrid(InProcessGrid):
    """Notes everything that crosses, and hands replies on as `tamper` likes; its nodes have a policy."""

    def __init__(
        self,
        run: PreparedRun,
        tamper: Tamper | None = None,
        *,
        nodes: int | None = None,
        policy: NodePolicy = DEVICES,
    ) -> None:
        count = nodes or run.nodes
        host = NodeHost(run.directory.path.resolve(), count, run.config.run.threads, True, policy)
        super().__init__(build_client_app(host), nodes=count, run_config={})
        self.tamper = tamper or (lambda reply, message: [reply])
        self.down: list[Crossing] = []
        self.up: list[Crossing] = []
        self.note = tamper is None

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        sent: dict[int, Message] = {}

        def noted() -> Iterator[Message]:
            for message in messages:
                sent[message.metadata.dst_node_id] = message
                if self.note:
                    self.down.append(crossing(message, message.metadata.dst_node_id - FIRST_NODE_ID))
                yield message

        for reply in super().send_and_receive(noted(), timeout=timeout):
            if self.note and reply.has_content():
                self.up.append(crossing(reply, node_of(reply)))
            yield from self.tamper(reply, sent[reply.metadata.src_node_id])

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Nothing may pass unseen."""
        raise AssertionError("a message that is not watched")


def node_of(reply: Message) -> int:
    """The partition that a reply is from."""
    return reply.metadata.src_node_id - FIRST_NODE_ID


def carry_out_watched(
    path: Path,
    config: Config,
    tamper: Tamper | None = None,
    *,
    nodes: int | None = None,
    policy: NodePolicy = DEVICES,
) -> tuple[Done, WatchedGrid]:
    """A whole run over a grid that notes what crosses it, or spoils it."""
    run = prepare(path, config)
    with task_identity():
        grid = WatchedGrid(run, tamper, nodes=nodes, policy=policy)
        outcome = run.server(lambda _: None)(grid)
    return done(run, outcome), grid


def figures(line: dict[str, Any]) -> dict[str, Any]:
    """A metrics line without what differs from run to run."""
    return {
        key: value
        for key, value in line.items()
        if key not in ("seconds", "bytes_up", "bytes_down", "node_bytes_up", "node_bytes_down")
    }


def largest_difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """Over all arrays of two runs, which must have the same names and shapes."""
    assert one.keys() == other.keys()
    assert {name: array.shape for name, array in one.items()} == {name: array.shape for name, array in other.items()}
    gaps = [np.abs(one[name].astype(np.float64) - other[name].astype(np.float64)).max(initial=0) for name in one]
    return float(max(gaps, default=0.0))
