"""How a run is introduced: who is believed, and what a server says and notes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord
from introduced import KEY, NOBODY, NODES, RUN, introduction, make_shards, message_with
from worlds import config_of

from fedem_flwr.errors import FedemError
from fedem_flwr.network.host import ShardHosts
from fedem_flwr.network.introduction import GREETING, Introduction, NetworkWelcome, RunIdentity
from fedem_flwr.network.key_folder import make_certificates
from fedem_flwr.network.trust import NodeTrust, Roster, ServerTrust, Session, load_server_key
from fedem_flwr.protocol.shards import Federation


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards")
    make_shards(out)
    return out


@pytest.fixture(scope="module")
def federation(shards: Path) -> Federation:
    return Federation.load(shards / "federation")


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trust") / "certs"
    make_certificates(folder, NODES)
    return folder


@pytest.fixture(scope="module")
def told(federation: Federation) -> Introduction:
    return introduction(federation)


# --- who is believed


def test_what_the_known_server_signed_is_believed(told: Introduction, trust: Path) -> None:
    server, node = ServerTrust.load(trust), NodeTrust.load(trust, "node-1")
    record = told.record(server.signing_key)
    assert Introduction.read(record, RUN, node.server_key) == told
    assert Introduction.read(record, RUN, None) == told
    assert Introduction.read(told.record(None), RUN, None) == told, "a node without that key believes anybody"
    crossed = ConfigRecord.inflate(record.deflate())
    assert Introduction.read(crossed, RUN, node.server_key) == told


TAMPERED: dict[str, Mapping[str, Any]] = {
    "key": {"key": "f" * 32},
    "run": {"run": str(RUN - 1)},
    "resumes": {"resumes": [2, 5, 6]},
    "fewer resumes": {"resumes": [2]},
    "none": {"resumes": []},
    "order": {"resumes": [5, 2]},
    "config": {"config": config_of("fedmf").changed("privacy", individual_uploads=True).to_toml()},
    "a space": {"config": config_of("fedmf").to_toml() + " "},
    "facts": {"facts": json.dumps({"dataset": "synthetic", "protocol": "paper", "users": 40, "items": 60})},
    "round": {"round": 8},
    "no signature": {"signature": ""},
    "no base64": {"signature": "?"},
    "half a signature": {"signature": "AAAA"},
    "a number as signature": {"signature": 3},
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_was_changed_afterwards_is_not(what: str, told: Introduction, trust: Path) -> None:
    signing, known = ServerTrust.load(trust).signing_key, load_server_key(trust / "server.pub")
    record = ConfigRecord({**told.record(signing), **TAMPERED[what]})
    run_id = int(str(record["run"]))  # and the message is one of that run
    with pytest.raises(FedemError, match=r"has not signed: refused"):
        Introduction.read(record, run_id, known)


@pytest.mark.parametrize("field", ["key", "run", "resumes", "config", "facts", "round", "signature"])
def test_what_lacks_a_field_is_not(field: str, told: Introduction, trust: Path) -> None:
    server = ServerTrust.load(trust)
    record = told.record(server.signing_key)
    del record[field]
    with pytest.raises(FedemError, match="has not signed" if field == "signature" else "does not introduce its run"):
        Introduction.read(record, RUN, server.signing_key.public_key())


@pytest.mark.parametrize(
    "wrong",
    [{"round": float("inf")}, {"round": float("nan")}, {"round": "many"}, {"resumes": 3}, {"resumes": ["x"]},
     {"resumes": [float("inf")]}, {"facts": "{"}, {"facts": "3"}, {"facts": "[1]"}, {"run": "x"}],
    ids=str,
)  # fmt: skip
def test_what_is_no_introduction_is_one_line(wrong: dict[str, Any], told: Introduction) -> None:
    with pytest.raises(FedemError, match="the server does not introduce its run"):
        Introduction.read({**told.record(None), **wrong}, RUN, None)


def test_an_introduction_of_another_run_or_server(told: Introduction, trust: Path) -> None:
    known, signing = load_server_key(trust / "server.pub"), ServerTrust.load(trust).signing_key
    with pytest.raises(FedemError, match="of another run: refused"):
        Introduction.read(told.record(signing), RUN - 1, known)
    with pytest.raises(FedemError, match="has not signed: refused"):
        Introduction.read(told.record(Ed25519PrivateKey.generate()), RUN, known)
    for key in ("../../elsewhere", "F" * 32, "0" * 31, "0" * 33, ""):  # it names a folder
        with pytest.raises(FedemError, match="of another run: refused"):
            Introduction.read(replace(told, key=key).record(signing), RUN, known)


# --- the server's side


def test_a_run_keeps_its_name_and_notes_each_resumption(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint" / "network.json"
    first = RunIdentity.next(path, 0)
    assert first.resumes == ()
    for after, resumes in ((0, (0,)), (4, (0, 4)), (4, (0, 4, 4))):
        assert RunIdentity.next(path, after) == RunIdentity(first.key, resumes)
    assert RunIdentity.next(tmp_path / "other.json", 0).key != first.key
    for damage in ("", "{", "[]", '{"key": "x", "resumes": []}', f'{{"key": "{first.key}"}}', '{"resumes": [1e999]}'):
        path.write_text(damage)
        made = RunIdentity.next(path, 9)
        assert made.key != first.key and made.resumes == (), "its nodes know nothing of it"
        assert RunIdentity.next(path, 9) == RunIdentity(made.key, (9,))


def test_the_roster_says_who_hosts_whom(federation: Federation, trust: Path, tmp_path: Path) -> None:
    make_certificates(tmp_path / "others", 1)
    roster = Roster.load(trust / "roster.json")
    keys = [key for _, key in roster.entries()]
    ((_, stranger),) = Roster.load(tmp_path / "others" / "roster.json").entries()
    first, second, third, nobody = (Session(key, "now") for key in (*keys, stranger))
    welcome = NetworkWelcome(RUN, KEY, (), "", federation, roster)
    users = [np.arange(*shard) for shard in federation.shards]
    assert [welcome.objection(one, users[at]) for at, one in enumerate((first, second, third))] == [""] * 3
    assert "claims users 14–27, its key is for users 0–13: refused" in welcome.objection(first, users[1])
    for other in (users[1][:-1], users[1] + 1, np.arange(14, 29), np.arange(40)):
        assert "its key is for users 14–27: refused" in welcome.objection(second, other)
    assert "not in the roster" in welcome.objection(nobody, users[0])
    assert replace(welcome, roster=None).objection(nobody, users[0]) == ""
    fewer = replace(welcome, federation=replace(federation, shards=federation.shards[:2]))
    assert "refused" in fewer.objection(third, users[2]), "a shard that the federation does not have"


def test_the_greeting_is_what_nodes_believe(federation: Federation, trust: Path, shards: Path, tmp_path: Path) -> None:
    signing, known = ServerTrust.load(trust).signing_key, load_server_key(trust / "server.pub")
    config = config_of("fedials")
    welcome = NetworkWelcome(RUN, KEY, (3,), config.to_toml(), federation, None, signing)
    record = welcome.greeting(4).config_records[GREETING]
    told = Introduction.read(record, RUN, known)
    assert (told.key, told.run_id, told.resumes, told.round) == (KEY, RUN, (3,), 4)
    assert set(told.facts) == {"dataset", "protocol", "users", "items"}
    hosts = ShardHosts(shards / "shards" / "node-2", tmp_path, known, device="cpu")
    hosts.welcome(message_with(record), NOBODY)
    assert hosts.of(message_with(None), NOBODY).settings == config.changed("run", device="cpu")
