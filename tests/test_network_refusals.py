"""Who is refused: strangers, wrong authorities, plaintext, another's users, replays, servers that are not the known."""

from __future__ import annotations

import http.server
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.fault_cells import USERS, config_of
from benchmarks.fault_world import FaultWorld
from fedem_flwr.errors import FedemError
from fedem_flwr.network.commands import Trusted, node_command
from fedem_flwr.network.control import control_client, register_nodes
from fedem_flwr.network.key_folder import make_certificates
from fedem_flwr.network.link import Address, Patience
from fedem_flwr.network.processes import Child, stop_all, wait_until
from fedem_flwr.network.server import read_outcome
from fedem_flwr.network.trust import Roster
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.checkpoint import Checkpoints

pytestmark = [pytest.mark.network, pytest.mark.slow]
NODES = 2


def built(made: FaultWorld) -> Iterator[FaultWorld]:
    try:
        made.build()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultWorld]:
    yield from built(FaultWorld(tmp_path_factory.mktemp("refusals") / "world", config_of("fedmf", 0.0, 30.0), NODES))


def run_of(world: FaultWorld, path: Path, method: str = "fedmf") -> RunDirectory:
    return world.prepare(path, config_of(method, 0.0, 30.0).changed("run", rounds=3))


def tables_of(run: RunDirectory) -> dict[str, np.ndarray]:
    point = Checkpoints(run.checkpoint_dir).load()
    assert point is not None
    return dict(point.arrays)


def ended_with(child: Child) -> tuple[int | None, str]:
    assert wait_until(lambda: not child.alive, 60), "it goes on"
    return child.ended(), child.reason()


def rogue(
    world: FaultWorld, path: Path, certs: Path | None, shard: int, name: str = "node-0", place: str = ""
) -> Child:
    """A node with somebody's keys and somebody's shard."""
    address = Address(place or world.address.place)
    shards = world.folder / "shards" / f"node-{shard}"
    command = node_command(address, Trusted(certs), 0, shards, path / "state", threads=1, individual=False)
    command[command.index("--name") + 1] = name
    child = Child("rogue", [*command, "--admission", "2"], path / "rogue.log")
    child.start()
    return child


def strangers(world: FaultWorld, path: Path) -> Path:
    """Keys that nobody knows, with the right authority."""
    make_certificates(path / "certs", 1)
    for name in ("ca.crt", "server.pub"):
        shutil.copy(world.folder / "certs" / name, path / "certs" / name)
    return path / "certs"


def test_a_stranger_is_not_admitted(world: FaultWorld, tmp_path: Path) -> None:
    code, reason = ended_with(rogue(world, tmp_path, strangers(world, tmp_path), 0))
    assert code == 2 and "not admitted within 2 s" in reason and "does not know this node's key" in reason
    assert "activate-node" in world.superlink.log.read_text() if world.superlink else False


def test_a_wrong_authority_is_final(world: FaultWorld, tmp_path: Path) -> None:
    make_certificates(tmp_path / "certs", 1)
    code, reason = ended_with(rogue(world, tmp_path, tmp_path / "certs", 0))
    assert code == 2 and "is not signed by the given CA" in reason


def test_plaintext_and_tls_do_not_mix(world: FaultWorld, tmp_path: Path) -> None:
    code, reason = ended_with(rogue(world, tmp_path / "plain", None, 0))
    assert code == 2 and "does it want TLS? give --certs" in reason
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"127.0.0.1:{server.server_address[1]}"
        code, reason = ended_with(rogue(world, tmp_path / "tls", world.folder / "certs", 0, place=place))
        server.shutdown()
    assert code == 2 and "speaks no TLS" in reason


def test_a_node_cannot_host_anothers_users(world: FaultWorld, tmp_path: Path) -> None:
    """The rightful node of these users goes on; whose key was misused comes back afterwards."""
    whole = run_of(world, tmp_path / "whole")
    assert world.serve(whole).failures == []
    world.keep_up = False
    rightful = world.children[1]
    stop_all([rightful])
    impostor = rogue(world, tmp_path, world.folder / "certs", 0, name="node-1")
    try:
        run = run_of(world, tmp_path / "run")
        world.serve(run)
        assert impostor.alive, "it was admitted by the SuperLink: its key is registered"
    finally:
        stop_all([impostor])
        world.keep_up = True
    reasons = [failure["reason"] for failure in read_outcome(run).failures]
    assert any(re.fullmatch(r"claims users 0–29, its key is for users 30–59: refused", reason) for reason in reasons)
    assert all(line["evaluated_users"] == USERS // 2 for line in run.read_metrics()), "node-0 was served as ever"
    assert wait_until(lambda: rightful.alive, 30)
    again = run_of(world, tmp_path / "again")
    assert world.serve(again).failures == []
    assert np.array_equal(tables_of(again)["items"], tables_of(whole)["items"])


def test_a_registered_key_must_stand_in_the_roster(
    world: FaultWorld, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certs = strangers(world, tmp_path)
    control = control_client(world.address, Patience(world.address, 5.0, threading.Event()))
    assert register_nodes(control, Roster.load(certs / "roster.json").entries()) == 1
    child = rogue(world, tmp_path, certs, 1)
    try:
        assert wait_until(lambda: "is node" in child.log.read_text(), 60), "the SuperLink lets it in"
        run = run_of(world, tmp_path / "run")
        world.serve(run)
        assert child.alive
    finally:
        stop_all([child])
    assert read_outcome(run).failures == []
    assert "is not in the roster: refused" in caplog.text and "introduction" not in child.log.read_text()
    assert all(line["evaluated_users"] == USERS for line in run.read_metrics())


def test_nodes_believe_one_server(world: FaultWorld, tmp_path: Path) -> None:
    """Who has the SuperLink's secret, but not the server's key, gets nothing out of nodes."""
    world_options = world.options()
    other = replace(world_options, signing_key=Ed25519PrivateKey.generate())
    world.options = lambda: other  # type: ignore[method-assign]
    try:
        with pytest.raises(FedemError, match="that the known server has not signed: refused"):
            world.serve(run_of(world, tmp_path / "run"))
    finally:
        del world.options  # type: ignore[method-assign]


def requests_of(stream: bytes) -> list[bytes]:
    """The raw requests of a connection that are complete, as they were sent."""
    found = []
    while (end := stream.find(b"\r\n\r\n") + 4) > 3:
        length = re.search(rb"(?i)content-length: (\d+)", stream[:end])
        end += int(length[1]) if length else 0
        if len(stream) < end:
            break
        found.append(stream[:end])
        stream = stream[end:]
    return found


def sent_again(place: str, request: bytes) -> int:
    """Send bytes once more; the status that comes back."""
    host, _, port = place.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as link:
        link.sendall(request)
        return int(link.recv(64).split()[1])


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[FaultWorld]:
    """Without TLS: what crosses can be recorded."""
    made = FaultWorld(tmp_path / "world", config_of("fedmf", 0.0, 30.0), NODES)
    made.insecure = True
    yield from built(made)


def uploads_of(world: FaultWorld) -> list[bytes]:
    assert world.relay is not None
    sent = [request for to, _ in world.relay.passed for request in requests_of(bytes(to))]
    return [request for request in sent if b" /v1/fleet/push-" in request.split(b"\r\n", 1)[0]]


def test_a_replayed_upload_counts_once(plain: FaultWorld, tmp_path: Path) -> None:
    """While the round waits for the other node, and after the run, the same bytes change nothing."""
    assert plain.relay is not None
    whole = run_of(plain, tmp_path / "whole")
    assert plain.serve(whole).failures == []
    plain.relay.record = True
    plain.relay.reset_all()
    plain.order(1, 2, "slow")
    log = plain.children[0].log
    seen, statuses = log.read_text().count("round 2, train"), list[int]()

    def replay() -> None:
        if wait_until(lambda: log.read_text().count("round 2, train") > seen, 60, 0.02):
            statuses.extend(sent_again(plain.address.place, request) for request in uploads_of(plain))

    thread = threading.Thread(target=replay)
    thread.start()
    run = run_of(plain, tmp_path / "run")
    plain.serve(run)
    thread.join(timeout=60)
    assert len(statuses) >= 6 and not plain.order_file(1).exists()
    assert read_outcome(run).failures == []
    assert np.array_equal(tables_of(run)["items"], tables_of(whole)["items"])
    assert [line["evaluated_users"] for line in run.read_metrics()] == [USERS] * 3
    upload = uploads_of(plain)[0]
    assert sent_again(plain.address.place, upload) != 200, "the run is over"
    old = re.sub(rb"(?i)(flwr-timestamp|x-flwr-timestamp|timestamp): [^\r]*", rb"\1: 2026-01-01T00:00:00+00:00", upload)
    assert old != upload and sent_again(plain.address.place, old) == 401
