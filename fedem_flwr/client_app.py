"""The Flower ClientApp that `flwr run` and Flower's own SuperNodes load: what it hosts is said by the context."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flwr.app import Context, Message

from fedem_flwr.errors import FedemError
from fedem_flwr.network.host import ShardHosts
from fedem_flwr.network.supernode import SuperNodeApp
from fedem_flwr.network.trust import load_server_key
from fedem_flwr.nodes.answering import Hosts, build_client_app
from fedem_flwr.nodes.ceilings import EPOCHS, Ceilings
from fedem_flwr.nodes.host import CONFIG_FILE, RUN_RECORD, NodeHost
from fedem_flwr.nodes.policy import NodePolicy
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.consent import read_config

# Keys of a SuperNode's --node-config, and what they are called in a policy; words of a list stand between blanks.
_FLAGS = {
    "allow-individual-uploads": "single_users",
    "require-secret-draws": "secret_draws",
    "coarse-counts": "coarse_counts",
    "fixed-groups": "fixed_groups",
}
_LISTS = {"methods": "methods", "bounds": "bounds"}


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
    policy = _policy(context, NodePolicy.simulation())
    host = NodeHost(run_dir, _told(context, "num-partitions"), threads, policy=policy)
    policy.check(host.config)
    return host


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
        ceilings=_ceilings(context),
        resident=False,
    )


def _ceilings(context: Context) -> Ceilings:
    told = context.node_config
    return Ceilings.of_machine(int(told.get("max-memory", 0)), int(told.get("max-epochs", EPOCHS)))


def _policy(context: Context, otherwise: NodePolicy) -> NodePolicy:
    """What whoever started the node has said of it."""
    told = context.node_config
    if not told.keys() & {"smallest-sum", *_FLAGS, *_LISTS}:
        return otherwise
    least = told.get("smallest-sum")
    flags = {name: told.get(key) is True for key, name in _FLAGS.items()}
    lists = {name: str(told.get(key, "")).split() for key, name in _LISTS.items()}
    return NodePolicy.networked(None if least is None else int(least), **flags, **lists)  # type: ignore[arg-type]


app = SuperNodeApp(build_client_app(FromContext()), lambda context: _ceilings(context).message_limit)
