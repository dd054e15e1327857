"""A server, or a SuperLink, that would have a node work or allocate for ever: the node has ceilings of its own."""

from __future__ import annotations

import json
import struct
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ceiled import GENEROUS, World, made_world, node_of, told_of
from flwr.app import Array, ArrayRecord, ConfigRecord, Message
from introduced import NOBODY, greet, message_with
from worlds import config_of

from fedem_flwr.cli import deployments, main
from fedem_flwr.contract.finding import method_of
from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.messages.wire import pack_arrays
from fedem_flwr.network import node
from fedem_flwr.network.commands import Trusted, node_command
from fedem_flwr.network.condense import PIECE, condense, expand
from fedem_flwr.network.host import ShardHosts
from fedem_flwr.network.link import Address
from fedem_flwr.network.node import NodeOptions
from fedem_flwr.nodes import ceilings, machine
from fedem_flwr.nodes.ceilings import Ceilings

pytestmark = pytest.mark.attacks


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return made_world(tmp_path_factory.mktemp("shards"))


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
    sections: dict[str, Any], words: str, world: World, tmp_path: Path
) -> None:
    hosts = node_of(world, tmp_path, Ceilings(1 << 30))
    with pytest.raises(FedemError, match=words) as told:
        greet(hosts, told_of(world[1], sections.pop("method", {"name": "fedmf"})["name"], **sections))
    assert "\n" not in str(told.value) and not list(tmp_path.iterdir()), "and nothing is kept of it"


def test_a_configuration_without_end_is_not_even_read(world: World, tmp_path: Path) -> None:
    long = replace(world[1], config="# " + "x" * (1 << 20))
    with pytest.raises(FedemError, match="a configuration of 1,048,578 characters"):
        greet(node_of(world, tmp_path), long)


def test_every_preset_is_within_a_small_nodes_ceilings(world: World, tmp_path: Path) -> None:
    """An honest server meets no ceiling: at ten thousand users and items on a node with 2 GB."""
    small = Ceilings(2 << 30)
    for method in ("fedmf", "fedials", "fedials-order", "fedials-elastic", "fedmf-elastic", "fedmf-sr"):
        assert small.objection(config_of(method, run={"rounds": 2000}), 10_000, 10_000) == "", method
    assert small.objection(config_of("fedem"), 100, 10_000) == ""
    assert "memory" in small.objection(config_of("fedem"), 10_000, 10_000), "6.4 GB of tables"


def test_a_node_that_is_started_with_lower_ceilings_refuses_from_then_on(world: World, tmp_path: Path) -> None:
    greet(node_of(world, tmp_path, GENEROUS), told_of(world[1], local={"epochs": 2000}))
    message = message_with(None, kind="train")
    assert node_of(world, tmp_path, GENEROUS).of(message, NOBODY)
    with pytest.raises(FedemError, match="max-epochs"):
        node_of(world, tmp_path).of(message, NOBODY)


def test_ceilings_that_are_none() -> None:
    with pytest.raises(InputError, match="--max-memory"):
        Ceilings.of_machine(10)


def test_the_command_line_sets_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the kernel's limit with them, for what no count has foreseen."""
    started: list[NodeOptions] = []
    limits: list[int] = []
    monkeypatch.setattr(node, "run_node", lambda given, stopped: started.append(given))
    monkeypatch.setattr(machine, "limit_memory", limits.append)
    for name in ("_stop_on_signals", "_log_to_stderr"):
        monkeypatch.setattr(deployments, name, lambda *given: None)
    command = ["deploy", "node", "--superlink", "127.0.0.1:9", "--shard", str(tmp_path), "--state", str(tmp_path)]
    given = ["--max-memory", "512", "--max-epochs", "20", "--max-seconds", "60"]
    for options in ([*given], []):
        with pytest.raises(SystemExit) as stopped:
            main([*command, "--insecure", "--device", "cpu", *options])
        assert not stopped.value.code
    assert [one.hosts.ceilings for one in started] == [Ceilings(512 << 20, 20, 60.0), Ceilings.of_machine()]
    assert limits == [512 << 20, machine.memory_here() // 2]


def test_a_run_starts_nodes_that_take_its_epochs(tmp_path: Path) -> None:
    """Who starts both has said it twice."""
    place = Address("127.0.0.1:9"), Trusted(None), 0, tmp_path, tmp_path
    assert "--max-epochs" not in node_command(*place, threads=1, individual=False)
    assert node_command(*place, threads=1, individual=False, epochs=5000)[-2:] == ["--max-epochs", "5000"]


# --- messages that grow


def with_piece(head: dict[str, Any], body: bytes = b"") -> Message:
    text = json.dumps(head).encode()
    message = message_with(None, kind="train")
    message.content[PIECE] = ConfigRecord({PIECE: struct.pack("<I", len(text)) + text + body})
    return message


def test_what_inflates_is_counted_before_it_is_made(world: World, tmp_path: Path) -> None:
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


def test_a_node_takes_messages_as_large_as_its_run_needs(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that was started anew, whose message is on its way before it is introduced again."""
    large = Ceilings(64 << 30)
    config = config_of("fedem", model={"dim": 1024})
    needed = large.message_bytes(config, 100_000, 1000)
    assert needed > 2 * 100_000 * 1000 * 1024 * 4 // 64 and needed <= large.memory // 4
    monkeypatch.setattr(ceilings, "_MESSAGE", 1000)
    hosts = node_of(world, tmp_path)
    assert hosts.largest_message() == 1000, "an introduction"
    greet(hosts, told_of(world[1]))
    assert hosts.largest_message() > 60 * 32 * 4, "a table"
    assert node_of(world, tmp_path).largest_message() == hosts.largest_message()
    monkeypatch.undo()
    honest = message_with(None, kind="train")
    honest.content["arrays"] = pack_arrays({"x": np.zeros((4000, 1000), np.float32)})
    came = expand(condense(honest), node_of(world, tmp_path).largest_message())
    assert came.content.array_records["arrays"]["x"].numpy().nbytes == 16_000_000


def test_a_run_that_cannot_be_read_takes_no_other_runs_messages_away(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It does not count, which is said; what is no fault of a run is not hidden."""
    monkeypatch.setattr(ceilings, "_MESSAGE", 1000)
    runs = tmp_path / "runs"
    hosts = node_of(world, tmp_path)
    greet(hosts, replace(told_of(world[1]), key="a" * 32))
    needed = hosts.largest_message()
    for key, method in (("b", "fedmf"), ("c", "fedials"), ("d", "fedmf")):
        greet(hosts, replace(told_of(world[1], method), key=key * 32))
    (runs / ("b" * 32) / "config.toml").write_text("[[")
    failing = method_of(config_of("fedials"), 9)
    monkeypatch.setattr(type(failing), "parts", lambda self: {}["gone"])  # as a method from elsewhere may
    (runs / ("d" * 32) / "run.json").write_text("{")  # it is introduced anew before anything of it comes
    (runs / "lost+found").mkdir()
    caplog.clear()
    assert node_of(world, tmp_path).largest_message() == needed > 1000
    said = [record.getMessage() for record in caplog.records]
    assert [line.partition("/runs/")[2][:2] for line in said] == ["bb", "cc"]
    assert all("does not count for the size of messages" in line for line in said) and "is damaged" in said[0]
    with pytest.raises(InputError):
        ShardHosts(tmp_path / "no shard", tmp_path).largest_message()
