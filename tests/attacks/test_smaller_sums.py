"""A curious server that gets at fewer users by a side way: a client of another kind, lots that it sets itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from curious import OPEN, USERS, Node, arrays, metrics, refusal, settings
from flwr.app import ConfigRecord, Message, RecordDict

from fedem_flwr.messages.wire import pack_arrays
from fedem_flwr.nodes.policy import NodePolicy

pytestmark = [pytest.mark.attacks, pytest.mark.usefixtures("speaking")]
EVERYBODY = list(range(USERS))
STOCK = {"name": "fedavg", "strategy": "flwr.FedAvg", "client": "table"}


def of_all(node: Node, run: int) -> Message:
    """What the client of stock strategies sends: a mean over all users."""
    node.meet(settings("fedmf").changed("method", **STOCK), run=run)
    table = np.full((node.split.items, 8), 0.1, np.float32)
    config = ConfigRecord({"server-round": 1})
    return node._answer("train", RecordDict({"arrays": pack_arrays({"item_table": table}), "config": config}))


def test_another_client_has_the_same_memory(shard: Path, tmp_path: Path) -> None:
    """All users' mean, less all but one's sum, is that one's own table."""
    node = Node(shard, tmp_path / "node")
    node.meet(settings("fedmf"), run=1)
    assert "withheld" not in metrics(node.train(EVERYBODY[1:]))
    assert "nearly the same users" in refusal(of_all(node, 2))
    other = Node(shard, tmp_path / "other")
    assert arrays(of_all(other, 1)), "by itself it goes up"
    other.meet(settings("fedmf"), run=2)
    assert metrics(other.train(EVERYBODY[1:]))["withheld"] == USERS - 1


def drawn(node: Node) -> list[int]:
    """How many users each of many lots takes in, where the server says how many."""
    node.meet(settings("fedials-elastic", run={"rounds": 24}))
    replies = (node.train(EVERYBODY, phase="cluster", seeds=float(share), hold=0) for share in np.linspace(0.05, 1, 40))
    return [int(arrays(reply)["members"].sum()) for reply in replies]


def test_lots_that_the_server_sets_are_sums_like_others(shard: Path, tmp_path: Path) -> None:
    """Users come in one by one as the share grows: two lots that differ by one tell of that one."""
    assert 1 in np.diff(np.unique(drawn(Node(shard, tmp_path / "open", OPEN)))), "the attack works"
    sizes = np.unique(drawn(Node(shard, tmp_path / "node")))
    assert len(sizes) > 2 and np.diff(sizes[sizes > 0]).min() > 1
    fixed = NodePolicy.networked(4, fixed_groups=True)
    assert set(drawn(Node(shard, tmp_path / "fixed", fixed))) <= {0, USERS}


def test_whoever_adds_nothing_need_not_be_there(shard: Path, tmp_path: Path) -> None:
    """A sum over pairs of items is over its whole group without the user who has met one item."""
    node = Node(shard, tmp_path, NodePolicy.networked(11, fixed_groups=True))  # one group
    node.meet(settings("fedials"))
    host = node.hosts._hosts[node.run]
    host._met[0] = np.append(1, host.items_met(0)[1:])
    others = np.array(EVERYBODY[1:])
    assert host.admits(0, 2, others) and not host.admits(0, 1, others)
