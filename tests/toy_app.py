"""A toy client app, its messages and three rounds of it: what every runtime must carry out alike."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedem_flwr.messages.wire import pack_arrays, unpack_arrays


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
            "machine": machine(),
        }
    )
    return Message(RecordDict({"tables": pack_arrays(added), "seen": seen}), reply_to=message)


def machine() -> int:
    """A number of the machine of Ray's cluster that this process is on; 0 outside Ray."""
    ray = sys.modules.get("ray")
    return int(ray.get_runtime_context().get_node_id()[:12], 16) if ray and ray.is_initialized() else 0


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
