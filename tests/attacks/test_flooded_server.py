"""A node, or a SuperLink, that sends far more than a round needs: the server counts before it asks, and goes on."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse
from flwr.proto.runtime_pb2 import GetNodesRequest, PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.runtime import RuntimeHttpClient

from fedem_flwr.errors import FedemError
from fedem_flwr.messages.wire import pack_arrays
from fedem_flwr.network import link as link_module
from fedem_flwr.network.link import Address, Patience, TooLarge, Unreachable
from fedem_flwr.network.parcels import Incoming, pieces_of, tree_of
from fedem_flwr.network.seal import ServerSeals
from fedem_flwr.network.server_link import ServerLink

pytestmark = pytest.mark.attacks
LARGEST, PIECES = 1 << 20, 30_000
ADDRESS = Address("127.0.0.1:9")


def wide_tree() -> ObjectTree:
    """What took 2 MB to announce, and minutes of a SuperLink's database."""
    return ObjectTree(object_id="0" * 64, children=[ObjectTree(object_id=f"{at:064x}") for at in range(1, PIECES)])


def reply_of(values: np.ndarray, to: str, node: int) -> tuple[Message, dict[str, bytes]]:
    content = RecordDict({"arrays": pack_arrays({"a": values})})
    reply = make_message(Metadata(1, "", node, 1, to, "", 0.0, 1.0, "train"), content)
    return reply, {name: part.deflate() for name, part in get_all_nested_objects(reply).items()}


class SuperLink:
    """Hands out what was announced, and counts what is asked for."""

    def __init__(self) -> None:
        self.announced: list[tuple[Message, ObjectTree]] = []
        self.objects: dict[str, bytes] = {}
        self.pulled = 0

    def PullMessages(self, request: Any) -> PullAppMessagesResponse:  # noqa: N802  # Flower's names
        found, self.announced = self.announced, []
        messages = [message_to_proto(reply) for reply, _ in found]
        return PullAppMessagesResponse(messages_list=messages, message_object_trees=[tree for _, tree in found])

    def PullObject(self, request: Any) -> PullObjectResponse:  # noqa: N802
        self.pulled += 1
        content = self.objects[request.object_id]
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request: Any) -> None:  # noqa: N802
        """Nothing is kept."""


class Believing(ServerSeals):
    """Takes any answer for its node's own."""

    def opened(self, outside: Metadata, reply: Message, ids: Mapping[str, str]) -> Message:
        return make_message(outside, reply.content)


@pytest.fixture
def superlink() -> SuperLink:
    return SuperLink()


@pytest.fixture
def server(superlink: SuperLink) -> ServerLink:
    made = ServerLink(ADDRESS, b"secret", patience=0.0, largest=LARGEST)
    made._client, made._seals = superlink, Believing()  # type: ignore[assignment]
    return made


def test_thirty_thousand_pieces_are_not_asked_for(superlink: SuperLink, server: ServerLink) -> None:
    (hostile, _), (honest, objects) = reply_of(np.ones(1), "to-1", 11), reply_of(np.full(9, 2.0), "to-2", 12)
    superlink.objects = objects
    superlink.announced = [(hostile, wide_tree()), tree_of(honest)]
    bad, good = server.pull(["to-1", "to-2"])
    assert bad.has_error() and bad.metadata.src_node_id == 11
    assert bad.error.reason == f"a message in more than {pieces_of(LARGEST)} pieces: refused"
    assert good.has_content() and superlink.pulled == len(objects), "of the honest one alone"


def test_of_a_tree_no_more_is_read_than_may_be_fetched() -> None:
    """Also where the same piece is named again and again."""
    again = ObjectTree(object_id="0" * 64, children=[ObjectTree(object_id="1" * 64)] * PIECES)
    for tree in (wide_tree(), again):
        incoming = Incoming(tree, LARGEST)
        assert len(incoming._missing) <= pieces_of(LARGEST) + 1
        with pytest.raises(TooLarge):
            incoming.fetch(lambda _: pytest.fail("asked for"))


def test_a_node_has_one_allowance_a_round_whoever_it_says_it_is(superlink: SuperLink, server: ServerLink) -> None:
    """Replies of nearly the largest size, each to another copy of its message: the fourth is too much for a round."""
    server._asked = {f"to-{at}": 11 for at in range(5)} | {"other": 12}

    def answers(to: str, node: int, value: float) -> Message:
        reply, objects = reply_of(np.full(120_000, value), to, node)  # 960 kB
        superlink.objects, superlink.announced = objects, [tree_of(reply)]
        (told,) = server.pull([to])
        return told

    assert [answers(f"to-{at}", 11 + at, float(at)).has_error() for at in range(4)] == [False, False, False, True]
    assert not answers("other", 12, 9.0).has_error(), "nobody else pays"
    server.new_round()
    assert not answers("to-4", 11, 4.0).has_error()


def failing(times: int, status: int) -> Callable[[], str]:
    left = [times]

    def call() -> str:
        if left[0]:
            left[0] -= 1
            request = httpx.Request("POST", "http://superlink")
            raise httpx.HTTPStatusError("", request=request, response=httpx.Response(status, request=request))
        return "there"

    return call


class NoWaiting(threading.Event):
    """Time passes by itself."""

    def wait(self, timeout: float | None = None) -> bool:
        return False


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_superlink_that_fails_is_waited_for(status: int) -> None:
    """500: its database is locked by what a node sent; 503 and 429: a proxy's limits."""
    stopped = NoWaiting()
    assert Patience(ADDRESS, 60.0, stopped).invoke(failing(5, status)) == "there"
    with pytest.raises(FedemError) as told:
        Patience(ADDRESS, 0.0, stopped).invoke(failing(1, status))
    assert isinstance(told.value, Unreachable) == (status != 500), "what fails for ever is a message's fault"
    with pytest.raises(FedemError, match="fails"):
        Patience(ADDRESS, 60.0, stopped).invoke(failing(1, 400))


def answered_with(answer: httpx.Response) -> RuntimeHttpClient:
    made = ADDRESS.client(RuntimeHttpClient, [], Patience(ADDRESS, 0.0, threading.Event()))
    made._client._transport = httpx.MockTransport(lambda request: answer)
    return made


def test_an_answer_that_inflates_is_refused_unread() -> None:
    bomb = gzip.compress(bytes(1 << 20))
    client = answered_with(httpx.Response(200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(bomb)))
    with pytest.raises(TooLarge, match="compressed"):
        client.GetNodes(GetNodesRequest())


def test_an_endless_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "_ANSWER", 10_000)
    came = []

    class Endless(httpx.SyncByteStream):
        def __iter__(self) -> Any:
            for at in range(1000):
                came.append(at)
                yield bytes(1000)

    with pytest.raises(TooLarge, match="10,000 bytes"):
        answered_with(httpx.Response(200, stream=Endless())).GetNodes(GetNodesRequest())
    assert len(came) == 11


def test_nobody_is_sent_elsewhere() -> None:
    """What is signed for this SuperLink goes to no other address."""
    client = answered_with(httpx.Response(307, headers={"location": "http://elsewhere.example/"}))
    with pytest.raises(FedemError, match="fails"):
        client.GetNodes(GetNodesRequest())
