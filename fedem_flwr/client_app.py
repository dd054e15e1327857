"""The Flower ClientApp that `flwr run` and Flower's own SuperNodes load: what it hosts is said by the context."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedem_flwr.network.condense import condense, expand
from fedem_flwr.network.host import ShardHosts
from fedem_flwr.network.trust import load_server_key
from fedem_flwr.nodes.answering import Hosts, OneHost, build_client_app
from fedem_flwr.nodes.host import NodeHost


class FromContext:
    """Nodes with a shard of their own, or nodes that all see the run's directory."""

    def welcome(self, message: Message, context: Context) -> Mapping[str, np.ndarray]:
        """See `nodes.answering.Hosts`."""
        return self._hosts(context).welcome(message, context)

    def of(self, message: Message, context: Context) -> NodeHost:
        """See `nodes.answering.Hosts`."""
        return self._hosts(context).of(message, context)

    def node(self, context: Context) -> int:
        """See `nodes.answering.Hosts`."""
        return self._hosts(context).node(context)

    def _hosts(self, context: Context) -> Hosts:
        return _shards_from(context) if "shard" in context.node_config else OneHost(_host_from(context))


def _host_from(context: Context) -> NodeHost:
    settings = context.run_config
    return NodeHost(
        Path(str(settings["run-dir"])), int(context.node_config["num-partitions"]), int(settings["threads"])
    )


def _shards_from(context: Context) -> Hosts:
    """Of Flower's own SuperNode, whose every message meets a new process: `--node-config 'shard="..." state="..."'`."""
    told = context.node_config
    key = told.get("server-key")
    return ShardHosts(
        Path(str(told["shard"])),
        Path(str(told["state"])),
        load_server_key(Path(str(key))) if key else None,
        threads=int(told.get("threads", 0)),
        resident=False,
    )


class SuperNodeApp(ClientApp):
    """For Flower's own SuperNode: messages of our server come condensed, and so go the replies to them."""

    def __init__(self, inner: ClientApp) -> None:
        super().__init__()
        self._inner = inner

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message."""
        plain = expand(message)
        reply = self._inner(plain, context)
        return reply if plain is message else condense(reply)


app = SuperNodeApp(build_client_app(FromContext()))
