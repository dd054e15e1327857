"""A server that has a node work for ever: it ends when it is told to, has a limit, and whoever hangs is seen."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ceiled import GENEROUS, World, made_world, node_of, told_of
from flwr.app import ConfigRecord, Message
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse
from introduced import NOBODY, greet, message_with

from fedem_flwr.aggregation.alignment import Alignment
from fedem_flwr.engine.parallel import in_parallel
from fedem_flwr.messages.wire import pack_arrays
from fedem_flwr.network import watch as watch_module
from fedem_flwr.network.link import Address
from fedem_flwr.network.node_link import NodeLink
from fedem_flwr.network.trust import own_keys
from fedem_flwr.network.watch import Ended, Watch
from fedem_flwr.nodes.answering import build_client_app
from fedem_flwr.pulse import beat, heard_by
from fedem_flwr.runtime.inprocess import answer, task_identity

pytestmark = pytest.mark.attacks


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return made_world(tmp_path_factory.mktemp("shards"))


class After(threading.Event):
    """Set after so many looks."""

    def __init__(self, looks: float) -> None:
        super().__init__()
        self.left = looks

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


def training(world: World, state: Path, engine: str = "torch", **local: Any) -> Callable[[Watch], Message]:
    """A node that was introduced to a run of a billion epochs, and what answers its first message."""
    hosts = node_of(world, state, GENEROUS)
    greet(hosts, told_of(world[1], local={"epochs": 10**9, **local}, run={"engine": engine}))
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
def test_a_node_ends_in_the_middle_of_an_answer(engine: str, world: World, tmp_path: Path) -> None:
    health = tmp_path / "health"
    with pytest.raises(Ended):
        training(world, tmp_path, engine)(Watch(After(50), health, math.inf))
    assert health.exists(), "training is a sign of life"
    with pytest.raises(Ended):  # also where it is the only epoch: at a batch
        training(world, tmp_path, engine, epochs=1, batch_size=1)(Watch(After(40), None, math.inf))


def test_an_answer_has_its_time_and_the_node_goes_on(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


def test_groups_that_learn_without_an_engine_beat_too() -> None:
    """FedCIA trains and aligns by itself."""
    left = After(3)

    def heard() -> None:
        if left.is_set():
            raise Ended

    with heard_by(heard), pytest.raises(Ended):
        Alignment(steps=10**9, rate=0.1)(torch.ones(1, 4, 2), torch.eye(4)[:, :2])
