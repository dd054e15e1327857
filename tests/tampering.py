"""Replies that are spoiled on their way to the server, and what a run must make of them: as if nothing had come."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord
from worlds import carry_out_watched, config_of, figures, largest_difference, node_of

from fedem_flwr.config import Config
from fedem_flwr.messages.wire import pack_arrays, unpack_arrays

BAD, EACH = 2, 10  # the third of four nodes, users 20 to 29
Named = dict[str, np.ndarray]
Fault = tuple[Callable[[Named], Named], str]  # what is done to an upload, and what the server says of it


def spoiled(change: Callable[[Named], Named]) -> Callable[[Message, Message], list[Message]]:
    """Change the arrays of an upload."""

    def tamper(reply: Message, message: Message) -> list[Message]:
        arrays = {name: np.array(values) for name, values in unpack_arrays(reply.content["arrays"]).items()}
        reply.content["arrays"] = pack_arrays(change(arrays))
        return [reply]

    return tamper


def filled(value: float) -> Callable[[Named], Named]:
    def change(arrays: Named) -> Named:
        name = next(name for name in arrays if name != "users")
        arrays[name].reshape(-1)[7] = value
        return arrays

    return change


def each_array(convert: Callable[[np.ndarray], np.ndarray]) -> Callable[[Named], Named]:
    return lambda arrays: {name: values if name == "users" else convert(values) for name, values in arrays.items()}


def without_last(arrays: Named) -> Named:
    del arrays[list(arrays)[-1]]
    return arrays


def junk(reply: Message, message: Message) -> list[Message]:
    record = ArrayRecord()
    for name, values in unpack_arrays(reply.content["arrays"]).items():
        record[name] = Array(str(values.dtype), values.shape, "numpy.ndarray", b"no array at all")
    reply.content["arrays"] = record
    return [reply]


def hostile(data: bytes) -> Callable[[Message, Message], list[Message]]:
    """Replace the bytes of every array."""

    def tamper(reply: Message, message: Message) -> list[Message]:
        record = ArrayRecord()
        for name in reply.content["arrays"]:
            record[name] = Array("no type", (-3,), "numpy.ndarray", data)
        reply.content["arrays"] = record
        return [reply]

    return tamper


def saved(save: Callable[[Any], None]) -> bytes:
    stream = io.BytesIO()
    save(stream)
    return stream.getvalue()


HUGE = saved(
    lambda s: np.lib.format.write_array_header_1_0(s, {"descr": "<f8", "fortran_order": False, "shape": (2**60,)})
)


def without(record: str) -> Callable[[Message, Message], list[Message]]:
    def tamper(reply: Message, message: Message) -> list[Message]:
        del reply.content[record]
        return [reply]

    return tamper


def nan_metric(reply: Message, message: Message) -> list[Message]:
    reply.content["metrics"] = MetricRecord({**reply.content["metrics"], "loss-total": float("nan")})
    return [reply]


FAULTS: dict[str, tuple[Callable[[Message, Message], list[Message]], str]] = {
    "nan": (spoiled(filled(float("nan"))), "is not finite"),
    "inf": (spoiled(filled(float("-inf"))), "is not finite"),
    "huge": (spoiled(filled(1e20)), r"norm \d.*e\+(19|20), more than (930|1.31e\+03)"),
    "shape": (spoiled(each_array(lambda x: x[..., :-1])), r"has shape \(.*\), not \("),
    "one axis less": (spoiled(each_array(lambda x: x.reshape(-1))), r"has shape \(.*\), not \("),
    "type": (spoiled(each_array(lambda x: x.astype(np.float64))), "has type float64, not float32"),
    "missing": (spoiled(without_last), "the upload lacks 'items(-weight)?'"),
    "nothing": (spoiled(lambda _: {}), "the upload lacks"),
    "junk": (junk, "holds no readable arrays"),
    "broken archive": (hostile(b"PK\x03\x04 and no more"), "holds no readable arrays"),
    "archive": (hostile(saved(lambda s: np.savez(s, x=np.ones(3)))), "holds no readable arrays"),
    "larger than the memory": (hostile(HUGE), "holds no readable arrays"),
    "no arrays": (without("arrays"), "holds no readable arrays"),
    "no metrics": (without("metrics"), "a reply without metrics"),
    "metric": (nan_metric, "a metric that is not finite"),
    "error": (lambda r, m: [Message(Error(2, "RuntimeError: out\nof memory"), reply_to=m)], "out of memory"),
}
ABSENT = "no reply within the round's time"


def in_training(tamper: Callable[[Message, Message], Iterable[Message]], *nodes: int) -> Any:
    """Tamper with the replies of some nodes, from the second round on."""

    def tampered(reply: Message, message: Message) -> Iterable[Message]:
        meant = message.metadata.message_type == "train" and message.content["config"]["server-round"] != 1
        return tamper(reply, message) if meant and node_of(reply) in nodes else [reply]

    return tampered


def with_fault(path: Path, name: str, /, tamper: Any, *nodes: int, **sections: Any) -> Any:
    config = config_of(name, **({"run": {"users_per_node": EACH}} | sections))
    return carry_out_watched(path, config, in_training(tamper, *nodes))[0]


def put(name: str, at: int, value: float) -> Callable[[Named], Named]:
    def change(arrays: Named) -> Named:
        arrays[name].reshape(-1)[at] = value
        return arrays

    return change


def misbehaving(faults: Sequence[Fault], first: int) -> Any:
    """One node's uploads are bad in each of the rounds from `first` on, each in another way."""

    def tamper(reply: Message, message: Message) -> list[Message]:
        round_ = int(message.metadata.group_id or 0)
        if message.metadata.message_type == "train" and node_of(reply) == BAD and round_ >= first:
            return spoiled(faults[round_ - first][0])(reply, message)
        return [reply]

    return tamper


def assert_refused_and_as_if_silent(path: Path, config: Config, faults: Sequence[Fault], first: int) -> None:
    run, _ = carry_out_watched(path / "bad", config, misbehaving(faults, first))
    assert [(f["round"], f["node"]) for f in run.outcome.failures] == [
        (first + number, "node of users 20–29") for number in range(len(faults))
    ]
    for failure, (_, reason) in zip(run.outcome.failures, faults, strict=True):
        assert re.search(reason, failure["reason"]) and "\n" not in failure["reason"], failure

    def silent(reply: Message, message: Message) -> list[Message]:
        late = message.metadata.message_type == "train" and int(message.metadata.group_id or 0) >= first
        return [] if late and node_of(reply) == BAD else [reply]

    absent, _ = carry_out_watched(path / "silent", config, silent)
    assert largest_difference(run.server, absent.server) == 0 and len(run.lines) == config.run.rounds, "it goes on"
    assert [figures(line) for line in run.lines] == [figures(line) for line in absent.lines]
