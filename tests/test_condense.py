"""Messages in few pieces: whatever goes in comes out, and no bytes from outside do more than raise one error."""

from __future__ import annotations

import json
import struct
import tracemalloc
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, Metadata, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedem_flwr.errors import FedemError
from fedem_flwr.messages.wire import pack_arrays, payload_bytes, unpack_arrays
from fedem_flwr.network.condense import _DTYPES, APART, PIECE, condense, expand

Piece = dict[str, Any]


def message_of(records: Mapping[str, Any], error: Error | None = None) -> Message:
    outside = Metadata(5, "", 1, 2, "", "3", 1.0, 60.0, "train")
    return make_message(outside, None if error else RecordDict(dict(records)), error)


def laid_out(message: Message) -> dict[str, Any]:
    """All that a message holds, exactly: types, orders, bits."""
    content: dict[str, Any] = {}
    for name, record in message.content.items():
        if isinstance(record, ArrayRecord):
            arrays = unpack_arrays(record)
            content[name] = [
                (key, x.dtype, x.shape, x.astype(x.dtype, order="C").tobytes()) for key, x in arrays.items()
            ]
        else:
            content[name] = [type(record), *((key, type(value), repr(value)) for key, value in record.items())]
    return content


def there_and_back(records: Mapping[str, Any]) -> Message:
    sent = message_of(records)
    before = laid_out(sent)
    came = expand(condense(sent))
    assert laid_out(came) == before == laid_out(sent), "and the sender's own message is as it was"
    assert came.metadata.__dict__ == sent.metadata.__dict__
    for record in came.content.array_records.values():
        for array in record.values():
            with pytest.raises(ValueError, match="read-only"):
                array.numpy()[...] = 0
    return came


# --- what goes in comes out

names = st.text(max_size=8)
floats = st.floats() | st.sampled_from([0.1, -0.0, 5e-324, 1e308, float("inf"), float("-inf"), float("nan")])
ints = st.integers(-(2**63), 2**63 - 1)
metric = ints | floats | st.lists(ints, max_size=4) | st.lists(floats, max_size=4)
setting = metric | st.booleans() | st.text() | st.binary() | st.lists(st.text(), max_size=3)
small_arrays = st.sampled_from(sorted(_DTYPES)).flatmap(
    lambda char: hnp.arrays(np.dtype(char), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9))
)
record = st.one_of(
    st.dictionaries(names, small_arrays, max_size=4).map(pack_arrays),
    st.dictionaries(names, metric, max_size=4).map(MetricRecord),
    st.dictionaries(names, setting, max_size=4).map(ConfigRecord),
)
contents = st.dictionaries(names.filter(lambda name: not name.startswith(PIECE)), record, max_size=4)


@settings(deadline=None)
@given(contents)
def test_whatever_goes_in_comes_out(records: dict[str, Any]) -> None:
    there_and_back(records)


def large(kind: str, seed: int, extra: int) -> np.ndarray:
    rng, size = np.random.default_rng(seed), APART // 4 + extra
    if kind == "noise":
        return rng.standard_normal(size).astype(np.float32)
    if kind == "rows":  # most of them touched by nobody
        return np.where(rng.random((size // 8, 1)) < 0.1, rng.standard_normal((size // 8, 8)), 0).astype(np.float32)
    if kind == "bytes":  # a quarter of the bytes are noise: deflated, and still large
        return rng.integers(0, 256, 4 * size + 1024).astype(np.int32)
    if kind == "zeros":
        return np.zeros((4, size), np.float64)
    return np.asfortranarray(rng.standard_normal((size // 2, 3)))[::2]


@settings(max_examples=12, deadline=None)
@given(st.lists(st.sampled_from(["noise", "rows", "bytes", "zeros", "strided"]), min_size=1, max_size=3), st.data())
def test_large_arrays_come_out(kinds: list[str], data: st.DataObject) -> None:
    drawn = st.tuples(st.integers(0, 99), st.integers(-9, 9))
    arrays = {f"{at}": large(kind, *data.draw(drawn)) for at, kind in enumerate(kinds)}
    there_and_back({"arrays": pack_arrays(arrays), "more": pack_arrays({"0": np.array(3.5)})})


@pytest.mark.parametrize("kind", ["noise", "rows", "bytes", "zeros"])
def test_what_deflates_is_deflated_and_what_is_large_stays_apart(kind: str) -> None:
    values = large(kind, 0, 1)
    condensed = condense(message_of({"arrays": pack_arrays({"x": values})}))
    apart = condensed.content.array_records.get(f"{PIECE}-arrays", {})
    piece = len(condensed.content.config_records[PIECE][PIECE])
    assert (kind in ("noise", "bytes")) == bool(apart)
    assert piece < 300 if apart else piece < 0.2 * values.nbytes
    assert payload_bytes(condensed) < (values.nbytes + 9 if kind == "noise" else 0.5 * values.nbytes)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(400, dtype=">f8"),
        np.arange(3, dtype=">i2"),
        np.array([1 + 2j, np.nan]),
        np.array(["a", "ß"]),
        np.array([1.5], np.longdouble),
        np.datetime64("2026-01-01"),
        np.zeros(2, [("a", "i4")]),
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays_of_other_kinds_are_left_as_they_are(array: np.ndarray) -> None:
    """A description has no word for them; what stands beside them is condensed all the same."""
    sent = message_of({"odd": pack_arrays({"x": np.asarray(array)}), "even": pack_arrays({"x": np.ones(3)})})
    came = there_and_back(sent.content)
    assert list(condense(sent).content) == ["odd", PIECE]
    np.testing.assert_array_equal(unpack_arrays(came.content.array_records["odd"])["x"], array)


def test_messages_without_pieces_are_left_as_they_are() -> None:
    failed = message_of({}, Error(2, "it broke"))
    assert condense(failed) is failed and expand(failed) is failed
    plain = message_of({"metrics": MetricRecord({"loss": 1.0})})
    assert expand(plain) is plain


# --- few objects, and large ones once


def test_a_small_message_is_three_objects() -> None:
    """Message, records, the one record: each is a request to a SuperLink."""
    arrays = {f"array {at}": np.arange(at) for at in range(20)}
    settings_ = ConfigRecord({"round": 3, "names": ["a", "b"]})
    sent = message_of({"arrays": pack_arrays(arrays), "config": settings_, "metrics": MetricRecord({"loss": 0.5})})
    assert len(get_all_nested_objects(sent)) > 20
    assert len(get_all_nested_objects(condense(sent))) == 3


@pytest.mark.parametrize("kind", ["noise", "bytes"])
def test_the_same_large_array_crosses_once(kind: str) -> None:
    """A SuperLink is asked which objects it lacks, by the digest of their content."""
    first, second = (
        get_all_nested_objects(
            condense(message_of({"arrays": pack_arrays({"users": np.arange(node, 9), "table": large(kind, 0, 0)})}))
        )
        for node in (0, 4)
    )
    news = [found.deflate() for object_id, found in second.items() if object_id not in first]
    assert len(news) == 3 and sum(map(len, news)) < 2000
    assert sum(len(found.deflate()) for found in second.values()) > APART


# --- what comes from outside


def outcome(message: Message, most: int = 8 << 30) -> dict[str, Any] | None:
    """What a message holds, or None for the one error that is allowed; it takes no memory to speak of."""
    tracemalloc.start()
    try:
        return laid_out(expand(message, most))
    except FedemError as error:
        assert "a message whose pieces do not fit" in str(error)
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100 << 20, f"{peak >> 20} MiB"


@pytest.fixture(scope="module")
def sent() -> Message:
    arrays = {"users": np.arange(200), "loss": np.array(0.25, np.float32), "few": np.ones((2, 3), np.float16)}
    records = {"arrays": pack_arrays(arrays), "metrics": MetricRecord({"loss": 0.1, "all": [1.0, float("inf")]})}
    return message_of(records | {"config": ConfigRecord({"name": "ß", "on": True})})


def with_piece(piece: Any, **more: Any) -> Message:
    return message_of({PIECE: ConfigRecord({PIECE: piece}), **more})


def piece_of(message: Message) -> bytes:
    piece = condense(message).content.config_records[PIECE][PIECE]
    assert isinstance(piece, bytes)
    return piece


def test_a_piece_that_is_cut_short_is_refused(sent: Message) -> None:
    piece = piece_of(sent)
    assert outcome(with_piece(piece)) == laid_out(sent)
    assert [length for length in range(len(piece)) if outcome(with_piece(piece[:length])) is not None] == []


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_piece_is_an_error_or_a_message(sent: Message, data: st.DataObject) -> None:
    """Digests of Flower's objects find accidents; here anything may have been sent on purpose."""
    piece = bytearray(piece_of(sent))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(piece) - 1))
        end = at + data.draw(st.integers(0, 3))
        piece[at:end] = data.draw(st.binary(max_size=4) | st.sampled_from([b"[", b"]", b"{", b"-9", b"1e400", b"null"]))
    outcome(with_piece(bytes(piece)))


def test_a_damaged_stream_never_passes() -> None:
    """What is deflated has a checksum."""
    values = np.repeat(np.arange(400), 10)
    piece = piece_of(message_of({"arrays": pack_arrays({"x": values})}))
    start = len(piece) - len(zlib.compress(values.view(np.uint8).reshape(-1, 8).T.tobytes(), 1))
    expected = outcome(with_piece(piece))
    for at in range(start, len(piece)):
        damaged = bytearray(piece)
        damaged[at] ^= 0x10
        assert outcome(with_piece(bytes(damaged))) in (None, expected)


def crafted(head: object, body: bytes = b"", **more: Any) -> Message:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return with_piece(struct.pack("<I", len(text)) + text + body, **more)


def described(*entry: Any, body: bytes = b"", **more: Any) -> Message:
    """One array: name, type, shape, how, where, bytes."""
    return crafted({"records": {"a": ["a", None]}, "arrays": [["a", *entry]]}, body, **more)


BOMB = zlib.compress(b"\0" * (4 << 20), 9)
FOREIGN = ArrayRecord()
FOREIGN["0"] = pack_arrays({"0": np.ones(3)})["0"]
HOSTILE: dict[str, Message] = {
    "no bytes": with_piece("words"),
    "no description": with_piece(struct.pack("<I", 2**32 - 1)),
    "a list": crafted([]),
    "records in a list": crafted({"records": [], "arrays": []}),
    "records of nothing": crafted({"records": None, "arrays": []}),
    "an unknown kind": crafted({"records": {"a": ["z", {}]}, "arrays": []}),
    "a kind that is a list": crafted({"records": {"a": [[], {}]}, "arrays": []}),
    "values in a list": crafted({"records": {"a": ["m", [1]]}, "arrays": []}),
    "mixed lists": crafted({"records": {"a": ["m", {"loss": [1, 0.5]}]}, "arrays": []}),
    "deep": crafted(b"[" * 100_000),
    "an array of another record": crafted({"records": {}, "arrays": [["a", "x", "f", [0], "plain", "here", 0]]}),
    "an array of a metric record": crafted(
        {"records": {"a": ["m", {}]}, "arrays": [["a", "x", "f", [0], "plain", "here", 0]]}
    ),
    "objects": described("x", "O", [1], "plain", "here", 8, body=b"\0" * 8),
    "a type that is a list": described("x", ["f"], [1], "plain", "here", 4, body=b"\0" * 4),
    "petabytes": described("x", "d", [2**50], "plain", "here", 8, body=b"\0" * 8),
    "petabytes, deflated": described("x", "d", [2**50], "deflate", "here", len(BOMB), body=BOMB),
    "more than there are numbers for": described("x", "d", [2**40, 2**40], "deflate", "here", 9, body=BOMB),
    "gigabytes, deflated": described("x", "d", [2**29], "deflate", "here", len(BOMB), body=BOMB),
    "a negative side": described("x", "d", [-1], "plain", "here", 8, body=b"\0" * 8),
    "an endless side": described("x", "d", [float("inf")], "plain", "here", 8, body=b"\0" * 8),
    "an endless size": described("x", "d", [1], "plain", "here", float("inf"), body=b"\0" * 8),
    "a negative size": described("x", "d", [1], "plain", "here", -8, body=b"\0" * 8),
    "not enough": described("x", "d", [2], "plain", "here", 16, body=b"\0" * 8),
    "larger than described": described("x", "b", [100], "deflate", "here", len(BOMB), body=BOMB),
    "a little larger than described": described(
        "x", "b", [1000], "deflate", "here", 99, body=zlib.compress(b"\0" * 1258, 9)
    ),
    "no stream": described("x", "b", [3], "deflate", "here", 3, body=b"abc"),
    "nothing apart": described("x", "d", [3], "plain", "apart", 24),
    "another shape apart": described("x", "d", [4], "plain", "apart", 24, **{f"{PIECE}-arrays": FOREIGN}),
    "another type apart": described("x", "f", [3], "plain", "apart", 24, **{f"{PIECE}-arrays": FOREIGN}),
    "no stream apart": described("x", "d", [3], "deflate", "apart", 24, **{f"{PIECE}-arrays": FOREIGN}),
    "apart no arrays": described("x", "d", [3], "plain", "apart", 24, **{f"{PIECE}-arrays": MetricRecord()}),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_description_is_one_error(case: str) -> None:
    assert outcome(HOSTILE[case]) is None


def test_all_that_is_deflated_has_one_limit() -> None:
    """Each of four streams of 4 kB takes 4 MiB: a thousand messages' worth from one would be gigabytes."""
    entries = [["a", str(at), "b", [4 << 20], "deflate", "here", len(BOMB)] for at in range(4)]
    message = crafted({"records": {"a": ["a", None]}, "arrays": entries}, 4 * BOMB)
    assert outcome(message, 16 << 20) is not None
    assert outcome(message, (16 << 20) - 1) is None
    backwards = [part for entry in entries for part in (entry, ["a", "-", "b", [0], "plain", "here", -len(BOMB)])]
    message = crafted({"records": {"a": ["a", None]}, "arrays": backwards}, BOMB)
    assert outcome(message) is None, "no bytes are read twice"
