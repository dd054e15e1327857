"""A client app in this process: answers, errors, deadlines and state."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from toy_app import echo_app, orders, plain_message, three_rounds, toy_app

from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.messages.wire import pack_arrays, payload_bytes, unpack_arrays
from fedem_flwr.runtime import inprocess, simulation
from fedem_flwr.runtime.inprocess import run_inprocess


def test_rounds_in_process() -> None:
    result = run_inprocess(toy_app(), three_rounds, nodes=3, run_config={"scale": 10.0})
    base = np.arange(6, dtype=np.float32).reshape(2, 3)
    for partition in range(3):
        np.testing.assert_array_equal(result["first"][partition]["a"], base + partition * 10 + 1)
        # node 1 raised in the second round, and its state is as if that had not been
        np.testing.assert_array_equal(
            result["last"][partition]["a"], base + partition * 10 + (2 if partition == 1 else 3)
        )
    assert result["errors"] == [(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "ValueError: node 1 cannot")]
    assert result["seen"] == [(0, 3, 1), (1, 3, 1), (2, 3, 1)]


def test_arrays_are_shared_both_ways_in_process() -> None:
    kept = {"client": np.full(3, 7.0)}
    table = np.zeros((4, 2))

    def share(message: Message, context: Context) -> Message:
        received = unpack_arrays(message.content["tables"])["x"]
        assert np.shares_memory(received, table) and not received.flags.writeable
        return Message(RecordDict({"tables": pack_arrays(kept)}), reply_to=message)

    def server(grid: Grid) -> None:
        (reply,) = grid.send_and_receive(plain_message(node, x=table) for node in grid.get_node_ids())
        assert np.shares_memory(unpack_arrays(reply.content["tables"])["client"], kept["client"])

    run_inprocess(echo_app(share), server, nodes=1, run_config={})


def test_messages_and_replies_are_taken_one_at_a_time() -> None:
    events: list[str] = []

    def note(message: Message, context: Context) -> Message:
        events.append(f"run {context.node_config['partition-id']}")
        return Message(RecordDict(), reply_to=message)

    def server(grid: Grid) -> None:
        def produce() -> Iterator[Message]:
            for node_id in grid.get_node_ids():
                events.append("make")
                yield plain_message(node_id)

        for reply in grid.send_and_receive(produce()):
            events.append(f"use {reply.metadata.src_node_id}")

    run_inprocess(echo_app(note), server, nodes=2, run_config={})
    assert events == ["make", "run 0", "use 2", "make", "run 1", "use 3"]


def test_a_client_cannot_change_what_others_are_sent() -> None:
    def spoil(message: Message, context: Context) -> Message:
        assert message.content["settings"] == {"rate": 1.0}
        message.content["settings"]["rate"] = 2.0
        message.content["more"] = ConfigRecord()
        context.run_config["scale"] = 5
        return Message(RecordDict({"seen": MetricRecord({"x": 1})}), reply_to=message)

    def server(grid: Grid) -> list[bool]:
        shared = RecordDict({"settings": ConfigRecord({"rate": 1.0})})
        replies = grid.send_and_receive(Message(shared, node, "train") for node in grid.get_node_ids())
        failed = [reply.has_error() for reply in replies]
        assert list(shared) == ["settings"]
        return failed

    assert run_inprocess(echo_app(spoil), server, nodes=3, run_config={"scale": 1}) == [False] * 3


def test_deadline_counts_the_nodes_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def slow(message: Message, context: Context) -> Message:
        sleep(0.06)
        return Message(RecordDict(), reply_to=message)

    def server(grid: Grid) -> tuple[int, int, int]:
        def ask(timeout: float | None, pause: float = 0.0) -> int:
            count = 0
            messages = (plain_message(node) for node in grid.get_node_ids())
            for _ in grid.send_and_receive(messages, timeout=timeout):
                sleep(pause)
                count += 1
            return count

        return ask(0.0), ask(0.1), ask(1.0, pause=0.4)

    monkeypatch.setattr(inprocess, "time", SimpleNamespace(perf_counter=lambda: now))
    assert run_inprocess(echo_app(slow), server, nodes=4, run_config={}) == (0, 2, 4)


def test_push_then_pull_and_stable_node_ids() -> None:
    def server(grid: Grid) -> list[int]:
        ids = list(grid.push_messages(orders(grid)))
        assert len(set(ids)) == 3
        replies = list(grid.pull_messages(ids[::-1]))
        assert [reply.metadata.reply_to_message_id for reply in replies] == ids[::-1]
        assert list(grid.pull_messages([*ids, "unknown"])) == []
        with pytest.raises(FedemError, match="no node 99"):
            grid.push_messages([plain_message(99)])
        return list(grid.get_node_ids())

    runs = [run_inprocess(toy_app(), server, nodes=3, run_config={"scale": 1.0}) for _ in range(2)]
    assert runs == [[2, 3, 4]] * 2


def test_only_exceptions_of_clients_become_replies() -> None:
    def interrupt(message: Message, context: Context) -> Message:
        raise KeyboardInterrupt

    def nothing(message: Message, context: Context) -> Any:
        return None

    def ask(grid: Grid) -> list[Message]:
        return list(grid.send_and_receive(plain_message(node) for node in grid.get_node_ids()))

    with pytest.raises(KeyboardInterrupt):
        run_inprocess(echo_app(interrupt), ask, nodes=1, run_config={})
    (reply,) = run_inprocess(echo_app(nothing), ask, nodes=1, run_config={})
    assert reply.error.reason == "TypeError: a client must answer with a Message, not NoneType"
    (reply,) = run_inprocess(ClientApp(), ask, nodes=1, run_config={})
    assert "No train function" in str(reply.error.reason) and payload_bytes(reply) == 0


def test_server_errors_pass_and_the_identity_is_restored() -> None:
    def server(grid: Grid) -> None:
        assert TaskIdentity.node_id == inprocess.SERVER_NODE_ID == SUPERLINK_NODE_ID
        raise InputError("bad")

    before = inprocess._identity("node_id")
    with pytest.raises(InputError, match="bad"):
        run_inprocess(toy_app(), server, nodes=1, run_config={})
    assert inprocess._identity("node_id") == before
    with pytest.raises(InputError, match="at least one node"):
        run_inprocess(toy_app(), server, nodes=0, run_config={})
    assert simulation.PROCESS_LOST == ErrorCode.UNKNOWN
    assert inprocess.CLIENT_RAISED == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
