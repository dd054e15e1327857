"""A stranger starts runs, stops them and unregisters nodes: the server's own run goes on, or says what has happened."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from flower_here import SuperLink
from flwr.app import Context, RecordDict
from flwr.common.constant import Status
from flwr.proto.control_pb2 import ListRunsRequest
from flwr.supercore.corestate import in_memory_corestate
from stranger_runs import start_run, stop_run, unregister_all

from fedem_flwr.cli import main
from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.network import node, supernode, taking
from fedem_flwr.network.control import is_open, register_nodes
from fedem_flwr.network.grid import NetworkGrid
from fedem_flwr.network.key_folder import make_certificates
from fedem_flwr.network.link import Address, Refused, Unreachable
from fedem_flwr.network.trust import NodeTrust, Roster
from fedem_flwr.runtime.inprocess import task_identity

pytestmark = pytest.mark.attacks


@pytest.fixture
def superlink() -> Iterator[SuperLink]:
    made = SuperLink()
    with task_identity():
        yield made
    made.close()


def status_of(superlink: SuperLink, run_id: int) -> str:
    found = superlink.control().ListRuns(ListRunsRequest(run_id=run_id))
    return str(found.run_dict[run_id].status.status)


def test_a_strangers_run_gets_nothing_from_the_server(superlink: SuperLink, caplog: pytest.LogCaptureFixture) -> None:
    """Its task waits first, and the server holds the secret that takes it."""
    hostile = start_run(superlink.control())
    run = superlink.server()
    assert run.open() != hostile and status_of(superlink, run.run_id) == Status.RUNNING
    assert status_of(superlink, hostile) != Status.RUNNING, "nobody speaks in its name"
    assert f"somebody else has started run {hostile}" in caplog.text
    run.close()


def test_very_many_runs_do_not_keep_the_server_out(superlink: SuperLink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taking, "LEFT", 2)
    monkeypatch.setattr(taking, "TAKE", 0.0)  # it has passed at every look
    control = superlink.control()
    hostile = [start_run(control) for _ in range(6)]
    run = superlink.server()
    assert run.open() not in hostile
    ended = [status_of(superlink, one) == Status.FINISHED for one in hostile]
    assert ended == [False, False, True, True, True, True]
    run.close()


def test_a_run_that_a_stranger_stops_ends_with_a_line(superlink: SuperLink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taking, "TAKE", 0.0)
    run = superlink.server()
    client, control = run._runtime([run._guard], run._patience), superlink.control()
    for stopped_first, words in ((True, "was stopped at the SuperLink"), (False, "to somebody else")):
        mine = start_run(control)
        if stopped_first:
            stop_run(control, mine)
        else:
            taking.own_task(client, control, mine, "place", run.stopped)
        with pytest.raises(FedemError, match=words):
            taking.own_task(client, control, mine, "place", run.stopped)


def test_what_one_server_left_the_other_finds(superlink: SuperLink, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two servers at one SuperLink, the second of which comes across the first one's task."""
    monkeypatch.setattr(in_memory_corestate, "HEARTBEAT_DEFAULT_INTERVAL", 0.2)  # 30 s, after which it waits again
    one, other = superlink.server(), superlink.server()
    mine = start_run(superlink.control())
    theirs = other.open()
    client = one._runtime([one._guard], one._patience)
    assert taking.own_task(client, one.control, mine, "place", one.stopped) and theirs != mine
    other.close()


def test_nodes_that_were_shut_out_are_named_and_come_back_with_new_keys(
    superlink: SuperLink, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    certs, control = tmp_path / "certs", superlink.control()
    make_certificates(certs, 2)
    roster = Roster.load(certs / "roster.json")
    assert register_nodes(control, roster.entries()) == 2
    first = superlink.node(NodeTrust.load(certs, "node-0").keys)
    run = superlink.server()
    run.open()
    grid = NetworkGrid(run, 9.0, roster)
    assert list(grid.sessions()) == [first.node_id] and "unregistered" not in caplog.text
    unregister_all(control)
    assert register_nodes(control, roster.entries()) == 0, "to Flower their keys are in use"
    with pytest.raises(InputError, match=r"node-0, node-1: somebody has unregistered .* --rekey node-0 --rekey node-1"):
        grid.sessions()
    with pytest.raises(Refused, match="does not know this node's key"):
        superlink.node(NodeTrust.load(certs, "node-0").keys)

    with pytest.raises(SystemExit) as ended:
        main(["deploy", "certs", "--out", str(certs), "--rekey", "node-1"])
    assert ended.value.code == 0 and "nodes/node-1.key" in capsys.readouterr().out
    after = Roster.load(certs / "roster.json")
    assert [entry[:2] for entry in after.nodes] == [entry[:2] for entry in roster.nodes]
    assert after.nodes[0] == roster.nodes[0] and after.nodes[1] != roster.nodes[1]
    assert register_nodes(control, after.entries()) == 1
    back = superlink.node(NodeTrust.load(certs, "node-1").keys)
    grid = NetworkGrid(run, 9.0, after)
    with caplog.at_level(logging.WARNING):
        assert list(grid.sessions()) == [back.node_id]
        assert list(grid.sessions()) == [back.node_id]
    assert caplog.text.count("the run goes on without node-0: somebody has unregistered") == 1
    with pytest.raises(SystemExit) as ended:
        main(["deploy", "certs", "--out", str(certs), "--rekey", "node-7"])
    assert ended.value.code == 2 and "has no node 'node-7': it has node-0, node-1" in capsys.readouterr().err
    for one in (first, back):
        one.close()
    run.close()


def test_a_look_for_nodes_that_were_shut_out_ends_no_run(
    superlink: SuperLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A proxy that lets the server start runs and list no nodes, say."""
    certs = tmp_path / "certs"
    make_certificates(certs, 2)
    roster = Roster.load(certs / "roster.json")
    register_nodes(superlink.control(), roster.entries())
    first, run = superlink.node(NodeTrust.load(certs, "node-0").keys), superlink.server()
    run.open()
    grid = NetworkGrid(run, 9.0, roster)
    with monkeypatch.context() as closed:
        closed.setattr("flwr.superlink.dependencies.account.AccountAccessDependency.__call__", _refuse)
        assert list(grid.sessions()) == [first.node_id]
    assert "cannot look who is shut out: the SuperLink at" in caplog.text
    monkeypatch.setattr(run.control, "ListNodes", _other_authority)
    with pytest.raises(InputError, match="not signed"):
        NetworkGrid(run, 9.0, roster).sessions()
    first.close()
    run.close()


def test_nodes_say_where_strangers_can_start_runs(
    superlink: SuperLink, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert is_open(superlink.address)
    node._say_if_open(superlink.address)
    assert "anybody" not in caplog.text, "nobody but this machine"
    monkeypatch.setattr(Address, "loopback", False)
    node._say_if_open(superlink.address)
    assert "anybody here may start and stop runs" in caplog.text
    with pytest.raises(Unreachable):
        is_open(Address("127.0.0.1:9"))


class Answering(BaseHTTPRequestHandler):
    """Somebody at the SuperLink's address, who has one answer to everything."""

    status = 200

    def do_POST(self) -> None:
        self.send_response(self.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Nothing."""


def test_that_the_control_api_is_closed_is_believed_of_clear_answers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A SuperLink that fails, or is flooded for the purpose, has not said that strangers cannot start runs."""
    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        address = Address(f"127.0.0.1:{server.server_port}")
        for status in (401, 403, 404):
            monkeypatch.setattr(Answering, "status", status)
            assert not is_open(address), status
        for status in (302, 405, 413, 429, 500, 502, 503):
            monkeypatch.setattr(Answering, "status", status)
            with pytest.raises(Unreachable):
                is_open(address)
            with pytest.raises(FedemError, match="cannot look whether strangers"):
                supernode._require_closed_control(told(superlink=address.place))
        monkeypatch.setattr(Answering, "status", 200)
        assert is_open(address)
        server.shutdown()


def told(**config: Any) -> Context:
    """What whoever started a SuperNode has said of it."""
    return Context(1, 2, config, RecordDict(), {})


def test_a_supernode_holds_no_shard_where_strangers_can_start_runs(
    superlink: SuperLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, place = supernode._require_closed_control, superlink.address.place
    with pytest.raises(FedemError, match=r"/v1/control of .* answers without an account"):
        check(told(superlink=place))
    with pytest.raises(FedemError, match="tell it where the SuperLink is"):
        check(told())
    with pytest.raises(FedemError, match="cannot look whether"):
        check(told(superlink="127.0.0.1:9"))
    check(told(**{"superlink": place, "open-control": True}))
    monkeypatch.setattr("flwr.superlink.dependencies.account.AccountAccessDependency.__call__", _refuse)
    check(told(superlink=place))
    assert not is_open(superlink.address)


def _refuse(self: Any, request: Any) -> None:
    from fastapi import HTTPException

    raise HTTPException(status_code=403)


def _other_authority(request: Any) -> None:
    raise InputError("the certificate is not signed by the given CA")
