"""Bundles of messages: nodes that share carriers answer as nodes of one process do."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_app import by_partition, echo_app, orders, plain_message, three_rounds, toy_app

from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.messages.wire import LazyArray, pack_arrays, unpack_arrays
from fedem_flwr.runtime import bundles, cluster, shared_arrays, simulation
from fedem_flwr.runtime.bundles import Bundles, CarrierApp
from fedem_flwr.runtime.inprocess import InProcessGrid, run_inprocess, task_identity
from fedem_flwr.runtime.simulation import SimulationGrid

CONFIG = {"scale": 10.0}


@pytest.fixture(autouse=True)
def _server() -> Iterator[None]:
    with task_identity():
        yield


class Carriers(InProcessGrid):
    """Pickles what crosses, as Ray does, and notes it; loses bundles with more than one message where it is told to."""

    def __init__(self, app: ClientApp, *, carriers: int, nodes: int, deadly: int | None = None) -> None:
        super().__init__(CarrierApp(app, nodes, CONFIG), nodes=carriers, run_config={})
        self.deadly = deadly
        self.sizes: list[int] = []
        self.nodes: list[list[int]] = []

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        crossed = []
        for message in messages:
            told: Any = message.content["bundle"]["nodes"]
            data = pickle.dumps(message.content)
            self.sizes.append(len(data))
            self.nodes.append([*told])
            message.content = pickle.loads(data)
            crossed.append(message)
        return super().push_messages(crossed)

    def _execute(self, message: Message) -> Message:
        told: Any = message.content["bundle"]["nodes"]
        if self.deadly in told:
            reply = Message(Error(bundles.PROCESS_LOST, "died"), reply_to=message)
            vars(reply.metadata)["_message_id"] = "lost"
            return reply
        return super()._execute(message)


def over(carriers: Carriers, nodes: int, most: int, at_a_time: int = 2) -> Bundles:
    stopped = threading.Event()
    once = SimulationGrid(carriers, stopped, at_a_time, repeats=False)
    alone = SimulationGrid(carriers, stopped, repeats=False)
    return Bundles(once, alone, carriers.get_node_ids(), nodes, most)


@settings(max_examples=30)
@given(nodes=st.integers(1, 9), carriers=st.integers(1, 4), most=st.integers(1, 5), at_a_time=st.integers(1, 3))
def test_any_bundles_give_what_one_process_gives(nodes: int, carriers: int, most: int, at_a_time: int) -> None:
    """Replies, errors and the nodes' contexts, whatever is together; nodes have the same numbers, too."""
    with task_identity():
        below = Carriers(toy_app(), carriers=carriers, nodes=nodes)
        there = three_rounds(over(below, nodes, most, at_a_time))
        here = run_inprocess(toy_app(), three_rounds, nodes=nodes, run_config=CONFIG)
    assert there["errors"] == here["errors"] and there["seen"] == here["seen"]
    for phase in ("first", "last"):
        assert [*there[phase]] == [*here[phase]]
        for partition, tables in here[phase].items():
            for name, values in tables.items():
                np.testing.assert_array_equal(there[phase][partition][name], values)
    assert max(map(len, below.nodes)) == min(nodes, most) and len(below.nodes) == 3 * -(-nodes // most)


def test_a_node_is_told_what_it_was_sent() -> None:
    """Kind, group and number are its own; a message of any kind finds its function."""
    seen: list[tuple[int, str, str, int]] = []
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        outside = message.metadata
        partition = int(context.node_config["partition-id"])
        seen.append((outside.dst_node_id, outside.message_type, outside.group_id, partition))
        return Message(RecordDict(), reply_to=message)

    app.query()(answer)
    app.evaluate()(answer)
    grid = over(Carriers(app, carriers=1, nodes=2), 2, 2)
    first, second = grid.get_node_ids()
    sent = [Message(RecordDict(), first, "query", group_id="a"), Message(RecordDict(), second, "evaluate")]
    replies = list(grid.send_and_receive(sent))
    assert seen == [(first, "query", "a", 0), (second, "evaluate", "", 1)]
    assert [reply.metadata.src_node_id for reply in replies] == [first, second]
    with pytest.raises(FedemError, match="no node 99"):
        list(grid.send_and_receive([plain_message(99)]))


def test_several_messages_to_a_node_are_answered_one_after_the_other() -> None:
    grid = over(Carriers(toy_app(), carriers=1, nodes=2), 2, 4)
    replies = list(grid.send_and_receive([*orders(grid), *orders(grid)]))
    added = [unpack_arrays(reply.content["tables"])["a"][0, 0] for reply in replies]
    assert added == [1, 11, 2, 12], "each node counts its messages"


def test_a_node_that_kills_processes_costs_its_own_reply_only() -> None:
    """The messages of a bundle that is lost go out again, one by one, in their places among the others."""
    below = Carriers(toy_app(), carriers=2, nodes=7, deadly=4)
    grid = over(below, 7, 3)
    replies = list(grid.send_and_receive(orders(grid)))
    assert [reply.metadata.src_node_id for reply in replies] == grid.get_node_ids()
    assert [reply.metadata.src_node_id for reply in replies if reply.has_error()] == [4]
    assert sorted(below.nodes) == sorted([[2, 3, 4], [5, 6, 7], [8], [2], [3], [4]])


def test_what_several_nodes_are_sent_crosses_once() -> None:
    table, own = np.zeros(10_000), [np.full(100, node) for node in range(4)]
    app = echo_app(lambda message, _: Message(message.content, reply_to=message))
    below = Carriers(app, carriers=1, nodes=4)
    grid = over(below, 4, 4)
    messages = (plain_message(node, table=table, own=own[at]) for at, node in enumerate(grid.get_node_ids()))
    replies = [unpack_arrays(reply.content["tables"]) for reply in grid.send_and_receive(messages)]
    assert len(below.sizes) == 1 and table.nbytes < below.sizes[0] < 1.2 * table.nbytes
    for node, arrays in enumerate(replies):
        np.testing.assert_array_equal(arrays["table"], table)
        np.testing.assert_array_equal(arrays["own"], own[node])


def test_large_arrays_are_stored_once_and_single_ones_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[np.ndarray] = []

    class Stored(LazyArray):
        def __init__(self, values: np.ndarray) -> None:
            super().__init__(values)
            stored.append(values)

    monkeypatch.setattr(shared_arrays, "StoredArray", Stored)
    monkeypatch.setattr(shared_arrays, "_STORED_BYTES", 800)
    table, own, once = np.ones(100), np.ones((3, 100)), shared_arrays.Once()
    sizes = []
    for row in own:
        content = RecordDict({"tables": pack_arrays({"table": table, "own": row, "few": np.ones(9)})})
        sizes.append(once.adds(content))
        assert once.adds(content) == 0, "what is there already adds nothing"
        assert isinstance(once.shared(content.array_records["tables"])["table"], Stored)
        once.begin()
    assert sizes == [1672, 872, 872] and len(stored) == 4, "the table is stored once for all bundles"
    assert len(once._before) == 2, "of what is large, what the last bundle had"


def test_a_bundle_is_no_larger_than_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "_MOST_BYTES", 2000)
    below = Carriers(echo_app(lambda message, _: Message(RecordDict(), reply_to=message)), carriers=2, nodes=5)
    grid = over(below, 5, 5)
    assert len(list(grid.send_and_receive(plain_message(node, x=np.ones(100)) for node in grid.get_node_ids()))) == 5
    assert [len(nodes) for nodes in below.nodes] == [2, 2, 1]


def test_messages_are_made_when_there_is_room() -> None:
    made: list[int] = []
    grid = over(Carriers(echo_app(lambda m, _: Message(RecordDict(), reply_to=m)), carriers=1, nodes=9), 9, 2)

    def messages() -> Iterator[Message]:
        for node in grid.get_node_ids():
            made.append(node)
            yield plain_message(node)

    replies = grid.send_and_receive(messages())
    next(replies)
    assert len(made) < 9
    assert len(list(replies)) == 8


def test_pushed_and_pulled_one_by_one() -> None:
    grid = over(Carriers(toy_app(), carriers=2, nodes=3), 3, 3)
    ids = grid.push_messages(orders(grid))
    replies = grid.pull_messages([*reversed(ids), "unknown"])
    assert {reply.metadata.reply_to_message_id for reply in replies} == {*ids} and not grid.pull_messages(ids)
    assert sorted(by_partition(iter(replies))) == [0, 1, 2]


def test_nothing_is_sent_before_ray_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is large would start it, in its own way; and when it has gone, once more."""
    import ray

    looks = iter([False, False])
    monkeypatch.setattr(ray, "is_initialized", lambda: next(looks, True))
    grid: Any = SimpleNamespace(get_node_ids=lambda: [3, 4])
    simulation._bundles(grid, 2, 1, threading.Event())
    assert next(looks, "asked") == "asked"
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(FedemError, match="Ray has gone"):
        shared_arrays.StoredArray(np.ones(3))


def test_a_cluster_whose_cores_are_taken_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    machines = [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False, "Resources": {"CPU": 8.0}}]
    free = iter([0.0, 1.0, 2.0])
    left: list[bool] = []
    for name, told in {
        "init": lambda **_: None,
        "nodes": lambda: machines,
        "available_resources": lambda: {"CPU": next(free, 1.0)},
        "shutdown": lambda: left.append(True),
    }.items():
        monkeypatch.setattr(ray, name, told)
    monkeypatch.setattr(cluster.socket, "create_connection", lambda *_: SimpleNamespace(close=lambda: None))
    cluster.join("here:1", 1)  # the last driver's cores come back after a moment
    assert not left
    monkeypatch.setattr(cluster, "_ANSWER_SECONDS", 0.0)
    with pytest.raises(InputError, match="others have 1 of the 2 CPU cores"):
        cluster.join("here:1", 1)
    assert left
