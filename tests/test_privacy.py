"""What crosses between server and nodes: every message of a run is looked at, in both directions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from worlds import ITEMS, USERS, Crossing, Done, WatchedGrid, carry_out_watched, config_of

from clients.base import HostClient
from clients.method import MethodClient
from clients.table import TableClient
from fedem_flwr.engine.merging import Merging
from fedem_flwr.nodes.host import NodeHost
from fedem_flwr.protocol.splits import Split
from fedem_flwr.runtime.prepared import PreparedRun

# With so many users a node. The conformance table looks at every method; here are ρ, stock strategies, and one node.
CASES = [("fedem", 1), ("fedem", 0), ("fedem-released", 7), ("fedsim-dm", 0), ("fedmf", 0), ("stock", 1), ("stock", 7)]
ORDERS = {"server-round", "upload", "evaluate", "everybody", "persist", "keep-from", "final", "group-edges"}
RANKED = r"(validation|test)/(full|sampled99)/((hr|ndcg)@(5|10|20)|mrr)"
SUMS = re.compile(
    rf"(group-\d/)?(users|nonfinite|interactions|{RANKED})|rho/(total|squares|count|bin-\d\d)|loss-total|num-examples"
)
MEANS = re.compile(rf"{RANKED}|train-loss|num-examples")  # what stock strategies can add up: means and their weight
COUNTS = "-weight"  # how many users, or samples, are behind a sum
RUN = 4  # so many consecutive numbers of a private array are not there by chance


class Secrets:
    """Private arrays of all users, as they were after every round, cut into short runs of bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: dict[str, list[np.ndarray]] = {"p": [], "theta": [], "rho": []}
        keep, merge = NodeHost.keep, Merging.merge

        def spy_keep(host: NodeHost, node: int, round_: int, cohort: Any, **rest: Any) -> None:
            self.note("p", cohort.state["user"])
            if "adapter" in cohort.state:
                self.note("theta", cohort.state["adapter"])
            keep(host, node, round_, cohort, **rest)

        def spy_merge(merging: Merging, *tables: Any) -> torch.Tensor | None:
            rho = merge(merging, *tables)
            if rho is not None and rho.shape[1] == ITEMS:  # elastic: one an item
                self.note("rho", rho)
            return rho

        monkeypatch.setattr(NodeHost, "keep", spy_keep)
        monkeypatch.setattr(Merging, "merge", spy_merge)

    def note(self, name: str, values: torch.Tensor) -> None:
        self.seen[name] += [row.copy() for row in values.detach().cpu().numpy()]

    def runs(self, name: str) -> Iterator[bytes]:
        """The first numbers of each user's array, where they are not all alike."""
        for row in self.seen[name]:
            for start in (0, len(row) // 2):
                part = np.ascontiguousarray(row[start : start + RUN])
                if len(np.unique(part)) == RUN:
                    yield part.tobytes()


def watched(method: str, each: int, path: Path) -> tuple[Done, WatchedGrid]:
    stock = {"strategy": "flwr.FedAvg", "client": "table"} if method == "stock" else {}
    run = {"users_per_node": each, "rounds": 2}
    done, grid = carry_out_watched(path, config_of(method, method=stock, run=run))
    assert done.outcome.failures == []
    return done, grid


@pytest.mark.parametrize(("method", "each"), CASES)
def test_only_what_is_declared_crosses(method: str, each: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = Secrets(monkeypatch)
    done, grid = watched(method, each, tmp_path / "run")
    client = client_of(done.run)
    assert len(grid.down) == len(grid.up) >= 3
    for message in grid.down:
        assert_declared_download(message, client, each or USERS)
    for reply in grid.up:
        assert_declared_upload(reply, client, each or USERS)
    numbers = [array for crossing in (*grid.down, *grid.up) for array in crossing.arrays.values()]
    haystack = b"|".join(array.tobytes() for array in (*numbers, *done.server.values()) if array.dtype == np.float32)
    wide = b"|".join(array.astype(np.float32).tobytes() for array in numbers if array.dtype == np.float64)
    assert not wide
    expected = {"p"} | ({"theta"} if method in ("fedem", "fedem-released", "fedsim-dm") else set())
    expected |= {"rho"} if method in ("fedem", "fedem-released") else set()
    assert {name for name, rows in secrets.seen.items() if rows} == expected
    for name in expected:
        found = [run for run in secrets.runs(name) if run in haystack]
        assert not found, f"{len(found)} runs of {name}"
        assert any(secrets.runs(name)), "the test must have something to look for"
    counted = [x for crossing in grid.up for name, x in crossing.arrays.items() if name.endswith(COUNTS)]
    assert_no_items(done.run.split, numbers, counted)


def client_of(run: PreparedRun) -> HostClient:
    """The client of the first node, which declares what goes down and up."""
    kind = TableClient if run.config.method.client == "table" else MethodClient
    return kind(NodeHost(run.directory.path, run.nodes), 0)


def assert_declared_download(message: Crossing, client: HostClient, each: int) -> None:
    assert message.metrics == {}
    if message.kind == "query":
        assert message.records == set()
        return
    assert tuple(message.arrays) == client.DOWNLOAD and message.records == {"arrays", "config"}
    assert set(message.config) <= ORDERS and all(not isinstance(v, list) for v in message.config.values())
    own = set(range(message.node * each, min(USERS, (message.node + 1) * each)))
    for name in ("participants", "uploaders", "receivers"):
        assert set(message.arrays.get(name, np.empty(0)).tolist()) <= own, "a node hears of its own users only"


def assert_declared_upload(reply: Crossing, client: HostClient, each: int) -> None:
    assert reply.config == {}
    if reply.kind == "query":
        assert set(reply.arrays) == {"users", "samples"} and reply.metrics == {}
        assert reply.arrays["users"].shape == reply.arrays["samples"].shape
        return
    allowed = MEANS if isinstance(client, TableClient) else SUMS
    assert all(allowed.fullmatch(name) for name in reply.metrics), sorted(reply.metrics)
    assert all(isinstance(value, int | float) for value in reply.metrics.values()), "numbers, not lists of users"
    if reply.kind == "evaluate":
        assert reply.arrays == {} and reply.records == {"metrics"}
        return
    uploads = [client.DOWNLOAD] if isinstance(client, TableClient) else list(client.UPLOADS.values())
    assert tuple(reply.arrays) in uploads and reply.records == {"arrays", "metrics"}
    own = range(reply.node * each, min(USERS, (reply.node + 1) * each))
    assert set(reply.arrays.get("users", np.empty(0)).tolist()) <= set(own)


def assert_no_items(split: Split, numbers: list[np.ndarray], counted: list[np.ndarray]) -> None:
    """No array of integers is anybody's history or held-out items; all of them are lists of users or counts.

    Args:
        counted: those of them that say how much is behind a sum.
    """
    histories = [split.train_items[a:b] for a, b in zip(split.train_offsets, split.train_offsets[1:], strict=False)]
    private = [*(np.asarray(items[:RUN]) for items in histories), np.asarray(split.validation), np.asarray(split.test)]
    whole = [array for array in numbers if array.dtype.kind in "iu"]
    haystack = b"|".join(array.astype(np.int64).tobytes() for array in whole)
    # items are numbered by first appearance, so the first users' histories look like lists of users
    telling = [items.astype(np.int64).tobytes() for items in private if not (np.diff(items) == 1).all()]
    assert len(telling) > USERS / 2 and not any(items in haystack for items in telling)
    counts = np.diff(split.train_offsets)
    for array in (array for array in whole if not any(array is one for one in counted)):
        ascending = bool((np.diff(array) > 0).all())
        is_users = ascending and array.max(initial=0) < split.users
        assert is_users or any(np.array_equal(array, part) for part in windows(counts, len(array)))


def windows(values: np.ndarray, width: int) -> Iterator[np.ndarray]:
    return (values[start : start + width] for start in range(len(values) - width + 1))


@pytest.mark.parametrize("method", ["fedem", "fedmf"])
def test_the_touched_rows_of_one_round_hold_more_than_positives(method: str, tmp_path: Path) -> None:
    """A row that moved was sampled; negatives are among them. That hides little: see test_intersection.py."""
    done, grid = watched(method, 1, tmp_path / "run")
    split = done.run.split
    replies = [c for c in grid.up if c.kind == "train" and c.round == "1"]
    assert len(replies) == USERS
    for reply in replies:
        user = reply.node
        positives = set(split.train_items[split.train_offsets[user] : split.train_offsets[user + 1]].tolist())
        if method == "fedmf":
            touched = set(np.flatnonzero(reply.arrays["items-weight"]).tolist())
        else:
            common = np.median([c.arrays["items"][0] for c in grid.up if "items" in c.arrays], axis=0)
            touched = set(np.flatnonzero((reply.arrays["items"][0] != common).any(1)).tolist())
        assert positives < touched and len(touched) > 1.5 * len(positives)


@pytest.mark.parametrize("method", ["fedem", "fedsim-dm", "fedmf"])
def test_metrics_are_sums_that_add_up(method: str, tmp_path: Path) -> None:
    """Nodes' metrics add up to those of one node with everybody: none is about a single user or item."""
    totals = []
    for each in (0, 7):
        _, grid = watched(method, each, tmp_path / str(each))
        total: dict[str, float] = {}
        for reply in (c for c in grid.up if c.kind == "evaluate"):
            for name, value in reply.metrics.items():
                total[name] = total.get(name, 0.0) + value
        totals.append(total)
    assert totals[0].keys() == totals[1].keys() and totals[0]["users"] == USERS
    for name, value in totals[0].items():
        assert totals[1][name] == pytest.approx(value, rel=1e-4, abs=1e-4 if "squares" in name else 1e-6), name


def test_the_test_sees_a_leak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that hides p_u in its table is found out."""
    fit = MethodClient.fit

    def leak(self: MethodClient, parameters: Any, config: Any) -> Any:
        (users, tables), samples, metrics = fit(self, parameters, config)
        cohort, tables = self.host.cohort(self.node, int(config["server-round"])), tables.copy()
        tables[:, 0] = cohort.state["user"][self.positions(users)].numpy()
        return [users, tables], samples, metrics

    monkeypatch.setattr(MethodClient, "fit", leak)
    with pytest.raises(AssertionError, match="runs of p"):
        test_only_what_is_declared_crosses("fedem", 7, tmp_path, monkeypatch)
