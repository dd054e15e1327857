"""What a node believes, and what it forgets: introductions of runs, resumptions, refusals."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context, Message, RecordDict
from worlds import config_of

from fedem_flwr.config import Config
from fedem_flwr.errors import FedemError
from fedem_flwr.protocol.shards import Federation, write_shards
from fedem_flwr.runtime.inprocess import task_identity
from fedem_flwr.runtime.inputs import load_interactions, split_of
from fedem_flwr.runtime.network.host import ShardHosts
from fedem_flwr.runtime.network.introduction import GREETING, Introduction, NetworkWelcome, RunIdentity
from fedem_flwr.runtime.network.server_link import Session
from fedem_flwr.runtime.network.trust import Roster, ServerTrust, make_certificates
from fedem_flwr.runtime.state_store import DiskStateStore

KEY, RUN = "ab" * 16, 2**63 + 5
SIGNER = Ed25519PrivateKey.generate()
CONTEXT = Context(RUN, 3, {}, RecordDict(), {})


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    config = config_of("fedem")
    return write_shards(split_of(config, load_interactions(config)), 2, tmp_path)


def told_by(federation: Federation, config: Config | None = None, **changed: Any) -> Introduction:
    facts = {name: getattr(federation.facts, name) for name in ("dataset", "protocol", "users", "items")}
    fields = {"key": KEY, "run_id": RUN, "resumes": (), "facts": facts, "round": 0, **changed}
    return Introduction(config=(config or config_of("fedem")).to_toml(), **fields)


def message_of(told: Introduction, signer: Ed25519PrivateKey | None = SIGNER, run_id: int | None = None) -> Message:
    with task_identity():
        message = Message(RecordDict({GREETING: told.record(signer)}), 3, "query")
    message.metadata.__dict__["_run_id"] = told.run_id if run_id is None else run_id
    return message


def hosts_in(tmp_path: Path, **options: Any) -> ShardHosts:
    return ShardHosts(tmp_path / "shards" / "node-1", tmp_path / "state", SIGNER.public_key(), **options)


def test_only_the_known_server_is_believed(federation: Federation, tmp_path: Path) -> None:
    hosts, told = hosts_in(tmp_path), told_by(federation)
    assert hosts.welcome(message_of(told), CONTEXT)["stored"].tolist() == [0]
    for signer in (None, Ed25519PrivateKey.generate()):
        with pytest.raises(FedemError, match="has not signed: refused"):
            hosts.welcome(message_of(told, signer), CONTEXT)
    with pytest.raises(FedemError, match="of another run: refused"):
        hosts.welcome(message_of(told, run_id=RUN + 1), CONTEXT)
    anybody = ShardHosts(tmp_path / "shards" / "node-1", tmp_path / "other")
    assert anybody.welcome(message_of(told, None), CONTEXT)["stored"].tolist() == [0]


@pytest.mark.parametrize("field", ["key", "config", "facts", "resumes", "round", "run"])
def test_every_field_is_signed(field: str, federation: Federation) -> None:
    record = dict(told_by(federation, resumes=(3,)).record(SIGNER))
    other = dict(
        told_by(federation, config_of("fedmf"), key="cd" * 16, resumes=(4,), round=9, run_id=RUN + 1, facts={}).record(
            None
        )
    )
    spoiled = {**record, field: other[field]}
    assert Introduction.read(record, RUN, SIGNER.public_key()).key == KEY
    with pytest.raises(FedemError, match="refused"):
        Introduction.read(spoiled, RUN, SIGNER.public_key())


@pytest.mark.parametrize("record", [{}, {"key": KEY}, {"key": "../..", "run": str(RUN), "resumes": [], "facts": "{}"}])
def test_no_introduction(record: dict[str, Any]) -> None:
    with pytest.raises(FedemError):
        Introduction.read({"config": "", "round": 0, **record}, RUN, None)


def test_a_node_does_not_do_everything(federation: Federation, tmp_path: Path) -> None:
    hosts = hosts_in(tmp_path)
    alone = config_of("fedials", ials={"individual_uploads": True})
    with pytest.raises(FedemError, match="--allow-individual-uploads"):
        hosts.welcome(message_of(told_by(federation, alone)), CONTEXT)
    hosts_in(tmp_path, individual_uploads=True).welcome(message_of(told_by(federation, alone)), CONTEXT)
    other = {"dataset": "other", "protocol": "strict", "users": 40, "items": 60}
    with pytest.raises(FedemError, match="dataset = 'other'"):
        hosts.welcome(message_of(told_by(federation, facts=other)), CONTEXT)


def test_runs_are_known_by_their_newest_number(federation: Federation, tmp_path: Path) -> None:
    hosts, first = hosts_in(tmp_path), message_of(told_by(federation))
    with pytest.raises(FedemError, match="has not been introduced"):
        hosts.of(first, CONTEXT)
    hosts.welcome(first, CONTEXT)
    assert hosts.of(first, CONTEXT).users(0).tolist() == list(range(20, 40))
    assert hosts_in(tmp_path).of(first, CONTEXT).config.method.name == "fedem", "a new process reads it from the disk"
    again = message_of(told_by(federation, run_id=RUN + 7, resumes=(2,)))
    hosts.welcome(again, CONTEXT)
    for known in (hosts, hosts_in(tmp_path)):
        with pytest.raises(FedemError, match="has not been introduced"):
            known.of(first, CONTEXT)


def test_a_resumption_forgets_what_came_after_the_checkpoint(federation: Federation, tmp_path: Path) -> None:
    """Also where the node was away when the run was resumed before."""
    hosts = hosts_in(tmp_path)
    hosts.welcome(message_of(told_by(federation)), CONTEXT)
    store = DiskStateStore(tmp_path / "state" / "runs" / KEY / "nodes")
    for round_ in range(1, 8):
        store.save("node-000000", round_, {"users": np.arange(20, 40), "user": np.zeros((20, 4), np.float32)})
    same = hosts_in(tmp_path).welcome(message_of(told_by(federation, run_id=RUN + 1)), CONTEXT)
    assert same["stored"].tolist() == [7], "the same timeline: nothing is forgotten"
    missed = hosts_in(tmp_path).welcome(message_of(told_by(federation, run_id=RUN + 2, resumes=(4, 6))), CONTEXT)
    assert missed["stored"].tolist() == [4]
    store.save("node-000000", 6, {"users": np.arange(20, 40)})
    later = hosts_in(tmp_path).welcome(message_of(told_by(federation, run_id=RUN + 3, resumes=(4, 6, 5))), CONTEXT)
    assert later["stored"].tolist() == [4]


def test_damaged_records_lead_to_a_new_introduction(federation: Federation, tmp_path: Path) -> None:
    hosts, message = hosts_in(tmp_path), message_of(told_by(federation))
    hosts.welcome(message, CONTEXT)
    folder = tmp_path / "state" / "runs" / KEY
    (folder / "run.json").write_text('{"run": ')
    with pytest.raises(FedemError, match="has not been introduced"):
        hosts_in(tmp_path).of(message, CONTEXT)
    hosts_in(tmp_path).welcome(message, CONTEXT)
    (folder / "config.toml").write_text("[run\n")
    with pytest.raises(FedemError, match=r"config\.toml"):
        hosts_in(tmp_path).of(message, CONTEXT)


def test_old_runs_are_forgotten(federation: Federation, tmp_path: Path) -> None:
    hosts = hosts_in(tmp_path, keep_runs=2)
    for number in range(4):
        key = f"{number:032x}"
        hosts.welcome(message_of(told_by(federation, key=key, run_id=RUN + number)), CONTEXT)
        os.utime(tmp_path / "state" / "runs" / key / "run.json", (number, number))
    assert sorted(path.name[-1] for path in (tmp_path / "state" / "runs").iterdir()) == ["2", "3"]


def test_an_identity_remembers_its_resumptions(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint" / "network.json"
    first = RunIdentity.next(path, 0)
    assert first.resumes == ()
    second = RunIdentity.next(path, 5)
    assert second == RunIdentity(first.key, (5,)) and RunIdentity.next(path, 7).resumes == (5, 7)
    path.write_text("{")
    assert RunIdentity.next(path, 7).key != first.key


def test_the_roster_says_who_hosts_whom(federation: Federation, tmp_path: Path) -> None:
    make_certificates(tmp_path / "certs", 2)
    make_certificates(tmp_path / "others", 1)
    roster = ServerTrust.load(tmp_path / "certs").roster
    keys = [key for _, key in roster.entries()]
    stranger = Roster.load(tmp_path / "others" / "roster.json").entries()[0][1]

    class Grid:
        def sessions(self) -> dict[int, Session]:
            return {1: Session(keys[0], ""), 2: Session(keys[1], ""), 3: Session(stranger, "")}

    welcome = NetworkWelcome(Grid(), RUN, KEY, (), "", federation, roster)  # type: ignore[arg-type]
    own, other = np.arange(0, 20), np.arange(20, 40)
    assert welcome.objection(1, own) == "" and welcome.objection(2, other) == ""
    assert welcome.objection(1, other) == "claims users 20–39, its key is for users 0–19: refused"
    assert "not in the roster" in welcome.objection(3, own) and "not in the roster" in welcome.objection(9, own)
    assert json.loads((tmp_path / "certs" / "roster.json").read_text())["nodes"][1]["shard"] == 1
