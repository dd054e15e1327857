"""Whole messages over a SuperLink, which passes on the objects that they consist of one by one."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_body,
    get_object_children_ids_from_object_content,
    get_object_id,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    ObjectUnavailableError,
    inflate_object_from_contents,
    push_objects,
)

from fedem_flwr.errors import FedemError
from fedem_flwr.network.link import TooLarge

ANNOUNCEMENTS = 8  # of one message
STALLED = 20.0  # seconds without another piece after which a message counts as broken off
_PIECES = 256  # of a message, and one more for each MiB that it may have; ours are a handful
_SLICE = 2.0  # seconds for one message in one look
_FIRST_LOOK, _LONGEST_LOOK = 0.01, 0.5  # seconds between looks for a piece that is still on its way


class BrokenOff(FedemError):
    """A message of which the rest does not come: its sender died, or its announcement was replaced."""


def pieces_of(most_bytes: int) -> int:
    """In how many pieces a message of so many bytes may come."""
    return _PIECES + (most_bytes >> 20)


@dataclass
class Allowance:
    """What may still be fetched from one sender: bytes, and pieces.

    Raises:
        TooLarge: by `take`; there was more.
    """

    bytes: int
    pieces: int

    @classmethod
    def of(cls, most_bytes: int, messages: int) -> Allowance:
        """For so many messages of so many bytes at most."""
        return cls(messages * most_bytes, messages * pieces_of(most_bytes))

    def take(self, bytes_: int, pieces: int) -> None:
        """Count what is fetched."""
        self.bytes, self.pieces = self.bytes - bytes_, self.pieces - pieces
        if self.bytes < 0 or self.pieces < 0:
            raise TooLarge("more messages, or larger ones, than one round needs: refused")


def tree_of(message: Message) -> tuple[Message, ObjectTree]:
    """A message numbered by its content, and the tree of its objects."""
    vars(message.metadata)["_message_id"] = message.object_id
    return remove_content_from_message(message), get_object_tree(message)


def deliver(message: Message, announce: Callable[[], tuple[set[str], Callable[[str, bytes], None]]]) -> int:
    """Send those objects of a message that the other side lacks; returns the bytes that crossed.

    A SuperLink takes objects in the session of the last announcement. Where another came in between (a call that was
    repeated as its answer got lost, or a replay by somebody else) what it refuses is announced and sent once more.

    Args:
        announce: says what is coming; returns what is lacking, and what sends an object.

    Raises:
        FedemError: it is refused time and again.
    """
    sent = 0
    for _ in range(ANNOUNCEMENTS):
        wanted, push = announce()
        refused: list[str] = []

        def one(object_id: str, content: bytes, push: Any = push, refused: list[str] = refused) -> None:
            nonlocal sent
            try:
                push(object_id, content)
                sent += len(content)
            except ObjectPushError:
                refused.append(object_id)

        with no_object_id_recompute():
            push_objects(get_all_nested_objects(message), one, object_ids_to_push=wanted)
        if not refused:
            return sent
    raise FedemError("the SuperLink refuses parts of a message")


class Incoming:
    """A message on its way: its objects, as far as they have come.

    A SuperLink announces a message before its sender has delivered all of it.

    Args:
        tree: what it consists of. most_bytes: of the largest message taken.
        allowance: of its sender; None: this message counts alone.
    """

    def __init__(self, tree: ObjectTree, most_bytes: int, allowance: Allowance | None = None) -> None:
        self._tree, self._most, self._allowance = tree, most_bytes, allowance or Allowance.of(most_bytes, 1)
        self._pieces = pieces_of(most_bytes)
        announced = [part.object_id for part in islice(iterate_object_tree(tree), self._pieces + 1)]  # no more is read
        self._excessive = len(announced) > self._pieces
        self._missing = deque(dict.fromkeys(announced))
        self._contents: dict[str, bytes] = {}
        self._progress = time.monotonic()
        self.size = 0  # bytes so far
        self.records: dict[str, str] = {}  # of the message's content: name and hash, once it is put together

    @property
    def object_id(self) -> str:
        """Names the message to the SuperLink."""
        return str(self._tree.object_id)

    def fetch(self, pull: Callable[[str], bytes]) -> bool:
        """Take what is there now, without waiting, and not for long; returns whether that is all of it.

        Raises:
            TooLarge: there is more than `most_bytes`, or in too many pieces, or the sender has sent too much already;
                nothing further is fetched.
            BrokenOff: its sender does not go on delivering. FedemError: it cannot be fetched, or an object is not what
                its name says, which is its hash.
        """
        if self._excessive:
            raise TooLarge(f"a message in more than {self._pieces:,} pieces: refused")
        began = time.monotonic()
        while self._missing:
            if time.monotonic() - began > _SLICE:
                return False  # others are waiting, too
            try:
                content = pull(self._missing[0])
            except ObjectUnavailableError:
                if time.monotonic() - self._progress > STALLED:
                    raise BrokenOff("a message of which the rest does not come") from None
                return False
            except ObjectPullError as error:
                raise FedemError(f"a message that cannot be fetched: {error}") from None
            if get_object_id(content) != self._missing[0]:
                raise FedemError("a message with an object that is not what was announced: refused")
            self._contents[self._missing.popleft()] = content
            self.size, self._progress = self.size + len(content), time.monotonic()
            if self.size > self._most:
                raise TooLarge(f"a message of more than {self._most:,} bytes: refused")
            self._allowance.take(len(content), 1)
        return True

    def message(self) -> Message:
        """Put it together, once all of it is there.

        Raises:
            FedemError: its objects are no message.
        """
        try:
            self.records = _records(self.object_id, self._contents)
            message = inflate_object_from_contents(self.object_id, self._contents)
        except Exception as error:  # foreign bytes fail to parse in any way
            raise FedemError(f"a message that cannot be read: {type(error).__name__}: {error}") from None
        if not isinstance(message, Message):
            raise FedemError(f"a {type(message).__name__} where a message should be")
        vars(message.metadata)["_message_id"] = self.object_id
        return message


def _records(message_id: str, contents: dict[str, bytes]) -> dict[str, str]:
    """The hashes of the records of a message's content, by name."""
    children = get_object_children_ids_from_object_content(contents[message_id])
    return dict(json.loads(get_object_body(contents[children[0]], RecordDict))) if children else {}


def await_message(incoming: Incoming, pull: Callable[[str], bytes], stopped: threading.Event) -> Message:
    """Wait for all of a message, for somebody who has nothing else to do.

    Raises:
        FedemError: see `Incoming`; also if `stopped` first.
    """
    wait, size = _FIRST_LOOK, 0
    while not incoming.fetch(pull):
        wait = _FIRST_LOOK if incoming.size > size else min(2 * wait, _LONGEST_LOOK)
        size = incoming.size
        if stopped.wait(wait):
            raise BrokenOff("stopped before all of a message had come")
    return incoming.message()
