"""Fixtures of the attacks by a curious server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from curious import shard_in

from fedem_flwr.runtime.inprocess import task_identity


@pytest.fixture(scope="module")
def speaking() -> Iterator[None]:
    """Messages are made as a server makes them."""
    with task_identity():
        yield


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One node's data: all users."""
    return shard_in(tmp_path_factory.mktemp("shard"))
