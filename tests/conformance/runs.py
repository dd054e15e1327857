"""Whole runs of the methods under test, each made once; what crossed, what was kept, and devices that answer again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from worlds import Crossing, Done, Tamper, WatchedGrid, carry_out_watched

from clients.method import MethodClient
from conformance.methods import Subject
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.nodes.host import NodeHost
from strategies.method import MethodStrategy

Named = dict[str, np.ndarray]


@dataclass
class Noted:
    """What nodes kept and what the server made, by round.

    Attributes:
        nodes: private state of each node. server: the method's state.
    """

    nodes: dict[int, dict[int, Named]] = field(default_factory=dict)
    server: dict[int, Named] = field(default_factory=dict)

    def users(self, round_: int) -> Named:
        """Private state of all users after a round, in their order."""
        kept = self.nodes.get(round_, {})
        names = kept[min(kept)] if kept else {}
        return {name: np.concatenate([kept[node][name] for node in sorted(kept)]) for name in names}


@contextmanager
def noting() -> Iterator[Noted]:
    """Note states as they come about."""
    noted, keep, combine = Noted(), NodeHost.keep, MethodStrategy.combine

    def note_nodes(host: NodeHost, node: int, round_: int, cohort: Cohort, **rest: Any) -> None:
        state = {name: values.detach().numpy().copy() for name, values in cohort.state.items()}
        noted.nodes.setdefault(round_, {})[node] = state
        keep(host, node, round_, cohort, **rest)

    def note_server(strategy: MethodStrategy, round_: int) -> None:
        combine(strategy, round_)
        noted.server[round_] = {name: values.numpy().copy() for name, values in strategy.kept.items()}

    with patch.object(NodeHost, "keep", note_nodes), patch.object(MethodStrategy, "combine", note_server):
        yield noted


@dataclass
class Whole:
    """A finished run and all that was seen of it."""

    done: Done
    grid: WatchedGrid
    noted: Noted

    @property
    def rounds(self) -> range:
        """Their numbers."""
        return range(1, self.done.run.config.run.rounds + 1)

    def host(self) -> NodeHost:
        """As a new process would have it; its cohorts stay in memory."""
        run = self.done.run
        return NodeHost(run.directory.path.resolve(), run.nodes, 1, resident=True)

    def client(self, node: int = 0, host: NodeHost | None = None) -> MethodClient:
        """A node's client."""
        return MethodClient(host or self.host(), node)

    def crossings(self, kind: str, round_: int, *, up: bool = False) -> list[Crossing]:
        """Messages of a kind and round, or the replies to them, in the order of the nodes."""
        found = [c for c in (self.grid.up if up else self.grid.down) if (c.kind, c.round) == (kind, str(round_))]
        return sorted(found, key=lambda crossing: crossing.node)

    def message(self, client: MethodClient, kind: str, round_: int) -> tuple[list[np.ndarray], dict[str, Any]]:
        """What a node was sent, as its client takes it; nothing is written to disk for it."""
        (found,) = [c for c in self.crossings(kind, round_) if c.node == client.node]
        return [found.arrays[name] for name in client.DOWNLOAD], {**found.config, "persist": 0}

    def until(self, client: MethodClient, round_: int) -> None:
        """Let a client stand where its node stood before a round."""
        if round_ > 1 and not client.method.stateless:
            cohort, kept = client.host.cohort(client.node, 0), self.noted.nodes[round_ - 1][client.node]
            cohort.state.update({name: torch.from_numpy(values.copy()) for name, values in kept.items()})
            client.host.keep(client.node, round_ - 1, cohort, durable=False, keep_from=[0])

    def answer(self, client: MethodClient, round_: int) -> Named:
        """What a client uploads in a round."""
        arrays, config = self.message(client, "train", round_)
        return dict(zip(client.upload_names(config), client.fit(arrays, config)[0], strict=True))


class Runs:
    """Runs by method and users a node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: dict[tuple[Subject, int], Whole] = {}
        self._paths = (folder / f"run-{number}" for number in itertools.count(1))
        self.shared: dict[str, Any] = {}  # what several cells need once

    def path(self) -> Path:
        """A place for a run."""
        return next(self._paths)

    def whole(self, subject: Subject, each: int) -> Whole:
        """A run with so many users a node; 0: all on one. Made once."""
        key = (subject, each)
        if key not in self._made:
            rarely = {} if each != 1 else {"checkpoint_every": 100}  # as every node writes a file
            self._made[key] = self.fresh(subject, run={"users_per_node": each, **rarely})
            assert self._made[key].done.outcome.failures == [], self._made[key].done.outcome.failures
        return self._made[key]

    def fresh(self, subject: Subject, tamper: Tamper | None = None, **sections: Any) -> Whole:
        """A run of its own."""
        with noting() as noted:
            done, grid = carry_out_watched(self.path(), subject.config(**sections), tamper)
        return Whole(done, grid, noted)
