"""Other accounts of the same machine: what is private is closed to them, however careless umask or earlier version."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from worlds import TINY_OPTIONS, carry_out, config_of

import fedem_flwr as fedem
from fedem_flwr.cli import main
from fedem_flwr.errors import InputError
from fedem_flwr.evaluation.control_cache import Measured, remembered
from fedem_flwr.files import close_to_others, own_folder, private_folder, write_atomically
from fedem_flwr.network.deployment import Deployment
from fedem_flwr.network.host import ShardHosts
from fedem_flwr.network.key_folder import make_certificates
from fedem_flwr.network.launch import check_network
from fedem_flwr.network.node import _only_one
from fedem_flwr.network.processes import Child
from fedem_flwr.nodes.secret import secret_of
from fedem_flwr.protocol.shards import Federation

pytestmark = pytest.mark.attacks
STRANGE = [0o000, 0o277]  # one that hides nothing, and one that takes rights of the owner


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def modes(folder: Path) -> set[int]:
    """Of folders and files; the former have the bit that lets into them."""
    return {mode(path) for path in (folder, *folder.rglob("*")) if not path.is_symlink()}


def of_everybody_else(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in (folder, *folder.rglob("*")) if mode(path) & 0o077]


@pytest.mark.parametrize("mask", STRANGE)
def test_what_a_run_holds_of_people(mask: int, tmp_path: Path) -> None:
    with umask(mask):
        out = tmp_path / "run"
        carry_out(out, config_of("fedem", run={"rounds": 1, "users_per_node": 20}, privacy={"secret_draws": True}))
    for name in ("split", "checkpoint"):
        assert modes(out / name) == {0o700, 0o600}, name
    assert list((out / "checkpoint" / "nodes").rglob("*.safetensors")) and list(out.rglob("draws.key"))


@pytest.mark.parametrize("mask", STRANGE)
def test_what_is_cut_into_shards(mask: int, tmp_path: Path) -> None:
    with umask(mask), pytest.raises(SystemExit) as stopped:
        main(["data", "shard", *TINY_OPTIONS[:3], "--out", str(tmp_path / "data"), "--quiet"])
    assert not stopped.value.code and modes(tmp_path / "data" / "shards") == {0o700, 0o600}
    assert Federation.load(tmp_path / "data" / "federation").facts.users == 40, "what everybody may know can be read"


@pytest.mark.parametrize("mask", STRANGE)
def test_what_processes_write(mask: int, tmp_path: Path) -> None:
    with umask(mask):
        make_certificates(tmp_path / "certs", 1)
        secret_of(tmp_path / "state" / "draws.key")
        child = Child("node", ["true"], tmp_path / "logs" / "node.log")
        child.start()
        assert child.process is not None and child.process.wait() == 0
        write_atomically(tmp_path / "record", "private", private=True)
        write_atomically(tmp_path / "report", "for everybody")
        private_folder(tmp_path / "a" / "b" / "c")
    made = [path for path in tmp_path.rglob("*") if path.name != "report"]
    assert {mode(path) for path in made} <= {0o700, 0o600, 0o400} and mode(tmp_path / "certs") == 0o700
    assert mode(tmp_path / "report") & 0o600 == 0o600 and bool(mode(tmp_path / "report") & 0o004) == (mask == 0)


@pytest.mark.usefixtures("undrawn")
def test_what_an_earlier_version_left_open_is_closed_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = carry_out(tmp_path / "run", config_of("fedmf", run={"rounds": 1})).run.directory.path
    for path in run.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    with caplog.at_level(logging.WARNING, "fedem"):
        fedem.load(run).recommender()
        assert [record.getMessage() for record in caplog.records] == [
            f"{run / name} was open to other users (mode 755): it is closed now" for name in ("split", "checkpoint")
        ]
        caplog.clear()
        fedem.load(run).recommender()
        assert not caplog.records
    assert not of_everybody_else(run / "split") and not of_everybody_else(run / "checkpoint")
    assert mode(run / "config.toml") == 0o644, "which says nothing of anybody"


def test_a_nodes_state_is_closed_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "state"
    (state / "runs").mkdir(parents=True)
    (state / "runs" / "x").touch()
    for path in (state, state / "runs"):
        path.chmod(0o777)
    with _only_one(state):
        assert not of_everybody_else(state)
    (tmp_path / "link").symlink_to(state)
    state.chmod(0o750)
    own_folder(tmp_path / "link", "the state folder")
    assert mode(state) == 0o700
    somebody = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: somebody)  # then it is another's
    refused = rf"the state folder .*state belongs to another user .* chown -R {somebody} "
    with pytest.raises(InputError, match=refused), _only_one(state):
        pytest.fail("the node is at work there")
    with pytest.raises(InputError, match="belongs to another user"):
        own_folder(ShardHosts(tmp_path, state).state_dir, "the state folder")
    state.chmod(0o755)
    assert not close_to_others(state) and mode(state) == 0o755, "it is not ours to change"


def test_keys_that_others_could_exchange_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    certs = tmp_path / "certs"
    make_certificates(certs, 1)
    (tmp_path / "shard").mkdir()
    options = ["--superlink", "127.0.0.1:9", "--certs", str(certs)]
    node = ["node", *options, "--shard", str(tmp_path / "shard"), "--state", str(tmp_path / "state")]
    network = config_of("fedmf", network={"superlink": "127.0.0.1:9", "certs": str(certs)}).network
    check_network(network)
    for name in (".", "server.pub", "ca.crt", "roster.json"):
        before = mode(certs / name)
        (certs / name).chmod(before | 0o022)
        for arguments in (node, ["server", str(tmp_path), *options]):
            with pytest.raises(SystemExit) as stopped:
                main(["deploy", *arguments])
            line = capsys.readouterr().err
            assert stopped.value.code == 2 and f"chmod go-w {certs / name}" in line and line.count("\n") == 1
        with pytest.raises(InputError, match="can be changed by others"):
            check_network(network)
        (certs / name).chmod(before)
    certs.chmod(0o1777)  # as engines mount secrets: others cannot exchange what is not theirs
    check_network(network)


def test_a_deployment_is_closed_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "deployment"
    (folder / "logs").mkdir(parents=True)
    record = {"address": "127.0.0.1:9", "nodes": 1, "insecure": True}
    (folder / "deployment.json").write_text(str(record).replace("'", '"').replace("True", "true"))
    for path in (folder, folder / "logs"):
        path.chmod(0o755)
    assert Deployment.open(folder) is not None and not of_everybody_else(folder)
    (folder / "logs" / "superlink.log").symlink_to(tmp_path / "victim")
    with pytest.raises(InputError, match=r"superlink\.log is a link that leads out"):
        Deployment.open(folder)
    somebody = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: somebody)
    with pytest.raises(InputError, match=r"the deployment .* belongs to another user"):
        Deployment.open(folder)


def test_figures_of_single_users_in_the_cache(tmp_path: Path) -> None:
    entry = tmp_path / "cache" / "controls" / "x"
    with umask(0):
        remembered(entry, lambda: Measured({}, {"ease": {"full/hr@10": np.ones(3, np.float32)}}))
    assert modes(tmp_path / "cache") == {0o700, 0o600}
