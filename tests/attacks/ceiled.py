"""Nodes with ceilings, and a server's introductions to them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from introduced import introduction, make_shards
from worlds import config_of

from fedem_flwr.network.host import ShardHosts
from fedem_flwr.network.introduction import Introduction
from fedem_flwr.nodes.ceilings import Ceilings

GENEROUS = Ceilings(1 << 30, epochs=10**9)
World = tuple[Path, Introduction]  # shards, and what their server says


def made_world(out: Path) -> World:
    """Three shards, and an introduction over them."""
    return out, introduction(make_shards(out))


def told_of(told: Introduction, method: str = "fedmf", **sections: Any) -> Introduction:
    """The same of a run with other settings."""
    return replace(told, config=config_of(method, **sections).to_toml())


def node_of(world: World, state: Path, ceilings: Ceilings | None = None) -> ShardHosts:
    """A node as it is started; None: with the ceilings of whoever says nothing."""
    more = {} if ceilings is None else {"ceilings": ceilings}
    return ShardHosts(world[0] / "shards" / "node-0", state, threads=1, device="cpu", **more)
