"""A server, or a SuperLink, that would have a node work or allocate for ever: the node has ceilings of its own."""

from __future__ import annotations

import json
import math
import signal
import struct
import subprocess
import sys
import threading
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse
from introduced import NOBODY, greet, introduction, make_shards, message_with
from worlds import config_of

from fedem_flwr.engine.parallel import in_parallel
from fedem_flwr.engine.pulse import beat
from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.messages.wire import pack_arrays
from fedem_flwr.network import watch as watch_module
from fedem_flwr.network.condense import PIECE, condense, expand
from fedem_flwr.network.host import ShardHosts
from fedem_flwr.network.introduction import Introduction
from fedem_flwr.network.link import Address
from fedem_flwr.network.node_link import NodeLink
from fedem_flwr.network.trust import own_keys
from fedem_flwr.network.watch import Ended, Watch
from fedem_flwr.nodes.answering import build_client_app
from fedem_flwr.nodes.ceilings import Ceilings
from fedem_flwr.runtime.inprocess import answer, task_identity

pytestmark = pytest.mark.attacks
GENEROUS = Ceilings(1 << 30, epochs=10**9)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Introduction]:
    """Shards, and what their server says."""
    out = tmp_path_factory.mktemp("shards")
    return out, introduction(make_shards(out))


def told_of(told: Introduction, method: str = "fedmf", **sections: Any) -> Introduction:
    return replace(told, config=config_of(method, **sections).to_toml())


def node_of(world: tuple[Path, Introduction], state: Path, ceilings: Ceilings | None = None) -> ShardHosts:
    more = {} if ceilings is None else {"ceilings": ceilings}
    return ShardHosts(world[0] / "shards" / "node-0", state, threads=1, device="cpu", **more)


# --- what is refused when a run is introduced


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"local": {"epochs": 10**9}}, r"local\.epochs = 1000000000, this node's ceiling is 1,000 \(--max-epochs\)"),
        ({"merge": {"epochs": 1001}}, r"merge\.epochs = 1001"),
        ({"local": {"batch_size": 10**9}}, r"local\.batch_size = 1000000000"),
        ({"order": {"negatives": 10**7}}, r"order\.negatives = 10000000"),
        ({"run": {"rounds": 10**7}}, r"run\.rounds = 10000000"),
        ({"merge": {"hidden": (16, 10**9)}}, r"merge\.hidden = 1000000000"),
        ({"fold_in": {"half_lives": [1.0] * 1001}}, r"fold_in\.half_lives\.length = 1001"),
        ({"local": {"batch_size": 10**6}}, r"MB of memory, this node's ceiling is 1,024 MB \(--max-memory\)"),
        ({"merge": {"mode": "elastic", "hidden": (10**6, 10**6)}, "method": {"name": "fedem"}}, "MB of memory"),
    ],
)
def test_a_run_beyond_the_ceilings_is_refused(
    sections: dict[str, Any], words: str, world: tuple[Path, Introduction], tmp_path: Path
) -> None:
    hosts = node_of(world, tmp_path, Ceilings(1 << 30))
    with pytest.raises(FedemError, match=words) as told:
        greet(hosts, told_of(world[1], sections.pop("method", {"name": "fedmf"})["name"], **sections))
    assert "\n" not in str(told.value) and not list(tmp_path.iterdir()), "and nothing is kept of it"


def test_a_configuration_without_end_is_not_even_read(world: tuple[Path, Introduction], tmp_path: Path) -> None:
    long = replace(world[1], config="# " + "x" * (1 << 20))
    with pytest.raises(FedemError, match="a configuration of 1,048,578 characters"):
        greet(node_of(world, tmp_path), long)


def test_every_preset_is_within_a_small_nodes_ceilings(world: tuple[Path, Introduction], tmp_path: Path) -> None:
    """An honest server meets no ceiling: at ten thousand users and items on a node with 2 GB."""
    small = Ceilings(2 << 30)
    for method in ("fedmf", "fedials", "fedials-order", "fedials-elastic", "fedmf-elastic", "fedmf-sr"):
        assert small.objection(config_of(method, run={"rounds": 2000}), 10_000, 10_000) == "", method
    assert small.objection(config_of("fedem"), 100, 10_000) == ""
    assert "memory" in small.objection(config_of("fedem"), 10_000, 10_000), "6.4 GB of tables"


def test_a_node_that_is_started_with_lower_ceilings_refuses_from_then_on(
    world: tuple[Path, Introduction], tmp_path: Path
) -> None:
    greet(node_of(world, tmp_path, GENEROUS), told_of(world[1], local={"epochs": 2000}))
    message = message_with(None, kind="train")
    assert node_of(world, tmp_path, GENEROUS).of(message, NOBODY)
    with pytest.raises(FedemError, match="max-epochs"):
        node_of(world, tmp_path).of(message, NOBODY)


def test_ceilings_that_are_none() -> None:
    with pytest.raises(InputError, match="--max-memory"):
        Ceilings.of_machine(10)


# --- messages that grow


def with_piece(head: dict[str, Any], body: bytes = b"") -> Message:
    text = json.dumps(head).encode()
    message = message_with(None, kind="train")
    message.content[PIECE] = ConfigRecord({PIECE: struct.pack("<I", len(text)) + text + body})
    return message


def test_what_inflates_is_counted_before_it_is_made(world: tuple[Path, Introduction], tmp_path: Path) -> None:
    """1.5 MB on the way, 1.5 GB in memory, in one array or in many; twice that while bytes are put in order."""
    hosts = node_of(world, tmp_path, Ceilings(1 << 30))
    greet(hosts, told_of(world[1]))
    most = hosts.largest_message()
    assert most == 256 << 20, "this run's tables are kilobytes"
    part = 64 << 20
    bomb = zlib.compress(bytes(part), 9)
    entry = ["a", "x", "f", [part // 4], "deflate", "here", len(bomb)]
    many = with_piece({"records": {"a": ["a", None]}, "arrays": [entry] * 24}, bomb * 24)
    one = with_piece({"records": {"a": ["a", None]}, "arrays": [[*entry[:3], [part * 6], *entry[4:]]]}, bomb)
    tracemalloc.start()
    for message in (many, one):
        with pytest.raises(FedemError, match="more than is allowed"):
            expand(message, most)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_what_a_header_says_is_not_believed() -> None:
    """numpy would make 4 TB of room, and read ten bytes into it."""
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }".ljust(117) + "\n"
    record = ArrayRecord()
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + b"0123456789"
    record["x"] = Array("float32", (1,), "numpy.ndarray", data)
    message = message_with(None, kind="train")
    message.content["arrays"] = record
    with pytest.raises(FedemError, match="takes more than there is"):
        expand(message)


def test_a_description_has_a_size() -> None:
    """Names by the hundred thousand are small on the way and large in memory."""
    head = {"records": {"m": ["m", {f"name-{at}": 1 for at in range(80_000)}]}, "arrays": []}
    with pytest.raises(FedemError, match="a description of"):
        expand(with_piece(head))


def test_a_node_takes_messages_as_large_as_its_run_needs(world: tuple[Path, Introduction], tmp_path: Path) -> None:
    """Also one that was started anew, whose message is on its way before it is introduced again."""
    large = Ceilings(64 << 30)
    config = config_of("fedem", model={"dim": 1024})
    needed = large.message_bytes(config, 100_000, 1000)
    assert needed > 2 * 100_000 * 1000 * 1024 * 4 // 64 and needed <= large.memory // 4
    hosts = node_of(world, tmp_path)
    assert hosts.largest_message() == 256 << 20, "an introduction"
    greet(hosts, told_of(world[1]))
    assert node_of(world, tmp_path).largest_message() == hosts.largest_message()
    honest = message_with(None, kind="train")
    honest.content["arrays"] = pack_arrays({"x": np.zeros((4000, 1000), np.float32)})
    came = expand(condense(honest), hosts.largest_message())
    assert came.content.array_records["arrays"]["x"].numpy().nbytes == 16_000_000


# --- work without end


class After(threading.Event):
    """Set after so many looks."""

    def __init__(self, looks: float) -> None:
        super().__init__()
        self.left = looks

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


def training(world: tuple[Path, Introduction], state: Path, engine: str = "torch") -> Callable[[Watch], Message]:
    """A node that was introduced to a run of a billion epochs, and what answers its first message."""
    hosts = node_of(world, state, GENEROUS)
    greet(hosts, told_of(world[1], local={"epochs": 10**9}, run={"engine": engine}))
    app, message = build_client_app(hosts), message_with(None, kind="train")
    users = hosts.shard.codes
    table = np.zeros((hosts.shard.items, 32), np.float32)  # the preset's width
    message.content["arrays"] = pack_arrays({"participants": users, "uploaders": users, "items": table})
    message.content["config"] = ConfigRecord({"server-round": 1, "upload": "train"})

    def run(watch: Watch) -> Message:
        with task_identity(), watch.of_an_answer():
            return answer(app, message, NOBODY, {})

    return run


@pytest.mark.parametrize("engine", ["torch", "reference"])
def test_a_node_ends_in_the_middle_of_an_answer(engine: str, world: tuple[Path, Introduction], tmp_path: Path) -> None:
    health = tmp_path / "health"
    with pytest.raises(Ended):
        training(world, tmp_path, engine)(Watch(After(50), health, math.inf))
    assert health.exists(), "training is a sign of life"


def test_an_answer_has_its_time_and_the_node_goes_on(
    world: tuple[Path, Introduction], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10**9))
    monkeypatch.setattr(watch_module, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    reply = training(world, tmp_path)(Watch(After(math.inf), None, 40.0))
    assert "an answer that takes more than 40 s (--max-seconds): given up" in reply.error.reason


def test_all_threads_end() -> None:
    """Blocks that go on for ever, each in a thread of its own."""

    def for_ever(block: int) -> None:
        while True:
            beat()

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(Ended), Watch(After(1000), None, math.inf).of_an_answer():
            list(in_parallel(for_ever, range(8), torch.device("cpu")))
    finally:
        torch.set_num_threads(before)
    assert not [one for one in threading.enumerate() if one.name.startswith("ThreadPoolExecutor")]


def test_who_hangs_is_not_healthy_though_its_heart_beats(tmp_path: Path) -> None:
    health = tmp_path / "health"
    watch = Watch(threading.Event(), health, math.inf)
    link = NodeLink(
        Address("127.0.0.1:9"),
        own_keys(tmp_path / "node.key"),
        patience=0.0,
        stopped=threading.Event(),
        largest=lambda: 1,
        on_contact=watch.touch,
    )
    beats = iter([False, False, False, True])
    sent: list[Any] = []
    link._closed = SimpleNamespace(wait=lambda seconds: next(beats))  # type: ignore[assignment]

    class Once:
        def SendNodeHeartbeat(self, request: Any) -> SendNodeHeartbeatResponse:  # noqa: N802  # Flower's name
            sent.append(request)
            return SendNodeHeartbeatResponse(success=True)

    link._once = Once()  # type: ignore[assignment]
    with watch.of_an_answer():  # that never says anything
        link._beat()
        assert len(sent) == 3 and not health.exists()
        beat()
        assert health.exists()


# --- a process of its own: signals, and the kernel's word on memory

HANGING = """
import sys, time
from fedem_flwr.cli.deployments import _stop_on_signals
from fedem_flwr.nodes.machine import limit_memory
stopped = _stop_on_signals()
limit_memory(256 << 20)
try:
    bytearray(1 << 30)
except MemoryError:
    print("no memory", flush=True)
while True:
    if stopped.is_set():
        print("stopped", flush=True)
        stopped.clear()
    time.sleep(.01)
"""


def test_a_second_signal_kills_and_memory_has_an_end() -> None:
    child = subprocess.Popen([sys.executable, "-c", HANGING], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "no memory\n"
        child.send_signal(signal.SIGTERM)
        assert child.stdout.readline() == "stopped\n", "heard, and not dead yet"
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=60) == -signal.SIGINT
    finally:
        child.kill()
        child.stdout.close()
