"""Answers in another node's name, or changed on the way: they count as nobody's, and who was asked is asked again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flower_here import SuperLink, asked
from flwr.app import ConfigRecord, Error, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from signed import crossed, new_keys
from stranger_runs import answer_as

from fedem_flwr.messages.wire import pack_arrays, unpack_arrays
from fedem_flwr.network.condense import PIECE, condense, expand
from fedem_flwr.network.grid import NetworkGrid
from fedem_flwr.network.seal import FORGED, UNHEARD, Forged, NodeSeals, NotTaken, ServerSeals
from fedem_flwr.network.server_link import ServerLink
from fedem_flwr.network.trust import NodeKeys
from fedem_flwr.runtime.inprocess import task_identity

pytestmark = pytest.mark.attacks
RUN, ASKED, NODE, OTHER = 17446744073709551615, "a message's id", 21, 22


@pytest.fixture(scope="module")
def superlink() -> Iterator[SuperLink]:
    made = SuperLink()
    yield made
    made.close()


@pytest.fixture
def run(superlink: SuperLink) -> Iterator[ServerLink]:
    with task_identity():
        made = superlink.server(Ed25519PrivateKey.generate())
        made.open()
        yield made
        made.close()


def upload(value: float, size: int = 9) -> RecordDict:
    values = np.random.default_rng(0).normal(size=size).astype(np.float32)  # large, it stays an object of its own
    values[0] = value
    return RecordDict({"arrays": pack_arrays({"a": values})})


def first_of(message: Message) -> float:
    return float(unpack_arrays(message.content.array_records["arrays"])["a"][0])


def test_a_stranger_with_a_key_of_its_own_cannot_answer_for_a_node(run: ServerLink, superlink: SuperLink) -> None:
    """Flower takes whatever somebody pushes first in whatever node's name; the node's own word counts in the end."""
    assert run._seals.signing_key is not None
    node, stranger = superlink.node(server_key=run._seals.signing_key.public_key()), superlink.node()
    seen: list[Message] = []

    def turns() -> None:
        try:
            message = node.next()
        except NotTaken as error:
            assert error.code == UNHEARD, "it has told its challenge"
            return
        if message is None:
            return
        seen.append(message)
        if len(seen) == 1:  # the stranger knows the message's id
            forged = upload(-1.0)
            with stranger.speaking():
                stranger.reply(answer_as(node.node_id, message, forged), 0.1)
        else:
            node.say(upload(2.0), message)

    reply = asked(run, node, upload(1.0), turns)
    assert not reply.has_error() and first_of(reply) == 2.0 and len(seen) == 2
    assert reply.metadata.src_node_id == node.node_id and list(reply.content) == ["arrays"]
    for one in (node, stranger):
        one.close()


def test_what_took_a_message_dies_and_what_comes_after_it_is_asked_anew(run: ServerLink, superlink: SuperLink) -> None:
    """Its challenge is another, and the copy that the dead process took is answered by nobody."""
    assert run._seals.signing_key is not None
    public = run._seals.signing_key.public_key()
    nodes, taken = [superlink.node(server_key=public)], list[Message]()

    def turns() -> None:
        try:
            message = nodes[-1].next()
        except NotTaken as error:
            assert error.code == UNHEARD
            return
        if message is None:
            return
        taken.append(message)
        if len(taken) == 1:
            nodes[0].close()
            nodes.append(superlink.node(nodes[0].keys, public))
        else:
            nodes[-1].say(upload(2.0), message)

    reply = asked(run, nodes[0], upload(1.0), turns)
    assert not reply.has_error() and first_of(reply) == 2.0 and len(taken) == 2
    nodes[-1].close()


def test_a_node_tells_errors_under_its_seal(run: ServerLink, superlink: SuperLink) -> None:
    node = superlink.node()

    def turns() -> None:
        if (message := node.next()) is not None:
            node.say(Error(2, "ValueError: out of memory"), message)

    reply = asked(run, node, upload(1.0), turns)
    assert reply.has_error() and (reply.error.code, reply.error.reason) == (2, "ValueError: out of memory")
    node.close()


def test_whoever_forges_for_ever_costs_one_contribution(
    run: ServerLink, superlink: SuperLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedem_flwr.network.grid._RETURN", 0.0)
    node, stranger = superlink.node(), superlink.node()

    def turns() -> None:
        if (message := node.next()) is not None:
            with stranger.speaking():
                stranger.reply(answer_as(node.node_id, message, upload(-1.0)), 0.1)

    reply = asked(run, node, upload(1.0), turns)
    assert reply.has_error() and reply.error.code == FORGED and "has not signed: refused" in reply.error.reason
    for one in (node, stranger):
        one.close()


def test_a_number_keeps_its_key(run: ServerLink, superlink: SuperLink) -> None:
    """A SuperLink that gives a node's number another key has its node left out."""
    node = superlink.node()
    assert node.node_id in run.nodes()
    superlink.state.nodes[node.node_id].public_key = public_key_to_bytes(new_keys()[1])
    assert node.node_id not in run.nodes()
    superlink.state.nodes[node.node_id].public_key = b"no key at all"
    assert node.node_id not in run.nodes() and node.node_id not in NetworkGrid(run, 9.0).sessions()


# --- whoever runs the SuperLink alters what it passes on


def outside(node: int = NODE, to: str = ASKED, run: int = RUN) -> Metadata:
    return Metadata(run, "an id", node, SUPERLINK_NODE_ID, to, "3", 1.0, 60.0, "train")


@pytest.fixture
def keys() -> NodeKeys:
    return new_keys()


@pytest.fixture
def server(keys: NodeKeys) -> ServerSeals:
    made = ServerSeals()
    assert made.meet(NODE, public_key_to_bytes(keys[1])) and made.meet(OTHER, public_key_to_bytes(new_keys()[1]))
    made.sent(ASKED, NODE)
    made.sent("another", NODE)
    return made


def test_what_the_node_signed_is_taken(server: ServerSeals, keys: NodeKeys) -> None:
    told, ids = crossed(answered(keys))
    reply = server.opened(outside(), told, ids)
    assert first_of(expand(reply)) == 1.0 and reply.metadata.src_node_id == NODE
    assert [*reply.content.config_records[PIECE]] == [PIECE] and f"{PIECE}-arrays" in reply.content
    told, ids = crossed(NodeSeals(keys).sealed(make_message(outside(), upload(3.0))))
    assert first_of(server.opened(outside(), told, ids)) == 3.0, "also where nothing is condensed"


def answered(keys: NodeKeys, content: RecordDict | None = None) -> Message:
    return NodeSeals(keys).sealed(condense(make_message(outside(), content or upload(1.0, 1 << 18))))


def _resealed(message: Message, **changes: Any) -> Message:
    record = message.content.config_records[PIECE]
    record["said"] = json.dumps({**json.loads(str(record["said"])), **changes})
    return message


def _with(message: Message, content: Mapping[str, Any]) -> Message:
    for name, one in content.items():
        message.content[name] = one
    return message


def _put(message: Message, piece: Any) -> Message:
    message.content.config_records[PIECE][PIECE] = piece
    return message


CHANGES: dict[str, tuple[Callable[[Message], Message], Mapping[str, Any], str]] = {
    "large arrays": (lambda m: _with(m, {f"{PIECE}-arrays": pack_arrays({"0": np.ones(9)})}), {}, "another content"),
    "the rest": (lambda m: _put(m, m.content.config_records[PIECE][PIECE] + b" "), {}, "another content"),
    "a record more": (lambda m: _with(m, {"more": ConfigRecord({"a": 1})}), {}, "another content"),
    "another's name": (lambda m: m, {"node": OTHER}, "was not asked"),
    "an old message": (lambda m: m, {"to": "another"}, "another message"),
    "a message of nobody's": (lambda m: m, {"to": "never sent"}, "was not asked"),
    "another run": (lambda m: m, {"run": RUN - 1}, "another run"),
    "what is signed": (lambda m: _resealed(m, run=str(RUN - 1)), {"run": RUN - 1}, "has not signed"),
    "an error": (lambda m: _resealed(m, error=[2, "no"]), {}, "has not signed"),
    "no seal": (lambda m: make_message(m.metadata, upload(1.0)), {}, "has not signed"),
    "no content": (lambda m: make_message(m.metadata, None, Error(2, "no")), {}, "has not signed"),
    "no signature": (lambda m: _with(m, {PIECE: ConfigRecord({PIECE: b"", "said": "{}"})}), {}, "has not signed"),
    "numbers": (lambda m: _put(m, 3), {}, "has not signed"),
    "nothing to seal": (lambda m: _with(m, {PIECE: ConfigRecord({"said": "{}"})}), {}, "has not signed"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_was_changed_on_the_way_is_refused(what: str, server: ServerSeals, keys: NodeKeys) -> None:
    change, elsewhere, words = CHANGES[what]
    told, ids = crossed(change(answered(keys)))
    with pytest.raises(Forged, match=words):
        server.opened(outside(**elsewhere), told, ids)


@pytest.mark.parametrize(
    "said", ["{}", "[]", "[" * 100_000, '{"challenge": "' + "0" * 99 + '"}', '{"error": [1e999, 2]}']
)
def test_nothing_that_a_node_signs_can_end_the_server(said: str, server: ServerSeals, keys: NodeKeys) -> None:
    message = answered(keys)
    record = message.content.config_records[PIECE]
    known = {} if said[:2] in ("{}", "[]", "[[") else {**json.loads(str(record["said"])), **json.loads(said)}
    record["said"] = json.dumps(known) if known else said
    signed = b"fedem-flwr reply 1\n" + str(record["said"]).encode()
    record["signature"] = keys[0].sign(signed, ec.ECDSA(hashes.SHA256()))
    told, ids = crossed(message)
    with pytest.raises(Forged):
        server.opened(outside(), told, ids)


def test_another_node_of_the_roster_cannot_answer_either(server: ServerSeals) -> None:
    told, ids = crossed(answered(new_keys()))
    with pytest.raises(Forged, match="has not signed"):
        server.opened(outside(), told, ids)


def test_what_only_the_superlink_can_know_is_no_nodes_word(server: ServerSeals) -> None:
    gone = make_message(outside(SUPERLINK_NODE_ID), None, Error(3, "the node is away"))
    assert server.opened(outside(SUPERLINK_NODE_ID), gone, {}).error.code == 3
    with pytest.raises(Forged):
        server.opened(outside(SUPERLINK_NODE_ID), *crossed(make_message(outside(SUPERLINK_NODE_ID), upload(1.0))))
