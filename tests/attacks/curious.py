"""A server with genuine keys that is curious: it introduces runs to one node, and asks what it likes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, Metadata, RecordDict
from flwr.app.message import make_message
from introduced import NOBODY
from worlds import config_of

from fedem_flwr.config import Config
from fedem_flwr.contract.finding import method_of
from fedem_flwr.messages.wire import pack_arrays, unpack_arrays
from fedem_flwr.network.host import ShardHosts
from fedem_flwr.network.introduction import GREETING, Introduction
from fedem_flwr.nodes.answering import build_client_app
from fedem_flwr.nodes.policy import NodePolicy
from fedem_flwr.protocol.shards import write_shards
from fedem_flwr.protocol.split import Split
from fedem_flwr.runtime.inprocess import answer
from fedem_flwr.runtime.inputs import load_interactions, split_of

USERS, ITEMS = 20, 60
WORLD: dict[str, Any] = {
    "data": {"synthetic": {"users": USERS}},
    "model": {"dim": 8},
    "local": {"epochs": 1},
    "order": {"rounds": 2},
}
OPEN = NodePolicy.simulation()


def settings(method: str, **sections: Any) -> Config:
    return config_of(method, **{**WORLD, "run": {"rounds": 4}, **sections})


def shard_in(folder: Path) -> Path:
    """One node's data: all users."""
    config = settings("fedials")
    write_shards(split_of(config, load_interactions(config)), 1, folder)
    return folder / "shards" / "node-0"


class Node:
    """A networked node, as its server reaches it.

    Args:
        state: its folder; a node that is started on the same one is the same node, started anew.
    """

    def __init__(self, shard: Path, state: Path, policy: NodePolicy | None = None) -> None:
        self.hosts = ShardHosts(shard, state, threads=1, device="cpu", policy=policy or NodePolicy.networked())
        self.app, self.split = build_client_app(self.hosts), Split.load(shard)

    def meet(self, config: Config, run: int = 1, more: str = "") -> Message:
        """Introduce a run, which is all that a server's signature is needed for.

        Args:
            more: TOML that follows the configuration.
        """
        facts = {name: getattr(self.split, name) for name in ("dataset", "protocol", "users", "items")}
        told = Introduction(f"{run:032x}", run, (), config.to_toml() + more, facts, 0)
        self.config, self.run = config, run
        return self._answer("query", RecordDict({GREETING: told.record(None)}))

    def train(self, users: list[int], *, phase: str = "", table: float = 0.1, round_: int = 1, **told: Any) -> Message:
        """Ask some users to train, with a table of the server's choice."""
        method = method_of(self.config, self.split.items)
        named = {"participants": np.array(users, np.int64), "uploaders": np.empty(0, np.int64)}
        arrays = {**named, **self.sent(table), **{n: v for n, v in told.items() if isinstance(v, np.ndarray)}}
        said = {n: v for n, v in told.items() if not isinstance(v, np.ndarray)}
        config = {"server-round": round_, "upload": phase or method.phases()[0].name, "half_life": 0.0, "ridge": 1.0}
        content = RecordDict({"arrays": pack_arrays(arrays), "config": ConfigRecord({**config, **said})})
        return self._answer("train", content)

    def evaluate(self, table: np.ndarray, **told: Any) -> Message:
        """Ask how well a table does."""
        named = {"participants": np.empty(0, np.int64), "uploaders": np.empty(0, np.int64)}
        arrays = {**named, **self.sent(0.1)}
        arrays |= {name: table.astype(np.float32) for name in arrays.keys() & {"items"}}
        config = ConfigRecord({"server-round": 0, "half_life": 0.0, "ridge": 1.0, **told})
        return self._answer("evaluate", RecordDict({"arrays": pack_arrays(arrays), "config": config}))

    def sent(self, scale: float) -> dict[str, np.ndarray]:
        """The method's state as it begins, or as the server pretends that it does."""
        method = method_of(self.config, self.split.items)
        state = {name: value for name, value in method.start().items() if name in method.sends()}
        return {name: (value * (scale / 0.1)).float().numpy() for name, value in state.items()}

    def _answer(self, kind: str, content: RecordDict) -> Message:
        message = make_message(Metadata(self.run, "", 1, 2, "", "0", 1.0, 60.0, kind), content)
        return answer(self.app, message, NOBODY, {})


def arrays(reply: Message) -> dict[str, np.ndarray]:
    assert not reply.has_error(), reply.error.reason
    return unpack_arrays(reply.content.array_records["arrays"])


def metrics(reply: Message) -> dict[str, Any]:
    assert not reply.has_error(), reply.error.reason
    return dict(reply.content.metric_records["metrics"])


def counts(reply: Message) -> np.ndarray:
    """(m,) how many of the users that were asked have each item: what fedials sends."""
    found = np.zeros(ITEMS, np.int64)
    sent = arrays(reply)
    found[sent["items"]] = sent["counts"]
    return found


def refusal(reply: Message) -> str:
    """Why the node did not answer."""
    assert reply.has_error()
    return str(reply.error.reason)
