"""Runs that are introduced to nodes: small shards, an introduction, and the messages that carry it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, Context, Message, Metadata, RecordDict
from flwr.app.message import make_message
from worlds import config_of

from fedem_flwr.network.host import ShardHosts
from fedem_flwr.network.introduction import GREETING, Introduction
from fedem_flwr.protocol.shards import Federation, write_shards
from fedem_flwr.runtime.inputs import load_interactions, split_of

KEY: Final = "0123456789abcdef" * 2
RUN: Final = 17446744073709551615  # more than a signed number holds
NODES: Final = 3
NOBODY: Final[Any] = Context(1, 2, {}, RecordDict(), {})  # nothing here looks at it


def make_shards(out: Path) -> Federation:
    """The tiny world, spread over three nodes."""
    config = config_of("fedmf")
    return write_shards(split_of(config, load_interactions(config)), NODES, out)


def introduction(federation: Federation) -> Introduction:
    """What a server says of a run over these shards."""
    facts = {name: getattr(federation.facts, name) for name in ("dataset", "protocol", "users", "items")}
    return Introduction(KEY, RUN, (2, 5), config_of("fedmf").to_toml(), facts, 7)


def message_with(record: ConfigRecord | None, run_id: int = RUN, kind: str = "query") -> Message:
    """A message of a run, with or without an introduction."""
    content = RecordDict({} if record is None else {GREETING: record})
    return make_message(Metadata(run_id, "", 1, 2, "", "0", 1.0, 60.0, kind), content)


def greet(hosts: ShardHosts, told: Introduction, signing: Ed25519PrivateKey | None = None) -> int:
    """Introduce a run to a node; returns the newest round that it has a state of."""
    return int(hosts.welcome(message_with(told.record(signing), told.run_id), NOBODY)["stored"][0])
