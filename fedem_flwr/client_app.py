"""The Flower ClientApp: unpacks a message, calls the NumPyClient's `fit` or `evaluate`, packs the reply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedem_flwr.config.registry import find
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
    """Nodes that all see the run's directory: given, or named by the context's run configuration."""

    host: NodeHost | None = None

    def welcome(self, message: Message, context: Context) -> Mapping[str, np.ndarray]:
        """Nothing has to be said."""
        return {}

    def of(self, message: Message, context: Context) -> NodeHost:
        """The one."""
        return self.host if self.host is not None else _host_from(context)

    def node(self, context: Context) -> int:
        """Flower's number of the partition."""
        return int(context.node_config["partition-id"])


def build_client_app(hosts: NodeHost | Hosts | None = None) -> ClientApp:
    """A ClientApp whose nodes are hosted by `hosts`, or described by the context.

    Args:
        hosts: given where the process that makes the app also runs the clients, or hands it to Ray's actors.
    """
    app = ClientApp()

    def hosts_of(context: Context) -> Hosts:
        if hosts is None:
            return _shards_from(context) if "shard" in context.node_config else OneHost()
        return OneHost(hosts) if isinstance(hosts, NodeHost) else hosts

    def client_of(message: Message, context: Context) -> Any:
        source = hosts_of(context)
        here = source.of(message, context)
        return find("clients", here.config.method.client)(here, source.node(context))

    @app.query()
    def query(message: Message, context: Context) -> Message:
        known = hosts_of(context).welcome(message, context)
        arrays = client_of(message, context).introduce()
        return Message(RecordDict({"arrays": pack_arrays({**arrays, **known})}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = client_of(message, context)
        config = _config(message)
        try:
            parameters = _parameters(message, client.DOWNLOAD)
            arrays, examples, metrics = client.fit(parameters, config)
        except Exception:
            client.host.forget(client.node)
            raise
        names = client.upload_names(config)
        if "participants" in client.DOWNLOAD and not len(parameters[client.DOWNLOAD.index("participants")]):
            arrays = [array[(slice(0, 0),) * array.ndim] for array in arrays]  # whoever only evaluates sends no zeros
        return _reply(message, metrics, examples, dict(zip(names, arrays, strict=True)))

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        client = client_of(message, context)
        _, examples, metrics = client.evaluate(_parameters(message, client.DOWNLOAD), _config(message))
        return _reply(message, metrics, examples, None)

    return app


def _host_from(context: Context) -> NodeHost:
    settings = context.run_config
    return NodeHost(
        Path(str(settings["run-dir"])), int(context.node_config["num-partitions"]), int(settings["threads"])
    )


def _shards_from(context: Context) -> Hosts:
    """Of Flower's own SuperNode, whose every message meets a new process: `--node-config 'shard="..." state="..."'`."""
    from fedem_flwr.network.host import ShardHosts
    from fedem_flwr.network.trust import load_server_key
    from fedem_flwr.nodes.policy import NodePolicy

    told = context.node_config
    key, least = told.get("server-key"), told.get("smallest-sum")
    individual = told.get("allow-individual-uploads") is True
    return ShardHosts(
        Path(str(told["shard"])),
        Path(str(told["state"])),
        load_server_key(Path(str(key))) if key else None,
        threads=int(told.get("threads", 0)),
        policy=NodePolicy.networked(None if least is None else int(least), single_users=individual),
        resident=False,
    )


def _config(message: Message) -> dict[str, Any]:
    return dict(message.content.config_records.get("config", ConfigRecord()))


def _parameters(message: Message, names: tuple[str, ...]) -> list[np.ndarray]:
    """The message's arrays in the order that the client takes them."""
    received = unpack_arrays(message.content.array_records["arrays"])
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


class SuperNodeApp(ClientApp):
    """For Flower's own SuperNode: messages of our server come condensed, and so go the replies to them."""

    def __init__(self, inner: ClientApp) -> None:
        super().__init__()
        self._inner = inner

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message."""
        from fedem_flwr.network.condense import condense, expand

        plain = expand(message)
        reply = self._inner(plain, context)
        return reply if plain is message else condense(reply)


app = SuperNodeApp(build_client_app())
