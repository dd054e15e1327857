"""What both sides of a connection to a SuperLink share: its address, and patience with it.

With `parcels.py`, `control.py`, `taking.py`, `node_link.py` and `server_link.py` this is the only place that uses
Flower's protocol clients directly. Flower's own loops around them look for messages every three seconds and start a
process for each; see `node.py` for ours.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.text import one_line

T = TypeVar("T")

FIRST_WAIT, LONGEST_WAIT = 0.1, 2.0  # seconds between attempts to reach a SuperLink
CALL_SECONDS = 12.0  # without a byte after which a call is made again: of a connection that was cut, say
# A proxy answers for a SuperLink that is away, or slows us down; 500: of a database that somebody's request has locked.
_GONE = frozenset({429, 500, 502, 503, 504})
_ANSWER = 64 << 20  # bytes of an answer; chunks of arrays have 5 MiB, and a piece of small arrays a few more
_REFUSED = frozenset({401, 403})
_NO_CALL = 404
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


class Refused(FedemError):
    """The SuperLink is there and does not let us: trying again would not change its mind."""


class Missing(FedemError):
    """The SuperLink, or the proxy before it, has no such call."""


class Unreachable(FedemError):
    """Nobody has answered at the address for as long as we wait."""


class TooLarge(FedemError):
    """There are more bytes than we take."""


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
        host, _, port = self.place.rpartition(":")
        number = int(port) if port.isascii() and port.isdigit() and len(port) < 6 else 0
        if not (0 < number < 65536 and _is_host(host)):
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
        """One of Flower's protocol clients for this address; answers that are compressed, or huge, it refuses.

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
        made: Any = kind(url, interceptors=interceptors, verify=verify, timeout=CALL_SECONDS, retry_invoker=invoker)
        _bound(made._client)
        found: T = made
        return found

    def listening(self) -> bool:
        """Whether anybody accepts connections there now."""
        try:
            with socket.create_connection((self.host, self.port), timeout=2):
                return True
        except OSError:
            return False


def _is_host(host: str) -> bool:
    """Whether it is a name, or an address (IPv6 in brackets, else its last part would be taken for a port)."""
    inside = host[1:-1] if host.startswith("[") and host.endswith("]") else ""
    try:
        return ipaddress.ip_address(inside or host).version == (6 if inside else 4)
    except ValueError:
        return bool(_HOST.fullmatch(host)) and not host.rpartition(".")[2].isdigit()


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
                if status == _NO_CALL:
                    raise Missing(f"the SuperLink at {self._address.place} fails: {told(error)}") from None
                if status not in _GONE or (status == 500 and self._over(began - wait)):
                    raise FedemError(f"the SuperLink at {self._address.place} fails: {told(error)}") from None
                why = f"status {status}"
            except httpx.TransportError as error:
                why = self._why(error)
            if self._over(began - wait):
                raise Unreachable(
                    f"no SuperLink answers at {self._address.place} ({why}); {self._hint or 'is it running?'}"
                ) from None
            self._stopped.wait(wait)
            wait = min(2 * wait, LONGEST_WAIT)

    def _over(self, began: float) -> bool:
        return self._stopped.is_set() or time.monotonic() - began > self._seconds

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


class _Bounded(httpx.SyncByteStream):
    """An answer's bytes, no more of them than are taken."""

    def __init__(self, stream: httpx.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        left = _ANSWER
        for part in self._stream:
            left -= len(part)
            if left < 0:
                raise TooLarge(f"an answer of more than {_ANSWER:,} bytes: refused")
            yield part

    def close(self) -> None:
        """Of what is inside."""
        self._stream.close()


def _bound(client: httpx.Client) -> None:
    """Let a client take answers as they are, and no huge ones: a megabyte can inflate to a gigabyte."""

    def look(response: httpx.Response) -> None:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise TooLarge("an answer that is compressed: refused")
        assert isinstance(response.stream, httpx.SyncByteStream)
        response.stream = _Bounded(response.stream)

    client.headers["accept-encoding"] = "identity"
    client.follow_redirects = False  # what is signed is for this address
    client.event_hooks = {"response": [look]}


def told(error: httpx.HTTPStatusError) -> str:
    """What a SuperLink says of a failed call, in one line."""
    from flwr.supercore.error import FlowerError

    known = FlowerError.from_json(error.response.text)
    words = (known.message or "") if known else error.response.text
    return one_line(words, 200) or f"status {error.response.status_code}"


def already_known(error: FedemError) -> bool:
    """Whether a node could not be registered because the SuperLink has its key."""
    return "already in use" in str(error).lower()


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
