"""What both sides of a connection to a SuperLink share: its address, patience with it, and whole messages over it.

With `node_link.py` and `server_link.py` this is the only place that uses Flower's protocol clients directly. Flower's
own loops around them look for messages every three seconds and start a process for each; see `node.py` for ours.
"""

from __future__ import annotations

import ipaddress
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
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

from fedem_flwr.errors import FedemError, InputError

T = TypeVar("T")

FIRST_WAIT, LONGEST_WAIT = 0.1, 2.0  # seconds between attempts to reach a SuperLink
CALL_SECONDS = 12.0  # without a byte after which a call is made again: of a connection that was cut, say
ANNOUNCEMENTS = 8  # of one message
STALLED = 20.0  # seconds without another piece after which a message counts as broken off
_FIRST_LOOK, _LONGEST_LOOK = 0.01, 0.5  # seconds between looks for a piece that is still on its way
_GONE = frozenset({502, 503, 504})  # a proxy answers for a SuperLink that is away
_REFUSED = frozenset({401, 403})


class Refused(FedemError):
    """The SuperLink is there and does not let us: trying again would not change its mind."""


class Unreachable(FedemError):
    """Nobody has answered at the address for as long as we wait."""


class BrokenOff(FedemError):
    """A message of which the rest does not come: its sender died, or its announcement was replaced."""


class TooLarge(FedemError):
    """A message holds more bytes than its receiver takes."""


@dataclass(frozen=True)
class Address:
    """Where a SuperLink is, and how it proves that it is the one.

    Attributes:
        place: ``host:port``.
        ca: PEM of the authority that signed its certificate; None speaks plain HTTP.
    """

    place: str
    ca: bytes | None = None

    def __post_init__(self) -> None:
        host, colon, port = self.place.rpartition(":")
        if not (colon and host and port.isdigit() and 0 < int(port) < 65536):
            raise InputError(
                f"'{self.place}' is no address of a SuperLink: write host:port, for instance 10.0.0.5:8000"
            )

    @property
    def host(self) -> str:
        """Name or address, without brackets."""
        return self.place.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """TCP port."""
        return int(self.place.rpartition(":")[2])

    @property
    def loopback(self) -> bool:
        """Whether traffic stays on this machine."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def client(self, kind: Callable[..., T], interceptors: list[Any], invoker: Patience | None) -> T:
        """One of Flower's protocol clients for this address.

        Raises:
            InputError: the authority's certificate is none.
        """
        verify: ssl.SSLContext | bool = False
        if self.ca is not None:
            try:
                verify = ssl.create_default_context(cadata=self.ca.decode("ascii"))
            except (ssl.SSLError, UnicodeDecodeError, ValueError):
                raise InputError("the CA certificate is damaged: make it again with `fedem deploy certs`") from None
        url = f"{'https' if self.ca else 'http'}://{self.place}"
        return kind(url, interceptors=interceptors, verify=verify, timeout=CALL_SECONDS, retry_invoker=invoker)

    def listening(self) -> bool:
        """Whether anybody accepts connections there now."""
        try:
            with socket.create_connection((self.host, self.port), timeout=2):
                return True
        except OSError:
            return False


class Patience:
    """Calls a SuperLink again while it cannot be reached; the form is that of Flower's ``RetryInvoker``.

    Args:
        address: for messages.
        seconds: how long a single call is tried.
        stopped: ends waiting early.
        hint: what to do when the SuperLink stays away.
    """

    def __init__(self, address: Address, seconds: float, stopped: threading.Event, hint: str = "") -> None:
        self._address, self._seconds, self._stopped, self._hint = address, seconds, stopped, hint

    def invoke(self, target: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call until there is an answer.

        Raises:
            Unreachable: none came in time. Refused: the SuperLink does not admit us. InputError: TLS fails.
        """
        began, wait = time.monotonic(), FIRST_WAIT
        while True:
            try:
                return target(*args, **kwargs)
            except httpx.HTTPStatusError as error:
                status = error.response.status_code
                if status in _REFUSED:
                    raise Refused(f"the SuperLink at {self._address.place} refuses us: {told(error)}") from None
                if status not in _GONE:
                    raise FedemError(f"the SuperLink at {self._address.place} fails: {told(error)}") from None
                why = f"status {status}"
            except httpx.TransportError as error:
                why = self._why(error)
            if self._stopped.is_set() or time.monotonic() - began + wait > self._seconds:
                raise Unreachable(
                    f"no SuperLink answers at {self._address.place} ({why}); {self._hint or 'is it running?'}"
                ) from None
            self._stopped.wait(wait)
            wait = min(2 * wait, LONGEST_WAIT)

    def _why(self, error: httpx.TransportError) -> str:
        """The reason in words; a failed handshake is final."""
        text = " ".join(str(error).split()) or type(error).__name__
        low = text.lower()
        if "certificate verify failed" in low or "certificate_verify" in low:
            raise InputError(
                f"the certificate of {self._address.place} is not signed by the given CA, or not for this name: use "
                f"the ca.crt of this deployment, and list the name in `fedem deploy certs --host` ({text})"
            ) from None
        if "wrong version number" in low or "record layer failure" in low or "wrong_version" in low:
            raise InputError(f"{self._address.place} speaks no TLS: add --insecure if that is meant") from None
        if self._address.ca is None and ("disconnected without" in low or "connection reset" in low):
            return f"{text}; does it want TLS? give --certs"
        return text


def told(error: httpx.HTTPStatusError) -> str:
    """What a SuperLink says of a failed call, in one line."""
    from flwr.supercore.error import FlowerError

    known = FlowerError.from_json(error.response.text)
    words = (known.message or "") if known else error.response.text
    return " ".join(words.split())[:200] or f"status {error.response.status_code}"


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


def pull_message(
    tree: ObjectTree, pull: Callable[[str], bytes], most_bytes: int, *, deadline: float = math.inf
) -> tuple[Message, int]:
    """Fetch a message's objects and put it together; returns its bytes too.

    A SuperLink announces a message before its sender has delivered all of it.

    Args:
        deadline: monotonic; a message that is not there by then is given up.

    Raises:
        TooLarge: there is more than `most_bytes`; nothing further is fetched.
        BrokenOff: its sender does not go on delivering. FedemError: its objects are no message.
    """
    contents: dict[str, bytes] = {}
    total, progress, wait = 0, time.monotonic(), _FIRST_LOOK
    for object_id in dict.fromkeys(part.object_id for part in iterate_object_tree(tree)):
        while object_id not in contents:
            try:
                contents[object_id] = pull(object_id)
            except ObjectUnavailableError:
                now = time.monotonic()
                if now - progress > STALLED or now > deadline:
                    raise BrokenOff("a message of which the rest does not come") from None
                time.sleep(wait)
                wait = min(2 * wait, _LONGEST_LOOK)
            except ObjectPullError as error:
                raise FedemError(f"a message that cannot be fetched: {error}") from None
        total, progress, wait = total + len(contents[object_id]), time.monotonic(), _FIRST_LOOK
        if total > most_bytes:
            raise TooLarge(f"a message of more than {most_bytes:,} bytes: refused")
    try:
        message = inflate_object_from_contents(tree.object_id, contents)
    except Exception as error:  # foreign bytes fail to parse in any way
        raise FedemError(f"a message that cannot be read: {type(error).__name__}: {error}") from None
    if not isinstance(message, Message):
        raise FedemError(f"a {type(message).__name__} where a message should be")
    vars(message.metadata)["_message_id"] = tree.object_id
    return message, total


def read_secret(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        InputError: it cannot be read, or is empty.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    if not content:
        raise InputError(f"{path} is empty: make it again with `fedem deploy certs`")
    return content


def quiet_http() -> None:
    """httpx logs every request at INFO, Flower every retry."""
    import logging

    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
