"""A server that wants single users' metrics from samples of users that differ by one, or from a group that does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from curious import OPEN, USERS, Node, metrics, settings

from fedem_flwr.nodes import host as module

pytestmark = [pytest.mark.attacks, pytest.mark.usefixtures("hurry", "speaking")]
SIZE = USERS // 3


def evaluated_users(node: Node, size: int, run: int) -> float:
    reply = node.meet(settings("fedials", evaluation={"sample_users": size}), run)
    assert not reply.has_error(), reply.error.reason
    told = metrics(node.train([], evaluate=1))
    found: float = told["users"]
    return found


def test_samples_that_differ_by_one_user(shard: Path, tmp_path: Path) -> None:
    everything = Node(shard, tmp_path / "open", OPEN)
    sizes = [evaluated_users(everything, size, run) for run, size in enumerate((SIZE, SIZE + 1), 1)]
    assert sizes == [SIZE, SIZE + 1], "the attack works where everything goes: the difference is one user's"
    node = Node(shard, tmp_path / "node")
    sizes = [evaluated_users(node, size, run) for run, size in enumerate((SIZE, SIZE + 1, SIZE), 1)]
    assert sizes == [SIZE, USERS, SIZE]
    again = Node(shard, tmp_path / "node")
    assert evaluated_users(again, SIZE + 1, 4) == USERS, "a node that is started again knows what it has told"


def test_a_group_that_is_the_sample_and_one_more(shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, policy in (("open", OPEN), ("node", None)):
        node = Node(shard, tmp_path / name, policy)
        activity = np.diff(node.split.train_offsets)
        edge = float(np.sort(activity)[USERS // 2]) + 0.5
        near = np.flatnonzero(activity < edge)[1:]
        monkeypatch.setattr(module, "part_of_sample", lambda *given, near=near: near if given[-1](0, near) else None)
        node.meet(settings("fedials", evaluation={"sample_users": SIZE}))
        told = metrics(node.evaluate(np.zeros((0, 8)), **{"group-edges": str(edge), "everybody": 1}))
        assert told["users"] == USERS and told["sample/users"] == len(near)
        if name == "open":
            assert told["group-0/users"] - told["sample/users"] == 1, "the attack works where everything goes"
        else:
            assert "group-0/users" not in told
