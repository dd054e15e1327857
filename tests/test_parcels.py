"""Messages that come in pieces: nobody waits for what is not there, and what stops coming is given up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_id
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError

from fedem_flwr.errors import FedemError
from fedem_flwr.messages.wire import pack_arrays, unpack_arrays
from fedem_flwr.network import parcels
from fedem_flwr.network.parcels import BrokenOff, Incoming, TooLarge, await_message, tree_of

MOST = 1 << 20


def message() -> Message:
    content = RecordDict({"arrays": pack_arrays({"a": np.arange(500), "b": np.ones(3)}), "c": ConfigRecord({"k": 1})})
    return make_message(Metadata(1, "", 2, 3, "", "", 0.0, 1.0, "train"), content)


@pytest.fixture
def objects() -> tuple[Any, dict[str, bytes]]:
    """A message's tree, and its objects' bytes."""
    sent = message()
    _, tree = tree_of(sent)
    return tree, {name: part.deflate() for name, part in get_all_nested_objects(sent).items()}


def taking(there: dict[str, bytes], asked: list[str]) -> Callable[[str], bytes]:
    def pull(object_id: str) -> bytes:
        asked.append(object_id)
        if object_id not in there:
            raise ObjectUnavailableError("not yet")
        return there[object_id]

    return pull


def test_what_is_there_is_taken_once_and_nothing_is_waited_for(objects: tuple[Any, dict[str, bytes]]) -> None:
    tree, everything = objects
    there: dict[str, bytes] = {}
    asked: list[str] = []
    incoming, pull = Incoming(tree, MOST), taking(there, asked)
    assert not incoming.fetch(pull) and len(asked) == 1, "one look, whatever is missing"
    for name, content in everything.items():
        there[name] = content
        whole = incoming.fetch(pull)
        assert whole == (len(there) == len(everything))
    assert len(asked) == len(everything) + len(everything), "each object once, and one miss at every look but the last"
    assert incoming.size == sum(map(len, everything.values()))
    got = incoming.message()
    assert np.array_equal(unpack_arrays(got.content.array_records["arrays"])["a"], np.arange(500))
    assert got.metadata.message_id == incoming.object_id
    assert incoming.records == {name: record.object_id for name, record in got.content.items()}


def test_a_sender_that_stops_is_given_up(
    objects: tuple[Any, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, everything = objects
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(parcels, "time", SimpleNamespace(monotonic=lambda: clock.now))
    there: dict[str, bytes] = {}
    asked: list[str] = []
    incoming, pull = Incoming(tree, MOST), taking(there, asked)
    assert not incoming.fetch(pull)
    for _ in range(len(everything) - 1):  # slowly, but it goes on
        clock.now += parcels.STALLED
        there[asked[-1]] = everything[asked[-1]]
        assert not incoming.fetch(pull)
    clock.now += parcels.STALLED
    assert not incoming.fetch(pull), "not yet"
    clock.now += 0.1
    with pytest.raises(BrokenOff, match="the rest does not come"):
        incoming.fetch(pull)


def test_what_is_too_large_or_no_message_is_refused(objects: tuple[Any, dict[str, bytes]]) -> None:
    tree, everything = objects
    asked: list[str] = []
    with pytest.raises(TooLarge):
        Incoming(tree, 10).fetch(taking(everything, asked))
    assert len(asked) < len(everything), "nothing further is fetched"
    asked.clear()
    with pytest.raises(FedemError, match="not what was announced: refused"):
        Incoming(tree, MOST).fetch(taking(dict.fromkeys(everything, b"nonsense"), asked))
    assert len(asked) == 1
    nonsense = get_object_id(b"nonsense")
    incoming = Incoming(ObjectTree(object_id=nonsense), MOST)
    assert incoming.fetch(taking({nonsense: b"nonsense"}, []))
    with pytest.raises(FedemError, match="cannot be read"):
        incoming.message()


def test_waiting_for_a_message_ends_when_it_is_whole_or_when_told_to(objects: tuple[Any, dict[str, bytes]]) -> None:
    tree, everything = objects
    there: dict[str, bytes] = {}
    threading.Timer(0.1, there.update, [everything]).start()
    assert await_message(Incoming(tree, MOST), taking(there, []), threading.Event()).has_content()
    stopped = threading.Event()
    threading.Timer(0.1, stopped.set).start()
    with pytest.raises(BrokenOff, match="stopped before"):
        await_message(Incoming(tree, MOST), taking({}, []), stopped)
