"""Nodes that come, go and come back; quorums; grids whose replies come in order."""

from __future__ import annotations

import threading
from collections.abc import Collection, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from worlds import USERS, Done, WatchedGrid, config_of, done, largest_difference, node_of, prepare

from fedem_flwr.errors import FedemError
from fedem_flwr.messages.admission import AdmitAll
from fedem_flwr.runtime import loop
from fedem_flwr.runtime.inprocess import FIRST_NODE_ID, task_identity
from fedem_flwr.runtime.ordered import OrderedGrid
from fedem_flwr.runtime.prepared import PreparedRun

EACH, BAD = 10, 2


class ComingAndGoing(WatchedGrid):
    """Nodes are there in some rounds only; `there` tells from the number of trainings sent so far."""

    def __init__(self, run: PreparedRun, there: Any, lost: Any = lambda round_, node: False) -> None:
        super().__init__(run, lambda reply, message: [] if lost(self.round, node_of(reply)) else [reply])
        self.there, self.round = there, 0

    def sessions(self) -> dict[int, Hashable]:
        return {
            node: session for node in self.get_node_ids() if (session := self.there(self.round, node - FIRST_NODE_ID))
        }

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        sent = list(messages)
        if sent and sent[0].metadata.message_type == "train":
            self.round += 1
        return super().send_and_receive(sent, timeout=timeout)


def carried_out(path: Path, config: Any, there: Any, **rest: Any) -> tuple[Done, ComingAndGoing]:
    run = prepare(path, config)
    with task_identity():
        grid = ComingAndGoing(run, there, **rest)
        outcome = run.server(lambda _: None, welcome=AdmitAll())(grid)
    return done(run, outcome), grid


def always(round_: int, node: int) -> str:
    return "there"


def config_for(method: str, **run: Any) -> Any:
    return config_of(method, run={"users_per_node": EACH, "rounds": 4, **run})


def reasons(result: Done) -> list[tuple[int, str]]:
    return [(failure["round"], failure["reason"]) for failure in result.outcome.failures]


@pytest.mark.parametrize("method", ["fedem", "fedmf", "fedials"])
def test_a_node_that_is_away_costs_its_rounds(method: str, tmp_path: Path) -> None:
    there = lambda round_, node: "" if node == BAD and round_ == 1 else "there"  # noqa: E731
    result, _ = carried_out(tmp_path / "run", config_for(method), there)
    assert reasons(result) == [(2, "is not connected")]
    assert result.lines[0]["evaluated_users"] == USERS - EACH, "round 1 was evaluated in the messages of round 2"
    assert result.lines[-1]["evaluated_users"] == USERS


def test_a_node_that_was_started_anew_is_met_again(tmp_path: Path) -> None:
    whole, _ = carried_out(tmp_path / "whole", config_for("fedem"), always)
    there = lambda round_, node: f"session {round_ >= 2 and node == BAD}"  # noqa: E731
    result, _ = carried_out(tmp_path / "run", config_for("fedem"), there)
    assert reasons(result) == []
    assert largest_difference(result.server, whole.server) == 0


def test_a_late_node_joins(tmp_path: Path) -> None:
    there = lambda round_, node: "" if node == BAD and round_ < 2 else "there"  # noqa: E731
    result, _ = carried_out(tmp_path / "run", config_for("fedmf"), there)
    assert reasons(result) == []
    assert [line["evaluated_users"] for line in result.lines] == [30, 40, 40, 40]
    assert [line["participants"] for line in result.lines] == [30, 30, 40, 40]


def test_a_refused_node_is_asked_again_when_it_is_started_anew(tmp_path: Path) -> None:
    class Picky(AdmitAll):
        asked = 0

        def objection(self, session: Hashable, users: np.ndarray) -> str:
            if users[0] != BAD * EACH:
                return ""
            Picky.asked += 1
            return "not today" if Picky.asked == 1 else ""

    run = prepare(tmp_path / "run", config_for("fedmf"))
    there = lambda round_, node: f"session {round_ >= 2}"  # noqa: E731
    with task_identity():
        outcome = run.server(lambda _: None, welcome=Picky())(ComingAndGoing(run, there))
    result = done(run, outcome)
    assert reasons(result) == [(0, "not today")] and Picky.asked == 2
    assert [line["evaluated_users"] for line in result.lines] == [30, 40, 40, 40]


@pytest.mark.parametrize("method", ["fedem", "fedmf", "fedials"])
def test_a_round_below_its_quorum_is_repeated(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was made of what came: the result is the undisturbed one, as nodes have stored the round before."""
    monkeypatch.setattr(loop, "REPEAT_PAUSE", 0.0)
    whole, _ = carried_out(tmp_path / "whole", config_for(method), always)
    lost = lambda attempt, node: (attempt, node) in {(2, BAD), (3, BAD), (5, 0)}  # noqa: E731
    result, grid = carried_out(tmp_path / "run", config_for(method, quorum=1.0, checkpoint_every=1), always, lost=lost)
    assert grid.round == 4 + 3, "attempts"
    assert [round_ for round_, _ in reasons(result)] == [2, 2, 3]
    assert largest_difference(result.server, whole.server) == 0
    assert largest_difference(result.nodes, whole.nodes) == 0
    half, _ = carried_out(tmp_path / "half", config_for(method, quorum=0.7, checkpoint_every=1), always, lost=lost)
    assert len(half.lines) == 4 and len(reasons(half)) == 2, "30 of 40 are enough"


def test_patience_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "REPEAT_PAUSE", 0.0)
    lost = lambda attempt, node: node == BAD and attempt >= 2  # noqa: E731
    with pytest.raises(FedemError, match=r"30 of 40 participants contributed to round 2, fewer than the quorum of 40"):
        carried_out(tmp_path / "run", config_for("fedmf", quorum=1.0, patience=0.2), always, lost=lost)


class Posted(OrderedGrid):
    """Messages are answered when the test says so."""

    def __init__(self) -> None:
        super().__init__(threading.Event())
        self.pushed: list[tuple[str, Message]] = []
        self.answers: list[tuple[int, str]] = []  # place among the pushed, kind
        self.repeat: list[int] = []

    def get_node_ids(self) -> list[int]:
        return [1, 2, 3]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            ids.append(f"m{len(self.pushed)}")
            self.pushed.append((ids[-1], message))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        wanted, found = set(message_ids), []
        for place, kind in [one for one in self.answers[:1] if one[0] < len(self.pushed)]:
            message_id, message = self.pushed[place]
            if message_id in wanted:
                self.answers.pop(0)
                with task_identity():
                    reply = Message(message.content, reply_to=message)
                vars(reply.metadata)["_reply_to_message_id"] = message_id
                reply.metadata.__dict__["_group_id"] = kind
                found.append(reply)
        return found

    def again_at(self, reply: Message, since: float, now: float) -> float | None:
        return now if reply.metadata.group_id in ("again", "anew") else None

    def outlives(self, reply: Message) -> bool:
        return reply.metadata.group_id == "anew"

    def started_anew(self, nodes: Collection[int]) -> Collection[int]:
        due, self.repeat = [node for node in self.repeat if node in nodes], []
        return due


def asked(grid: Posted, count: int = 3, timeout: float = 2.0) -> Iterator[Message]:
    from flwr.app import RecordDict

    with task_identity():
        messages = [Message(RecordDict(), node, "train") for node in range(1, count + 1)]
    return grid.send_and_receive(messages, timeout=timeout)


def order_of(replies: Iterable[Message]) -> list[int]:
    return [reply.metadata.src_node_id for reply in replies]


def test_replies_come_in_the_order_of_the_messages() -> None:
    grid = Posted()
    grid.answers = [(2, ""), (0, ""), (1, "")]
    assert order_of(asked(grid)) == [1, 2, 3]


def test_a_message_is_sent_again_and_counts_once() -> None:
    grid = Posted()
    grid.answers = [(0, "again"), (3, ""), (1, ""), (2, "")]
    assert order_of(asked(grid)) == [1, 2, 3] and len(grid.pushed) == 4
    twice = Posted()
    twice.repeat = [2]
    twice.answers = [(0, ""), (3, ""), (1, ""), (2, "")]  # message 3 is the second to node 2, answered before the first
    replies = asked(twice)
    assert [next(replies).metadata.src_node_id, next(replies).metadata.src_node_id] == [1, 2]


@pytest.mark.parametrize("kind", ["again", "anew"])
def test_copies_that_nobody_will_answer_are_not_waited_for(kind: str) -> None:
    """The first copy was taken by a process that died; what answers the second does not take it as it is."""
    grid = Posted()
    grid.repeat = [2]
    grid.answers = [(0, ""), (2, ""), (3, kind), (4, "")]
    assert order_of(asked(grid, timeout=0.5)) == ([1, 2, 3] if kind == "anew" else [1, 3])


def test_a_deadline_leaves_out_who_is_late() -> None:
    grid = Posted()
    grid.answers = [(2, "")]
    assert order_of(asked(grid)) == [3]
