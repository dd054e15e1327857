"""What crosses a real network, captured and decoded, holds nothing private; and a server never opens the data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from captured import Crossed, crossed
from test_privacy import ORDERS, RUN, SUMS

from benchmarks.fault_cells import USERS, config_of
from benchmarks.fault_world import FaultWorld
from clients.method import MethodClient
from fedem_flwr.config import Config
from fedem_flwr.messages.wire import unpack_arrays
from fedem_flwr.network.host import ShardHost
from fedem_flwr.network.processes import wait_until
from fedem_flwr.nodes.state_store import DiskStateStore
from fedem_flwr.protocol.split import Split

pytestmark = [pytest.mark.network, pytest.mark.slow]
NODES, ROUNDS = 2, 3
UPLOADS = {
    "fedem": {"users", "samples", "stored", "items"},
    "fedials": {"users", "samples", "stored", "items", "rows", "counts", "gram"},
}
TOLD = {"key", "run", "resumes", "config", "facts", "round", "signature"}  # of a run's introduction


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultWorld]:
    made = FaultWorld(tmp_path_factory.mktemp("capture") / "world", config_of("fedem", 0.0, 60.0), NODES)
    made.insecure = made.watched = True
    try:
        made.build()
        yield made
    finally:
        made.close()


def parts(values: np.ndarray) -> Iterator[bytes]:
    """Runs of a private array that are not there by chance, in every type that could carry them."""
    values = np.asarray(values).reshape(-1)
    for start in range(0, len(values) - RUN + 1, RUN):
        run = values[start : start + RUN]
        steps = np.diff(run)
        if len(np.unique(run)) == RUN and not (steps > 0).all():  # ascending codes are what touched rows look like
            for kind in (np.float32, np.float64) if values.dtype.kind == "f" else (np.int32, np.int64, np.float32):
                yield run.astype(kind).tobytes()


def secrets(world: FaultWorld) -> dict[str, list[bytes]]:
    """p and Θ after every round, interactions and held-out items of every node."""
    found: dict[str, list[bytes]] = {"p": [], "theta": [], "items": [], "held out": []}
    for node in range(NODES):
        shard = Split.load(world.folder / "shards" / f"node-{node}")
        for user in range(len(shard.validation)):
            history = shard.train_items[shard.train_offsets[user] : shard.train_offsets[user + 1]]
            found["items"] += parts(np.asarray(history))
        found["held out"] += [*parts(np.asarray(shard.validation)), *parts(np.asarray(shard.test))]
        for folder in (world.folder / "state" / f"node-{node}" / "runs").glob("*/nodes"):
            for round_ in range(1, ROUNDS + 1):
                state = DiskStateStore(folder).load("node-000000", round_) or {}
                for name, key in (("p", "user"), ("theta", "adapter")):
                    found[name] += [part for row in state.get(key, ()) for part in parts(np.array(row))]
    return found


def merging_weights(world: FaultWorld, config: Config, down: Crossed) -> list[bytes]:
    """ρ of every user and item with the last round's model, as the nodes computed it."""
    found: list[bytes] = []
    for node in range(NODES):
        shard = Split.load(world.folder / "shards" / f"node-{node}")
        newest = max(
            (world.folder / "state" / f"node-{node}" / "runs").iterdir(),
            key=lambda path: (path / "run.json").stat().st_mtime,
        )
        client = MethodClient(ShardHost(newest, 1, shard=shard, settings=config), 0)
        for message in down.messages():
            arrays = (
                unpack_arrays(message.content.array_records["arrays"])
                if message.metadata.message_type == "evaluate"
                else {}
            )
            if len(arrays) and set(arrays["receivers"]) <= set(shard.codes):
                scorer = client.model(ROUNDS, [np.array(arrays[name]) for name in client.DOWNLOAD], {})
                rho = scorer.scores(torch.arange(len(shard.codes)), "test")[1]
                assert rho is not None
                found += [part for row in rho.numpy() for part in parts(row)]
    return found


class Haystack:
    """Bytes, and where they begin with which eight: thousands of needles are looked for in megabytes.

    `in` is asked of those needles alone of whose first eight bytes one is here: of all that are here, and few others.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        views = [np.frombuffer(content, "<u8", (len(content) - at) // 8, at) for at in range(min(8, len(content)))]
        self.eights = np.unique(np.concatenate(views))

    def holds(self, needles: list[bytes]) -> int:
        """How many of the needles are here."""
        if not needles:
            return 0
        first = np.array([int.from_bytes(needle[:8], "little") for needle in needles], np.uint64)
        at = np.minimum(np.searchsorted(self.eights, first), len(self.eights) - 1)
        return sum(needles[place] in self.content for place in np.flatnonzero(self.eights[at] == first))


def test_a_haystack_holds_what_is_in_it() -> None:
    rng = np.random.default_rng(0)
    content = rng.integers(0, 3, 3000).astype(np.uint8).tobytes()
    needles = [content[at : at + 16] for at in (0, 1, 7, 8, 1234, 2984)]
    absent = [rng.integers(0, 3, 16).astype(np.uint8).tobytes() for _ in range(200)]
    absent += [content[at : at + 8] + b"\x09" * 8 for at in range(50)]
    assert Haystack(content).holds(needles) == len(needles) and Haystack(content).holds([]) == 0
    assert Haystack(content).holds(absent) == sum(needle in content for needle in absent) == 0


@pytest.mark.parametrize("method", ["fedem", "fedials"])
def test_nothing_private_crosses(method: str, world: FaultWorld, tmp_path: Path) -> None:
    assert world.relay is not None
    world.relay.passed.clear()
    world.relay.record = True
    world.relay.reset_all()
    config = config_of(method, 0.0, 60.0).changed("run", rounds=ROUNDS, checkpoint_every=100)
    assert world.serve(world.prepare(tmp_path / "run", config)).failures == []
    world.relay.record = False
    up, down = crossed(world.relay)
    assert len(up.trees) >= NODES * (ROUNDS + 2) and len(down.trees) >= len(up.trees)
    uploads = up.arrays()
    assert {name for name, _ in uploads} == UPLOADS[method]
    for record in up.records("metric_records"):
        assert all(SUMS.fullmatch(name) or name.startswith("fold-in/") for name in record), sorted(record)
    assert up.records("config_records") == []
    for record in down.records("config_records"):
        assert set(record) <= ORDERS | TOLD | {"half_life", "ridge", "tune-fold-in"}
    numbers = [values for _, values in (*uploads, *down.arrays())]
    decoded = Haystack(b"|".join(values.tobytes() for values in numbers))
    raw = Haystack(b"|".join(bytes(stream) for both in world.relay.passed for stream in both))
    private = secrets(world)
    if method == "fedem":
        private["rho"] = merging_weights(world, config, down)
        assert len(private["rho"]) > USERS
    assert private["items"] and private["held out"]
    assert (len(private["p"]) > USERS and len(private["theta"]) > USERS) or method != "fedem"
    for name, needles in private.items():
        assert decoded.holds(needles) == 0, name
        assert raw.holds(needles) == 0, name
    planted = Haystack(b"?" + decoded.content[:999] + b"".join(needles[0] for needles in private.values() if needles))
    for needles in private.values():
        assert planted.holds(needles) >= bool(needles), "the test must be able to find something"


def test_the_server_never_opens_the_data(world: FaultWorld, tmp_path: Path) -> None:
    run = world.prepare(tmp_path / "run", config_of("fedials", 0.0, 60.0))
    child = world.server_process(run)
    assert wait_until(lambda: not child.alive, 120), "the server did not finish"
    assert child.ended() == 0, child.reason()
    opened = (world.folder / "opened-server.txt").read_text().splitlines()
    assert any(path.endswith("federation/federation.json") for path in opened), "the notes are of the server"
    data = [path for path in opened if "/shards/" in path or "/split/" in path or path.endswith("ratings.dat")]
    assert data == []
    for node in range(NODES):
        opened = (world.folder / f"opened-node-{node}.txt").read_text().splitlines()
        shards = {path.split("/shards/")[1].split("/")[0] for path in opened if "/shards/" in path}
        assert shards == {f"node-{node}"}, "a node reads its own shard only"
