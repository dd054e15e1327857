"""A federation in one process: nodes with shards and disks of their own, that come, go and lose messages as told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Error, Message
from introduced import KEY
from worlds import config_of

from fedem_flwr.config import Config
from fedem_flwr.messages.wire import pack_arrays, unpack_arrays
from fedem_flwr.network.host import ShardHosts
from fedem_flwr.network.introduction import NetworkWelcome
from fedem_flwr.nodes.answering import build_client_app
from fedem_flwr.nodes.policy import NodePolicy
from fedem_flwr.nodes.state_store import DiskStateStore
from fedem_flwr.protocol.shards import Federation
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.checkpoint import Checkpoints
from fedem_flwr.runtime.inprocess import FIRST_NODE_ID, RUN_ID, InProcessGrid, task_identity
from fedem_flwr.runtime.loop import Outcome
from fedem_flwr.runtime.prepared import PreparedRun

IDS = 8  # numbers that nodes may come under: 0 to 7

ANYTHING = NodePolicy.networked(single_users=True)  # goes up

# What becomes of the message of a training round (round, attempt, node): "" is nothing special.
Fate = Callable[[int, int, int], str]


def config_for(method: str, **run: Any) -> Config:
    """A few rounds of a method on the tiny world, as a network has them."""
    rounds = 5 if method == "fedmf-elastic" else 3  # it has phases: groups, their tables, the own tables, the merge
    elastic = {"clustering": 1, "rounds": 1, "groups": 2}
    run = {"rounds": rounds, "users_per_node": 10, "patience": 60.0, **run}
    return config_of(method, model={"dim": 8}, local={"epochs": 1}, elastic=elastic, run=run)


class FederatedGrid(InProcessGrid):
    """Nodes are processes that somebody starts and stops.

    Args:
        shards: made by `write_shards`; node i has shard i at first. folder: for the nodes' disks.
        fate: of the messages of training rounds: "" arrives; "lost" never reaches its node; "mute": the node's reply is
            lost; "error", "nan": what it replies.
        before: called with the number of each look for nodes: 1 before round 1, 2 before round 2 if round 1 was not
            repeated, and so on; 0 once at the start.
        policy: of the nodes; fedem needs one that lets single users' tables go.
    """

    def __init__(
        self,
        shards: Path,
        folder: Path,
        nodes: int,
        fate: Fate = lambda round_, attempt, node: "",
        before: Callable[[FederatedGrid, int], None] = lambda grid, look: None,
        policy: NodePolicy = ANYTHING,
    ) -> None:
        super().__init__(self._reply, nodes=IDS, run_config={})  # type: ignore[arg-type]
        self.shards, self.folder, self.fate, self.before, self.policy = shards, folder, fate, before, policy
        self.there: dict[int, str] = {}  # sessions
        self.attempts: Counter[int] = Counter()  # by round
        self.greeted: list[int] = []  # nodes, as often as they were
        self._apps: dict[int, Any] = {}
        self._starts = self._looks = 0
        for node in range(nodes):
            self.start(node)

    def start(self, node: int, shard: int | Path | None = None, disk: str = "") -> None:
        """Start a node, or start it anew: it has in memory what a new process has."""
        named = self.shards / "shards" / f"node-{node if shard is None else shard}"
        where = shard if isinstance(shard, Path) else named
        state = self.folder / (disk or where.name)
        hosts = ShardHosts(where, state, threads=1, device="cpu", policy=self.policy)
        self._apps[node] = build_client_app(hosts)
        self._starts += 1
        self.there[node] = f"session {self._starts}"

    def stop(self, *nodes: int) -> None:
        """Nodes that are there no longer."""
        for node in nodes:
            del self.there[node]

    def sessions(self) -> dict[int, str]:
        """Who is there, as the server sees it."""
        self.before(self, self._looks)
        self._looks += 1
        return {node + FIRST_NODE_ID: session for node, session in self.there.items()}

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Let messages meet their fates."""
        sent = list(messages)
        kind, round_ = (sent[0].metadata.message_type, int(sent[0].metadata.group_id)) if sent else ("", 0)
        nodes = [message.metadata.dst_node_id - FIRST_NODE_ID for message in sent]
        assert set(nodes) <= set(self.there), "a message to a node that is not there"
        if kind == "train":
            self.attempts[round_] += 1
        self.greeted += nodes if kind == "query" else []
        for node, message in zip(nodes, sent, strict=True):
            fate = self.fate(round_, self.attempts[round_], node) if kind == "train" else ""
            if fate == "lost":
                continue
            (reply,) = super().send_and_receive([message])
            if fate == "error":
                yield Message(Error(2, "out of memory"), reply_to=message)
            elif fate != "mute":
                yield spoiled(reply) if fate == "nan" else reply

    def _reply(self, message: Message, context: Context) -> Message:
        reply: Message = self._apps[message.metadata.dst_node_id - FIRST_NODE_ID](message, context)
        return reply


def spoiled(reply: Message) -> Message:
    """A reply with a number that is none in each array of floats."""
    arrays = {name: np.array(values) for name, values in unpack_arrays(reply.content.array_records["arrays"]).items()}
    for values in arrays.values():
        if values.dtype.kind == "f" and values.size:
            values.reshape(-1)[-1] = np.nan
    reply.content["arrays"] = pack_arrays(arrays)
    return reply


@dataclass
class Ended:
    """What a run left: the server's arrays, each disk's newest private state, lines, losses."""

    grid: FederatedGrid
    outcome: Outcome
    lines: list[dict[str, Any]]
    server: dict[str, np.ndarray] = field(default_factory=dict)
    nodes: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    def losses(self) -> list[tuple[int, str, str]]:
        """Round, node and reason of what was left out."""
        return [
            (loss["round"], loss["node"].removeprefix("node of users "), loss["reason"])
            for loss in self.outcome.failures
        ]


def carry_out_over(grid: FederatedGrid, config: Config) -> Ended:
    """A whole run over a federation."""
    federation = Federation.load(grid.shards / "federation")
    run = PreparedRun.create(RunDirectory(grid.folder / "run").create(), config, federation, "a test")
    welcome = NetworkWelcome(RUN_ID, KEY, (), config.to_toml(), federation)
    with task_identity():
        outcome = run.server(lambda _: None, welcome=welcome)(grid)
    point = Checkpoints(run.directory.checkpoint_dir).load()
    assert point is not None
    ended = Ended(grid, outcome, run.directory.read_metrics(), dict(point.arrays))
    for disk in sorted(path for path in grid.folder.iterdir() if (path / "runs").is_dir()):
        state = DiskStateStore(disk / "runs" / KEY / "nodes").load("node-000000", config.run.rounds)
        ended.nodes[disk.name] = {name: np.array(values) for name, values in (state or {}).items()}
    return ended
