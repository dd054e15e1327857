"""The Flower ClientApp that `flwr run` and Flower's own SuperNodes load: what it hosts is said by the context."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedem_flwr.errors import FedemError
from fedem_flwr.network.condense import condense, expand
from fedem_flwr.network.host import ShardHosts
from fedem_flwr.network.trust import load_server_key
from fedem_flwr.nodes.answering import Hosts, build_client_app
from fedem_flwr.nodes.host import CONFIG_FILE, RUN_RECORD, NodeHost
from fedem_flwr.nodes.policy import NodePolicy
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.consent import read_config


class FromContext:
    """Nodes with a shard of their own, or nodes that all see the run's directory, which the message names."""

    def welcome(self, message: Message, context: Context) -> Mapping[str, np.ndarray]:
        """See `nodes.answering.Hosts`."""
        return _shards_from(context).welcome(message, context) if "shard" in context.node_config else {}

    def of(self, message: Message, context: Context) -> NodeHost:
        """See `nodes.answering.Hosts`."""
        if "shard" in context.node_config:
            return _shards_from(context).of(message, context)
        return _host_from(message, context)

    def node(self, context: Context) -> int:
        """See `nodes.answering.Hosts`."""
        return 0 if "shard" in context.node_config else _told(context, "partition-id")


def _host_from(message: Message, context: Context) -> NodeHost:
    told = message.content.config_records.get(RUN_RECORD)
    if told is None:
        raise FedemError("the message names no run directory, and the node has no shard: which data are its own?")
    run_dir = Path(str(told["run-dir"]))
    if not (run_dir / CONFIG_FILE).is_file():
        raise FedemError(f"{run_dir} of the server is not on this machine: give a run-dir that server and nodes share")
    read_config(RunDirectory(run_dir))  # before any code that it names is imported
    threads = int(context.run_config.get("threads", 0))
    return NodeHost(
        run_dir, _told(context, "num-partitions"), threads, policy=_policy(context, NodePolicy.simulation())
    )


def _told(context: Context, key: str) -> int:
    """A number of the node's configuration, which Flower's simulation gives, and whoever starts a SuperNode."""
    if key not in context.node_config:
        raise FedemError(f"the node has no {key}: start it with --node-config 'partition-id=I num-partitions=N'")
    return int(context.node_config[key])


def _shards_from(context: Context) -> Hosts:
    """Of Flower's own SuperNode, whose every message meets a new process: `--node-config 'shard="..." state="..."'`."""
    told = context.node_config
    key = told.get("server-key")
    return ShardHosts(
        Path(str(told["shard"])),
        Path(str(told["state"])),
        load_server_key(Path(str(key))) if key else None,
        threads=int(told.get("threads", 0)),
        policy=_policy(context, NodePolicy.networked()),
        resident=False,
    )


def _policy(context: Context, otherwise: NodePolicy) -> NodePolicy:
    """What whoever started the node has said of it."""
    least, individual = (context.node_config.get(key) for key in ("smallest-sum", "allow-individual-uploads"))
    if least is None and individual is None:
        return otherwise
    return NodePolicy.networked(None if least is None else int(least), single_users=individual is True)


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
