"""Messages in few pieces: a SuperLink handles every object of a message in a request of its own.

Records of numbers and words, and small arrays, become one piece of bytes. A large array stays an object of its own: the
same table for many nodes then crosses to the SuperLink once. What deflates well (rows that nobody touched, lists of
consecutive users) is deflated; trained embeddings do not, and are left alone after a look at a sample.

A piece is a length (4 bytes), a description in JSON, and the arrays' bytes one after the other. Nothing in it is
executed or unpickled, and sizes are checked against what was sent.
"""

from __future__ import annotations

import io
import json
import math
import struct
import zlib
from typing import Any, Final

import numpy as np
import numpy.lib.format as npy
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.message import make_message

from fedem_flwr.errors import FedemError
from fedem_flwr.messages.wire import LazyArray, pack_arrays, unpack_arrays

PIECE: Final = "fedem"  # name of the record, and of its one value
APART: Final = 1 << 19  # bytes of an array from which it is an object of its own
_SMALL = 256  # bytes that are not worth a look
_SAMPLE = 1 << 12  # numbers at the start, in the middle and at the end that are deflated to see whether all should be
_WORTH = 0.7  # of the original size
_LEVEL = 1
_MOST: Final = 8 << 30  # bytes that all arrays may take, where nothing else is said
_HEAD: Final = 1 << 20  # bytes of a description; in memory it is some thirty times as large
_HEADER = 1 << 14  # bytes at the start of an array of numpy's that say what it is; 128 mostly
_DTYPES = frozenset("?bhilqBHILQefd")


def condense(message: Message) -> Message:
    """The same message in few pieces; one without content, or with records of other kinds, is left as it is."""
    if not message.has_content():
        return message
    plain: dict[str, Any] = {}
    kept = RecordDict()
    arrays: list[tuple[str, str, np.ndarray]] = []  # record, name, values
    for name, record in message.content.items():
        named = unpack_arrays(record) if isinstance(record, ArrayRecord) else {}
        if isinstance(record, ArrayRecord) and all(map(_describable, named.values())):
            arrays += [(name, key, values) for key, values in named.items()]
            plain[name] = ["a", None]
        elif isinstance(record, ArrayRecord):
            kept[name] = record
        elif all(_plain(value) for value in record.values()):
            plain[name] = ["m" if isinstance(record, MetricRecord) else "c", dict(record)]
        else:
            kept[name] = record
    described, parts, apart = [], [], {}
    for place, (owner, name, values) in enumerate(arrays):
        content, how = _deflated(values)
        where = "apart" if len(content) >= APART else "here"
        described.append([owner, name, values.dtype.char, list(values.shape), how, where, len(content)])
        if where == "here":
            parts.append(bytes(content))
        elif how == "plain":
            apart[str(place)] = values
        else:
            apart[str(place)] = np.frombuffer(content, np.uint8)
    head = json.dumps({"records": plain, "arrays": described}, separators=(",", ":")).encode()
    kept[PIECE] = ConfigRecord({PIECE: b"".join([struct.pack("<I", len(head)), head, *parts])})
    if apart:
        kept[f"{PIECE}-arrays"] = pack_arrays(apart)
    return make_message(message.metadata, kept)


def expand(message: Message, most: int = _MOST) -> Message:
    """The message that was condensed; one that was not is left as it is.

    Args:
        most: bytes that its arrays may take, all of them together. They are counted before any is made.

    Raises:
        FedemError: the pieces do not fit together, or say that they are larger.
    """
    if not message.has_content():
        return message
    try:
        _count(message.content, most)
        if PIECE not in message.content.config_records:
            return message
        return make_message(message.metadata, _expanded(message.content, most))
    except Exception as error:  # foreign bytes fail to parse in any way
        raise FedemError(f"a message whose pieces do not fit: {type(error).__name__}: {error}") from None


def _count(content: RecordDict, most: int) -> None:
    """Of arrays that are objects of their own: numpy makes what a header says before it reads what is there.

    Raises:
        ValueError: one says that it is larger than what there is of it, or they are more than `most`.
    """
    left = most
    for array in (one for record in content.array_records.values() for one in record.values()):
        data = array.data
        stream = io.BytesIO(data[:_HEADER])
        read = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(stream)
        size = math.prod(shape) * dtype.itemsize
        left -= size
        if size > len(data) or left < 0:
            raise ValueError(f"shape {shape} takes more than there is, or than is allowed")


def _expanded(content: RecordDict, most: int) -> RecordDict:
    piece = content.config_records[PIECE][PIECE]
    if not isinstance(piece, bytes):
        raise TypeError("no bytes")
    (length,) = struct.unpack_from("<I", piece)
    if length > _HEAD:
        raise ValueError(f"a description of {length:,} bytes")
    head = json.loads(piece[4 : 4 + length].decode())
    kinds: dict[str, Any] = {"a": lambda _: ArrayRecord(), "m": MetricRecord, "c": ConfigRecord}
    out = RecordDict()
    for name, record in content.items():
        if name not in (PIECE, f"{PIECE}-arrays"):
            out[name] = record
    for name, (kind, values) in head["records"].items():
        out[str(name)] = kinds[kind](values)
    apart = unpack_arrays(content.array_records[f"{PIECE}-arrays"]) if f"{PIECE}-arrays" in content else {}
    place = 4 + length
    if sum(map(_declared, head["arrays"])) > most:
        raise ValueError("its arrays take more than is allowed")
    for index, (record, name, char, shape, how, where, size) in enumerate(head["arrays"]):
        if where == "here":
            raw: Any = memoryview(piece)[place : place + int(size)]
            place += len(raw)
        else:
            raw = apart[str(index)]
        values = _array(raw, char, shape, how)
        out.array_records[record][str(name)] = LazyArray(values)
    return out


def _declared(described: list[Any]) -> int:
    """Bytes that an array will take, by its description."""
    char, shape = described[2], [int(side) for side in described[3]]
    if char not in _DTYPES:
        raise ValueError(f"no type of numbers: {char!r}")
    if min(shape, default=0) < 0:
        raise ValueError(f"impossible shape {shape}")
    size: int = math.prod(shape) * np.dtype(char).itemsize
    return size


def _array(raw: Any, char: str, shape: list[int], how: str) -> np.ndarray:
    """Values of the described type and shape."""
    dtype, shape = np.dtype(char), [int(side) for side in shape]
    if how == "deflate":
        size = math.prod(shape) * dtype.itemsize
        stream = zlib.decompressobj()
        values = stream.decompress(bytes(raw), size + 1)  # up to the end, where the checksum stands
        if len(values) != size or not stream.eof:
            raise ValueError("does not inflate to its size")
        shuffled = np.frombuffer(values, np.uint8).reshape(dtype.itemsize, -1)
        return np.ascontiguousarray(shuffled.T).reshape(-1).view(dtype).reshape(shape)
    if isinstance(raw, np.ndarray):
        if raw.dtype != dtype or raw.shape != tuple(shape):
            raise ValueError("another type or shape than described")
        return raw
    return np.frombuffer(raw, dtype).reshape(shape)


def _describable(values: np.ndarray) -> bool:
    """Whether a description says all of its type: it has a letter for it, and no word on the order of bytes."""
    return values.dtype.char in _DTYPES and values.dtype.isnative


def _deflated(values: np.ndarray) -> tuple[Any, str]:
    """An array's bytes, deflated where that is worth it: bytes of equal rank beside each other, then zlib."""
    flat = np.ascontiguousarray(values).reshape(-1)
    raw = memoryview(flat.view(np.uint8).data) if flat.size else memoryview(b"")
    if len(raw) < _SMALL:
        return raw, "plain"
    if flat.size > 3 * _SAMPLE:
        middle = flat.size // 2
        pieces = (flat[:_SAMPLE], flat[middle : middle + _SAMPLE], flat[-_SAMPLE:])
        sample = _shuffled(np.concatenate(pieces))
        if len(zlib.compress(sample, _LEVEL)) > _WORTH * len(sample):
            return raw, "plain"
    packed = zlib.compress(_shuffled(flat), _LEVEL)
    return (packed, "deflate") if len(packed) < _WORTH * len(raw) else (raw, "plain")


def _shuffled(values: np.ndarray) -> bytes:
    flat = np.ascontiguousarray(values).reshape(-1)
    return flat.view(np.uint8).reshape(-1, flat.itemsize).T.tobytes()


def _plain(value: object) -> bool:
    """Whether JSON gives it back as it was."""
    if isinstance(value, list):
        return all(_plain(part) for part in value) and bool(value)
    return isinstance(value, bool | int | float | str)
