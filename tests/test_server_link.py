"""The server's end of a SuperLink: replies that come in pieces, from several nodes at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_id
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from signed import new_keys

from fedem_flwr.errors import FedemError
from fedem_flwr.messages.wire import pack_arrays, unpack_arrays
from fedem_flwr.network import parcels
from fedem_flwr.network.link import Address
from fedem_flwr.network.parcels import tree_of
from fedem_flwr.network.seal import NodeSeals
from fedem_flwr.network.server_link import BROKEN_OFF, ServerLink

KEYS = {node: NodeSeals(new_keys()) for node in (11, 12)}


class SuperLink:
    """Tells of each reply once, as Flower's does; `there` are the objects that have come."""

    def __init__(self) -> None:
        self.replies: dict[str, tuple[Message, Any]] = {}
        self.there: dict[str, bytes] = {}
        self.confirmed: list[str] = []
        self.told: set[str] = set()

    def announce(self, to: str, node: int, value: float) -> dict[str, bytes]:
        """A node says what is coming; returns the objects."""
        content = RecordDict({"arrays": pack_arrays({"a": np.full(9, value)})})
        reply = KEYS[node].sealed(make_message(Metadata(1, "", node, 1, to, "", 0.0, 1.0, "train"), content))
        self.replies[to] = tree_of(reply)
        return {name: part.deflate() for name, part in get_all_nested_objects(reply).items()}

    def PullMessages(self, request: Any) -> PullAppMessagesResponse:  # noqa: N802  # Flower's name
        found = [self.replies.pop(message_id) for message_id in request.message_ids if message_id in self.replies]
        gone = [message_id for message_id in request.message_ids if message_id in self.told]
        assert not gone, f"{gone} were asked for again: a SuperLink says then that there is no such message"
        self.told |= {reply.metadata.reply_to_message_id for reply, _ in found}
        messages = [message_to_proto(reply) for reply, _ in found]
        return PullAppMessagesResponse(messages_list=messages, message_object_trees=[tree for _, tree in found])

    def PullObject(self, request: Any) -> PullObjectResponse:  # noqa: N802
        content = self.there.get(request.object_id)
        return PullObjectResponse(
            object_found=True, object_available=content is not None, object_content=content or b""
        )

    def ConfirmMessageReceived(self, request: Any) -> None:  # noqa: N802
        self.confirmed.append(request.message_object_id)


@pytest.fixture
def superlink() -> SuperLink:
    return SuperLink()


@pytest.fixture
def link(superlink: SuperLink) -> ServerLink:
    made = ServerLink(Address("127.0.0.1:9"), b"secret", patience=0.0, largest=1 << 20)
    made._client = superlink  # type: ignore[assignment]
    for to, node in (("to-1", 11), ("to-2", 12)):
        assert made._seals.meet(node, public_key_to_bytes(KEYS[node].keys[1]))
        made._seals.sent(to, node)
    return made


def values_of(reply: Message) -> list[float]:
    return sorted({float(x) for x in unpack_arrays(reply.content.array_records["arrays"])["a"]})


def test_nobody_waits_for_a_node_that_stalls(superlink: SuperLink, link: ServerLink) -> None:
    slow = superlink.announce("to-1", 11, 1.0)
    superlink.there |= superlink.announce("to-2", 12, 2.0)
    (reply,) = link.pull(["to-1", "to-2", "to-3"])
    assert reply.metadata.src_node_id == 12 and values_of(reply) == [2.0] and len(superlink.confirmed) == 1
    assert link.pull(["to-1", "to-3"]) == []
    superlink.there |= dict(list(slow.items())[:2])
    assert link.pull(["to-1", "to-3"]) == []
    superlink.there |= slow
    (reply,) = link.pull(["to-1", "to-3"])
    assert reply.metadata.src_node_id == 11 and values_of(reply) == [1.0]
    assert link.pull(["to-3"]) == [] and len(superlink.confirmed) == 2


def test_a_reply_that_stops_coming_is_an_error_and_one_that_nobody_waits_for_is_forgotten(
    superlink: SuperLink, link: ServerLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    superlink.announce("to-1", 11, 1.0)
    late = superlink.announce("to-2", 12, 2.0)
    assert link.pull(["to-1", "to-2"]) == []
    monkeypatch.setattr(parcels, "STALLED", -1.0)
    (reply,) = link.pull(["to-1"])
    assert reply.has_error() and reply.error.code == BROKEN_OFF and reply.metadata.src_node_id == 11
    superlink.there |= late
    assert link.pull(["to-3"]) == []


def test_a_reply_that_breaks_the_call_costs_its_node_alone(superlink: SuperLink, link: ServerLink) -> None:
    """The others are told of with it, and lost: the SuperLink says that they are gone, and they are asked for again."""
    plain = superlink.PullMessages

    def failing(request: Any) -> PullAppMessagesResponse:
        response = plain(request)
        if "to-1" in request.message_ids:
            raise FedemError("the SuperLink fails: status 500")
        return response

    superlink.PullMessages = failing  # type: ignore[method-assign]
    superlink.announce("to-1", 11, 1.0)
    superlink.told.clear()
    first = link.pull(["to-1"])
    assert [reply.error.reason for reply in first if reply.has_error()] != [] and link._one_by_one
    superlink.there |= superlink.announce("to-2", 12, 2.0)
    superlink.told.discard("to-1")
    link._seals.sent("to-2", 12)
    replies = link.pull(["to-1", "to-2"])
    assert sorted(reply.has_error() for reply in replies) == [False, True]
    assert next(reply for reply in replies if reply.has_error()).metadata.reply_to_message_id == "to-1"


def test_a_reply_in_very_many_pieces_is_refused_unread(
    superlink: SuperLink, link: ServerLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    superlink.there |= superlink.announce("to-1", 11, 1.0)
    monkeypatch.setattr(parcels, "_PIECES", 1)
    (reply,) = ServerLink.pull(link, ["to-1"])
    assert reply.has_error() and "pieces: refused" in reply.error.reason


def test_what_is_no_message_is_an_error_of_its_node(superlink: SuperLink, link: ServerLink) -> None:
    superlink.announce("to-1", 11, 1.0)
    nonsense = ObjectTree(object_id=get_object_id(b"nonsense"))
    superlink.replies["to-1"] = superlink.replies["to-1"][0], nonsense
    superlink.there[nonsense.object_id] = b"nonsense"
    superlink.there |= superlink.announce("to-2", 12, 2.0)
    bad, good = link.pull(["to-1", "to-2"])
    assert bad.has_error() and "cannot be read" in bad.error.reason and bad.metadata.src_node_id == 11
    assert values_of(good) == [2.0]
    superlink.told.discard("to-1")
    superlink.there |= dict.fromkeys(superlink.announce("to-1", 11, 1.0), b"something else")
    link._seals.sent("to-1", 11)
    (changed,) = link.pull(["to-1"])
    assert changed.has_error() and "not what was announced" in changed.error.reason
