"""Messages that a server signed once are brought to nodes again, changed, or to others: nobody does what they say."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, Context, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from introduced import KEY, RUN, introduction, make_shards
from signed import crossed, new_keys

from fedem_flwr.client_app import app
from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.messages.wire import pack_arrays, unpack_arrays
from fedem_flwr.network import supernode
from fedem_flwr.network.condense import PIECE, condense, expand
from fedem_flwr.network.heard import _RUNS, Heard
from fedem_flwr.network.introduction import GREETING
from fedem_flwr.network.key_folder import make_certificates
from fedem_flwr.network.seal import UNHEARD, NodeSeals, NotTaken, ServerSeals, record_ids
from fedem_flwr.network.trust import NodeKeys, NodeTrust, ServerTrust
from fedem_flwr.runtime.inprocess import task_identity

pytestmark = pytest.mark.attacks
NODE, TABLE = 21, np.random.default_rng(0).normal(size=1 << 17)
Sent = tuple[Message, Mapping[str, str]]


class Pair:
    """A server and a node that it has met, with nothing but a SuperLink between them."""

    def __init__(self, keys: NodeKeys | None = None, signing: Ed25519PrivateKey | None = None) -> None:
        self.signing = signing or Ed25519PrivateKey.generate()
        self.node, self.server = NodeSeals(keys or new_keys(), self.signing.public_key()), ServerSeals(self.signing)
        assert self.server.meet(NODE, public_key_to_bytes(self.node.keys[1]))

    def send(self, run: int = RUN, kind: str = "train", round_: str = "3") -> Sent:
        """A message, as it comes to the node."""
        told = Metadata(run, "", 1, NODE, "", round_, 1.0, 60.0, kind)
        content = RecordDict({"arrays": pack_arrays({"a": TABLE}), "config": ConfigRecord({"persist": 1})})
        return crossed(self.server.sealed(condense(make_message(told, content))))

    def tell(self, sent: Sent, run: int = RUN) -> None:
        """Let the node answer what it does not take, and the server hear that."""
        with pytest.raises(NotTaken) as refused:
            self.node.opened(*sent)
        assert refused.value.code == UNHEARD
        message = sent[0]
        self.server.sent(message.metadata.message_id, NODE)
        with task_identity():
            told, ids = crossed(self.node.sealed(refused.value.reply(message)))
        outside = Metadata(run, "", NODE, 1, message.metadata.message_id, "3", 1.0, 60.0, "train")
        assert self.server.opened(outside, told, ids).error.code == UNHEARD


@pytest.fixture
def pair() -> Pair:
    made = Pair()
    made.tell(made.send())
    return made


def refusal(node: NodeSeals, sent: Sent) -> tuple[str, int | None]:
    with pytest.raises(NotTaken) as refused:
        node.opened(*sent)
    return str(refused.value), refused.value.code


def test_what_the_server_signs_now_is_taken(pair: Pair) -> None:
    for _ in range(3):
        opened = expand(pair.node.opened(*pair.send()))
        assert sorted(opened.content) == ["arrays", "config"]
        assert unpack_arrays(opened.content.array_records["arrays"])["a"].sum() == TABLE.sum()
    assert pair.node.opened(*pair.send(kind="evaluate", round_="4")).metadata.group_id == "4"


def test_no_message_is_taken_twice_or_after_a_later_one(pair: Pair) -> None:
    first, second, third = pair.send(), pair.send(), pair.send()
    pair.node.opened(*second)
    for old in (second, first):
        assert refusal(pair.node, old)[1] is None, "without a word"
    pair.node.opened(*third)
    assert refusal(pair.node, third) == ("a message that came before, or after a later one: left out", None)


def test_what_was_signed_for_an_earlier_process_is_not_taken(pair: Pair) -> None:
    """Also where the SuperLink gives the run's number once more."""
    old = pair.send()
    pair.node.opened(*old)
    anew = NodeSeals(pair.node.keys, pair.node.server_key)
    assert refusal(anew, old)[1] == UNHEARD
    pair.node = anew
    assert refusal(anew, pair.send())[1] == UNHEARD, "the server does not know that yet"
    pair.tell(pair.send())
    anew.opened(*pair.send())


def test_a_challenge_is_for_one_run(pair: Pair) -> None:
    """Else numbers of one run would stand in the way of the next one's, or its messages pass in the other."""
    last = [pair.send() for _ in range(5)][-1]
    pair.node.opened(*last)
    assert refusal(pair.node, pair.send(run=RUN - 1))[1] == UNHEARD
    pair.tell(pair.send(run=RUN - 1), RUN - 1)
    pair.node.opened(*pair.send(run=RUN - 1))


def _told(**changes: Any) -> Callable[[Message], Message]:
    def change(message: Message) -> Message:
        for name, value in changes.items():
            vars(message.metadata)[f"_{name}"] = value
        return message

    return change


def _put(**values: Any) -> Callable[[Message], Message]:
    def change(message: Message) -> Message:
        message.content.config_records[PIECE].update(values)
        return message

    return change


def _replaced(message: Message) -> Message:
    message.content[f"{PIECE}-arrays"] = pack_arrays({"0": TABLE + 1})
    return message


def _numbered(message: Message) -> Message:
    said = json.loads(str(message.content.config_records[PIECE]["said"]))
    return _put(said=json.dumps({**said, "number": 1 << 60}))(message)


def _bare(message: Message) -> Message:
    del message.content.config_records[PIECE]["said"]
    return message


CHANGES: dict[str, tuple[Callable[[Message], Message], str]] = {
    "run": (_told(run_id=RUN - 1), "another run than"),
    "kind": (_told(message_type="evaluate"), "another kind than"),
    "round": (_told(group_id="4"), "another round than"),
    "large arrays": (_replaced, "another content than"),
    "content": (_put(**{PIECE: b"another"}), "another content than"),
    "number": (_numbered, "has not signed: refused"),
    "no seal": (_bare, "has not signed: refused"),
    "no signature": (_put(signature=b""), "has not signed: refused"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_was_changed_on_the_way_is_refused(what: str, pair: Pair) -> None:
    """By whoever runs the SuperLink, where TLS ends."""
    change, words = CHANGES[what]
    reason, code = refusal(pair.node, crossed(change(pair.send()[0])))
    assert words in reason and code == 2


def test_what_is_for_another_node_or_from_another_server_is_refused(pair: Pair) -> None:
    other = NodeSeals(new_keys(), pair.node.server_key)
    assert "another to than" in refusal(other, pair.send())[0]
    stranger = Pair(pair.node.keys)
    assert "has not signed" in refusal(pair.node, stranger.send())[0]
    unsigned = ServerSeals()
    message = make_message(Metadata(RUN, "", 1, NODE, "", "3", 1.0, 60.0, "train"), RecordDict())
    assert "has not signed" in refusal(pair.node, crossed(unsigned.sealed(message)))[0]
    anybody = NodeSeals(new_keys())
    assert list(anybody.opened(*crossed(unsigned.sealed(message))).content) == [], "without keys anybody is believed"


# --- Flower's own SuperNode, which starts a process for every message


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    make_certificates(tmp_path / "certs", 1)
    return tmp_path / "certs"


def test_a_supernode_believes_no_old_introduction_either(certs: Path, tmp_path: Path) -> None:
    """Its memory is a file; what it answers is signed."""
    federation = make_shards(tmp_path)
    trust, keys = ServerTrust.load(certs), NodeTrust.load(certs, "node-0").keys
    pair = Pair(keys, trust.signing_key)
    place = {"shard": str(tmp_path / "shards" / "node-0"), "state": str(tmp_path / "state"), "open-control": True}
    place |= {"server-key": str(certs / "server.pub"), "node-key": str(certs / "nodes" / "node-0.key")}
    context = Context(RUN, NODE, place, RecordDict(), {})

    def introduced(signing: Ed25519PrivateKey) -> Message:
        told = replace(introduction(federation), resumes=())
        content = RecordDict({GREETING: told.record(signing)})
        told_of = Metadata(RUN, "", 1, NODE, "", "0", 1.0, 60.0, "query")
        message, _ = crossed(pair.server.sealed(condense(make_message(told_of, content))))
        return message

    def answer(message: Message) -> Message:
        pair.server.sent(message.metadata.message_id, NODE)
        with task_identity():
            reply = app(message, context)
        outside = Metadata(RUN, "", NODE, 1, message.metadata.message_id, "0", 1.0, 60.0, "query")
        return expand(pair.server.opened(outside, reply, record_ids(reply.content)))

    first = introduced(trust.signing_key)
    assert answer(first).error.code == UNHEARD and not (tmp_path / "state" / "runs").exists()
    second = introduced(trust.signing_key)
    assert list(unpack_arrays(answer(second).content["arrays"])["users"]) == list(range(14))
    assert (tmp_path / "state" / "runs" / KEY).is_dir()
    assert "came before" in answer(second).error.reason
    (tmp_path / "state" / "heard.json").write_text("{")
    assert answer(second).error.code == UNHEARD
    assert (tmp_path / "state" / "heard.json").stat().st_mode & 0o777 == 0o600
    del place["node-key"]
    with pytest.raises(Exception, match="cannot sign its answers"):
        app(second, context)


def test_a_memory_holds_so_many_runs_and_forgets_no_message(tmp_path: Path) -> None:
    """Whoever forgets makes new challenges up, so that nothing old is taken."""
    for heard in (Heard(), Heard(tmp_path / "heard.json")):
        before = heard.challenge(1)
        assert heard.take(1, 5) and not heard.take(1, 5) and not heard.take(1, "6") and not heard.take(1, None)
        assert heard.challenge(1) == before != heard.challenge(2)
    memory = Heard()
    before = memory.challenge(1)
    assert all(memory.take(run, 1) for run in range(_RUNS)) and memory.challenge(1) == before
    assert memory.take(_RUNS, 1) and memory.challenge(1) != before


def test_a_memory_is_no_way_to_other_files(certs: Path, tmp_path: Path) -> None:
    """Whoever can put a link, or a pipe, in its place has nothing overwritten by it, read as it, or waited for."""
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    for name, words in (("link", "symbolic link"), ("dangling", "symbolic link"), ("pipe", "no ordinary file")):
        for call in (lambda heard: heard.challenge(1), lambda heard: heard.take(1, 1)):
            with pytest.raises(FedemError, match=f"cannot remember messages in .*{name}.*{words}"):
                call(Heard(tmp_path / name))
    assert (tmp_path / "victim").read_text() == "precious" and not (tmp_path / "nowhere").exists()
    (tmp_path / "bytes").write_bytes(b"\xff\x00")
    assert Heard(tmp_path / "bytes").take(1, 1) and not Heard(tmp_path / "bytes").take(1, 1)


def test_a_supernodes_state_is_closed_or_refused(certs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory lies there: whoever writes to it has old messages taken again."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    state.chmod(0o777)
    told = {"state": str(state), "node-key": str(certs / "nodes" / "node-0.key")}
    context = Context(RUN, NODE, told, RecordDict(), {})
    supernode._seals(context)
    assert state.stat().st_mode & 0o777 == 0o700
    somebody = os.geteuid() + 1
    monkeypatch.setattr("fedem_flwr.files.os.geteuid", lambda: somebody)  # then it is another's
    monkeypatch.setattr(supernode, "load_node_key", lambda path: new_keys()[0])
    with pytest.raises(InputError, match=r"the state folder .* belongs to another user"):
        supernode._seals(context)
