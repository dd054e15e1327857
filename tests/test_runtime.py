"""The runtimes: one client app gives the same answers, errors and state wherever its nodes run."""

from __future__ import annotations

import logging
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.messages.wire import LazyArray, pack_arrays, payload_bytes, unpack_arrays
from fedem_flwr.runtime import inprocess, simulation, surroundings
from fedem_flwr.runtime.inprocess import run_inprocess, task_identity
from fedem_flwr.runtime.simulation import run_simulation_runtime

ARRAYS = hnp.arrays(
    dtype=st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_]),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


# ---- the toy client: adds its number and how often it was asked to what it is sent


def add_partition(message: Message, context: Context) -> Message:
    """Answer with x + partition * scale + (messages so far); raise or exit where the message says so."""
    partition = int(context.node_config["partition-id"])
    orders = message.content["orders"]
    state = context.state.setdefault("count", MetricRecord({"messages": 0}))
    state["messages"] = int(state["messages"]) + 1
    if partition in orders["raise"]:
        raise ValueError(f"node {partition}\ncannot")
    if partition in orders["die"]:
        os._exit(1)
    received = unpack_arrays(message.content["tables"])
    scale = float(context.run_config["scale"])
    added = {name: values + partition * scale + int(state["messages"]) for name, values in received.items()}
    seen = MetricRecord(
        {
            "partition": partition,
            "partitions": int(context.node_config["num-partitions"]),
            "threads": int(os.environ.get("OMP_NUM_THREADS", "0")),
            "read_only": int(not any(values.flags.writeable for values in received.values())),
        }
    )
    return Message(RecordDict({"tables": pack_arrays(added), "seen": seen}), reply_to=message)


def toy_app() -> ClientApp:
    app = ClientApp()
    app.train()(add_partition)
    return app


def orders(grid: Grid, **lists: list[int]) -> Iterator[Message]:
    """One message to each node, with two tables and lists of partitions that are to fail."""
    named = {"raise": [-1], "die": [-1]} | lists
    for node_id in grid.get_node_ids():
        tables = pack_arrays({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(0)})
        yield Message(RecordDict({"tables": tables, "orders": ConfigRecord(named)}), node_id, "train")


def by_partition(replies: Iterator[Message]) -> dict[int, dict[str, np.ndarray]]:
    content = [reply.content for reply in replies]
    return {int(part["seen"]["partition"]): unpack_arrays(part["tables"]) for part in content}


def three_rounds(grid: Grid) -> dict[str, Any]:
    """A round that works, one in which node 1 raises, and one that works again."""
    first = by_partition(grid.send_and_receive(orders(grid)))
    failed = list(grid.send_and_receive(orders(grid, **{"raise": [1]})))
    errors = [(reply.error.code, reply.error.reason) for reply in failed if reply.has_error()]
    last = list(grid.send_and_receive(orders(grid)))
    seen = sorted(
        tuple(reply.content["seen"][key] for key in ("partition", "partitions", "read_only")) for reply in last
    )
    return {"first": first, "errors": errors, "last": by_partition(iter(last)), "seen": seen}


def echo_app(answer: Callable[[Message, Context], Message]) -> ClientApp:
    app = ClientApp()
    app.train()(answer)
    return app


def plain_message(node_id: int, **arrays: np.ndarray) -> Message:
    return Message(RecordDict({"tables": pack_arrays(arrays)}), node_id, "train")


# ---- wire


@given(ARRAYS)
def test_lazy_array_serialises_like_flowers_own(array: np.ndarray) -> None:
    lazy, plain = LazyArray(array), Array(array)
    assert (lazy.dtype, lazy.shape, lazy.stype, lazy.data) == (
        plain.dtype,
        plain.shape,
        plain.stype,
        plain.data,
    )
    assert lazy == LazyArray(array.copy()) and lazy != LazyArray(np.append(array.ravel(), 1))
    assert lazy.object_id == plain.object_id
    record, same = pack_arrays({"x": array}), ArrayRecord({"x": plain})
    assert get_all_nested_objects(record).keys() == get_all_nested_objects(same).keys()
    restored = Array.inflate(lazy.deflate(), lazy.children)
    np.testing.assert_array_equal(restored.numpy(), array)


@given(ARRAYS)
def test_record_survives_protobuf_and_pickle(array: np.ndarray) -> None:
    named = {"x": array, "transposed": array.T}
    sent = RecordDict({"tables": pack_arrays(named)})
    through = [recorddict_from_proto(recorddict_to_proto(sent)), pickle.loads(pickle.dumps(sent))]
    for received in through:
        taken = unpack_arrays(received["tables"])
        assert list(taken) == list(named)
        for name, values in taken.items():
            assert values.dtype == array.dtype and not values.flags.writeable
            np.testing.assert_array_equal(values, named[name])
        assert payload_bytes(sent) == 2 * array.nbytes + len("xtransposed") <= payload_bytes(received)


def test_nothing_is_serialised_until_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("serialised")

    monkeypatch.setattr(np, "save", refuse)
    array, tensor = np.ones((3, 2), dtype=np.float32), torch.ones(4, dtype=torch.float64, requires_grad=True)
    record = pack_arrays({"é": array, "tensor": tensor})
    taken = unpack_arrays(record)
    assert np.shares_memory(taken["é"], array) and np.shares_memory(taken["tensor"], tensor.detach().numpy())
    assert array.flags.writeable, "the sender may still write"
    assert payload_bytes(record) == 3 * 2 * 4 + 4 * 8 + 2 + len("tensor")
    assert "LazyArray" in repr(record)
    with pytest.raises(ValueError, match="read-only"):
        taken["é"][0] = 2
    with pytest.raises(AssertionError, match="serialised"):
        _ = record["é"].data


def test_pickle_carries_the_array_out_of_band() -> None:
    array = np.arange(1000.0)
    buffers: list[pickle.PickleBuffer] = []
    small = pickle.dumps(pack_arrays({"x": array}), protocol=5, buffer_callback=buffers.append)
    assert len(small) < 2000 and [buffer.raw().nbytes for buffer in buffers] == [8000]
    received = unpack_arrays(pickle.loads(small, buffers=buffers))["x"]
    assert np.shares_memory(received, array)


def test_objects_are_refused_and_foreign_formats_weigh_their_bytes() -> None:
    with pytest.raises(TypeError, match="Python objects"):
        pack_arrays({"x": np.array([None])})
    for dtype, shape in (("bfloat16", (2,)), ("O" * 9, (-1,)), ("float64", (10**18,)), ("(2,", ())):
        for kind in ("other", "numpy.ndarray"):
            foreign = ArrayRecord({"x": Array(dtype, shape, kind, b"abcd")})
            assert payload_bytes(foreign) == 4 + 1, "what it says of itself is not believed"


# ---- in this process


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


def test_deadline_counts_the_nodes_time_only() -> None:
    def slow(message: Message, context: Context) -> Message:
        time.sleep(0.06)
        return Message(RecordDict(), reply_to=message)

    def server(grid: Grid) -> tuple[int, int, int]:
        def ask(timeout: float | None, pause: float = 0.0) -> int:
            count = 0
            messages = (plain_message(node) for node in grid.get_node_ids())
            for _ in grid.send_and_receive(messages, timeout=timeout):
                time.sleep(pause)
                count += 1
            return count

        return ask(0.0), ask(0.1), ask(1.0, pause=0.4)

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


# ---- Ray


def test_ray_requests_are_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(match: str, **request: Any) -> None:
        with pytest.raises(InputError, match=match):
            run_simulation_runtime(toy_app(), three_rounds, **({"nodes": 2, "run_config": {}} | request))

    refused("at least one node", nodes=0)
    refused("at least 1 core", cpus_per_node=0)
    refused("GPUs", gpus_per_node=1000.0)
    with monkeypatch.context() as patch:
        patch.setattr(simulation.importlib.util, "find_spec", lambda _: None)
        refused("needs Ray: pip install")
    monkeypatch.setattr(surroundings, "LONGEST_DIRECTORY", 5)
    refused("short path")


def test_ray_directory_avoids_long_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 20)
    deep.mkdir()
    monkeypatch.setattr(surroundings.tempfile, "tempdir", str(deep))
    with surroundings.short_directory() as directory:
        assert directory.is_dir() and len(str(directory)) <= surroundings.LONGEST_DIRECTORY
        assert list(deep.iterdir()) == []
    assert not directory.exists()


def test_environment_is_put_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("FLWR_HOME", raising=False)
    before = dict(os.environ)
    with simulation._environment(tmp_path, 3):
        assert os.environ["OMP_NUM_THREADS"] == "3" and os.environ["FLWR_HOME"] == str(tmp_path)
        os.environ["SET_BY_RAY"] = "1"
    assert dict(os.environ) == before


def test_replies_come_in_the_order_of_messages() -> None:
    """A stand-in for Flower's grid hands replies out backwards, one a pull, and keeps the last for itself."""

    class Backwards(inprocess.InProcessGrid):
        def pull_messages(self, message_ids: Any) -> list[Message]:
            ready = sorted(set(message_ids) - {"4"}, key=int)[-1:]
            return super().pull_messages(ready)

    with task_identity():
        grid = simulation.SimulationGrid(
            Backwards(toy_app(), nodes=4, run_config={"scale": 1.0}), stopped := threading.Event()
        )
        replies = list(grid.send_and_receive(orders(grid), timeout=0.5))
        assert [reply.metadata.src_node_id for reply in replies] == [2, 3, 4]
        with pytest.raises(FedemError, match="no node 99"):
            grid.push_messages([plain_message(99)])
        stopped.set()
        with pytest.raises(FedemError, match="stopped"):
            list(grid.send_and_receive(orders(grid)))


def test_a_message_is_sent_again_while_a_process_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    deaths = {0: 2, 2: 1000}  # by partition; node 2 never comes back

    def mortal(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        if deaths.get(partition, 0) > 0:
            deaths[partition] -= 1
            return Message(Error(simulation.PROCESS_LOST, "died\n of  it"), reply_to=message)
        return Message(RecordDict(), reply_to=message)

    monkeypatch.setattr(simulation, "RESTART_PAUSE", 0.01)
    monkeypatch.setattr(simulation, "RESTART_SECONDS", 0.3)
    with task_identity():
        below = inprocess.InProcessGrid(echo_app(mortal), nodes=3, run_config={})
        grid = simulation.SimulationGrid(below, threading.Event())
        replies = list(grid.send_and_receive(plain_message(node) for node in grid.get_node_ids()))
    assert [reply.metadata.src_node_id for reply in replies] == [2, 3, 4]
    assert [reply.has_error() for reply in replies] == [False, False, True]
    assert replies[2].error.reason == "died of it"


def server_under_ray(grid: Grid) -> dict[str, Any]:
    """Three rounds, one in which node 0's process dies, one that works, and a deadline that is too near."""
    result = three_rounds(grid)
    replies = list(grid.send_and_receive(orders(grid, die=[0])))
    result["dead"] = [str(reply.error.reason) for reply in replies if reply.has_error()]
    after = list(grid.send_and_receive(orders(grid)))
    result["after"] = by_partition(iter(after))
    result["threads"] = [reply.content["seen"]["threads"] for reply in after]
    result["hurried"] = len(list(grid.send_and_receive(orders(grid), timeout=0.0)))
    return result


@pytest.mark.ray
def test_ray_gives_the_same_results_as_one_process(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(simulation, "RESTART_SECONDS", 1.0)

    environment = dict(os.environ)
    here = run_inprocess(toy_app(), three_rounds, nodes=2, run_config={"scale": 10.0})
    there = run_simulation_runtime(toy_app(), server_under_ray, nodes=2, run_config={"scale": 10.0})
    screen = capfd.readouterr()
    for phase in ("first", "last"):
        for partition, tables in here[phase].items():
            for name, values in tables.items():
                np.testing.assert_array_equal(there[phase][partition][name], values)
    assert there["errors"] == here["errors"] and there["seen"] == here["seen"]
    assert len(there["dead"]) == 1 and "\n" not in there["dead"][0], (
        "a process that keeps dying costs its own reply only"
    )
    assert sorted(there["after"]) == [0, 1] and there["threads"] == [1, 1] and there["hurried"] == 0
    assert not ray.is_initialized() and dict(os.environ) == environment
    assert (screen.out, screen.err) == ("", "")
    assert not logging.getLogger("flwr").filters


@pytest.mark.ray
def test_ray_passes_the_servers_exception_back() -> None:
    def fail(grid: Grid) -> None:
        raise InputError("no such column")

    with pytest.raises(InputError, match="no such column"):
        run_simulation_runtime(toy_app(), fail, nodes=1, run_config={})
