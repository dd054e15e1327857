"""Messages: seconds and bytes of a client's upload, in one process and in the pieces that cross a SuperLink."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from flwr.app import Array, ArrayRecord, Message, Metadata, RecordDict
from flwr.app.message import make_message

from fedem_flwr.bench.rows import Row
from fedem_flwr.bench.suite import Benchmark, Setting
from fedem_flwr.bench.timing import Side
from fedem_flwr.messages.wire import pack_arrays, payload_bytes, unpack_arrays
from fedem_flwr.network.condense import condense, expand
from fedem_flwr.network.parcels import Incoming, deliver, tree_of

_ITEMS, _DIM, _TOUCHED = 1600, 16, 0.2
_MOST = 1 << 30

Pack = Callable[[dict[str, np.ndarray]], ArrayRecord]


def upload() -> dict[str, np.ndarray]:
    """What a node of `fedmf` sends: sums of trained rows (m, d), 0 where nobody trained, and counts (m,)."""
    draw = np.random.default_rng(0)
    touched = draw.random(_ITEMS) < _TOUCHED
    rows = np.where(touched[:, None], draw.normal(size=(_ITEMS, _DIM)), 0).astype(np.float32)
    return {"rows": rows, "counts": np.where(touched, draw.integers(1, 9, _ITEMS), 0)}


def packed_plainly(named: dict[str, np.ndarray]) -> ArrayRecord:
    """As Flower packs arrays: each becomes bytes at once."""
    return ArrayRecord({name: Array(values) for name, values in named.items()})


def message_of(record: ArrayRecord) -> Message:
    """A message with an upload."""
    return make_message(Metadata(1, "", 1, 2, "", "1", 1.0, 60.0, "train"), RecordDict({"arrays": record}))


def crossing(message: Message) -> tuple[Message, int]:
    """Take a message apart, store its pieces as a SuperLink does, put it together again; and the bytes that crossed."""
    stored: dict[str, bytes] = {}
    _, tree = tree_of(message)
    incoming = Incoming(tree, _MOST)

    def announce() -> tuple[set[str], Callable[[str, bytes], None]]:
        return set(_ids(tree)), stored.__setitem__

    sent = deliver(message, announce)
    while not incoming.fetch(stored.__getitem__):
        pass
    return incoming.message(), sent


def _ids(tree: object) -> list[str]:
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

    return [part.object_id for part in iterate_object_tree(tree)]  # type: ignore[arg-type]


def _in_one_process(benchmark: Benchmark, setting: Setting) -> Row:
    named = upload()

    def by(pack: Pack) -> Callable[[], object]:
        return lambda: unpack_arrays(message_of(pack(named)).content.array_records["arrays"])

    return benchmark.ratio(
        setting,
        Side("lazy arrays", by(pack_arrays), bytes=payload_bytes(pack_arrays(named))),
        Side("Flower's arrays", by(packed_plainly), bytes=payload_bytes(packed_plainly(named))),
        _words(),
    )


def _over_a_network(benchmark: Benchmark, setting: Setting) -> Row:
    named = upload()

    def ours() -> tuple[Message, int]:
        there, sent = crossing(condense(message_of(pack_arrays(named))))
        return expand(there), sent

    def plain() -> tuple[Message, int]:
        return crossing(message_of(packed_plainly(named)))

    return benchmark.ratio(
        setting,
        Side("condensed", ours, bytes=ours()[1]),
        Side("Flower's objects", plain, bytes=plain()[1]),
        f"{_words()}; hashed, taken apart and put together, no sockets",
    )


def _words() -> str:
    return f"{_ITEMS} rows of {_DIM}, {_TOUCHED:.0%} of them trained, and counts"


MESSAGES = (
    Benchmark("wire/process", "an upload inside a process: lazy arrays against Flower's", _in_one_process),
    Benchmark("wire/network", "an upload as it crosses a network: condensed against Flower's objects", _over_a_network),
)
