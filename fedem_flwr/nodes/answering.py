"""How a node answers: unpacks a message, calls the NumPyClient's `fit` or `evaluate`, packs the reply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedem_flwr.config.registry import client_of
from fedem_flwr.messages.narrow import Drawn, narrowed, widened
from fedem_flwr.messages.wire import pack_arrays, unpack_arrays
from fedem_flwr.nodes.host import NodeHost


class Hosts(Protocol):
    """Where a node's side of a run comes from."""

    def welcome(self, message: Message, context: Context) -> Mapping[str, np.ndarray]:
        """Take in what a server says of its run; returns arrays to answer with."""

    def of(self, message: Message, context: Context) -> NodeHost:
        """The host of the node that a message is for."""

    def node(self, context: Context) -> int:
        """The node's number there."""


@dataclass(frozen=True)
class OneHost:
    """Nodes that all see the run's directory."""

    host: NodeHost

    def welcome(self, message: Message, context: Context) -> Mapping[str, np.ndarray]:
        """Nothing has to be said."""
        return {}

    def of(self, message: Message, context: Context) -> NodeHost:
        """The one."""
        return self.host

    def node(self, context: Context) -> int:
        """Flower's number of the partition."""
        return int(context.node_config["partition-id"])


def build_client_app(hosts: NodeHost | Hosts) -> ClientApp:
    """A ClientApp whose nodes are hosted by `hosts`."""
    app, source = ClientApp(), OneHost(hosts) if isinstance(hosts, NodeHost) else hosts

    def answering(message: Message, context: Context) -> Any:
        here = source.of(message, context)
        return client_of(here.config.method.strategy, here.config.method.client)(here, source.node(context))

    @app.query()
    def query(message: Message, context: Context) -> Message:
        known = source.welcome(message, context)
        arrays = answering(message, context).introduce()
        return Message(RecordDict({"arrays": pack_arrays({**arrays, **known})}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = answering(message, context)
        config = _config(message)
        try:
            parameters = _parameters(message, client)
            arrays, examples, metrics = client.fit(parameters, config)
        except Exception:
            client.host.forget(client.node)
            raise
        named = dict(zip(client.upload_names(config), arrays, strict=True))
        if "participants" in client.DOWNLOAD and not len(parameters[client.DOWNLOAD.index("participants")]):
            named = {n: array[(slice(0, 0),) * array.ndim] for n, array in named.items()}  # no zeros
        return _reply(message, metrics, examples, _narrowed(client, named, config))

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        client = answering(message, context)
        _, examples, metrics = client.evaluate(_parameters(message, client), _config(message))
        return _reply(message, metrics, examples, None)

    return app


def _narrowed(client: Any, arrays: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
    """An upload as it crosses."""
    run = client.host.config
    if run.messages.bits_up == 32:
        return arrays
    fields = client.method.schedule.named(str(config["upload"])).task.fields()
    drawn = Drawn(run.run.seed, int(config["server-round"]), int(client.users[0]) if len(client.users) else 0)
    return narrowed(arrays, run.messages.bits_up, fields, drawn)


def _config(message: Message) -> dict[str, Any]:
    return dict(message.content.config_records.get("config", ConfigRecord()))


def _parameters(message: Message, client: Any) -> list[np.ndarray]:
    """The message's arrays in the order that the client takes them."""
    received, names = unpack_arrays(message.content.array_records["arrays"]), client.DOWNLOAD
    if client.host.config.messages.bits_down < 32:
        received = widened(received)
    missing = [name for name in names if name not in received]
    if missing:
        raise ValueError(f"the message lacks the arrays {missing}; the strategy and the client do not fit together")
    return [received[name] for name in names]


def _reply(
    message: Message, metrics: Mapping[str, Any], examples: int, arrays: Mapping[str, np.ndarray] | None
) -> Message:
    content = RecordDict({"metrics": MetricRecord({**metrics, "num-examples": examples})})
    if arrays is not None:
        content["arrays"] = pack_arrays(arrays)
    return Message(content, reply_to=message)
