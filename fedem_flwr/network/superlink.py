"""Flower's SuperLink with limits of its own: what nobody needs is refused before it is in memory.

    python -m fedem_flwr.network.superlink ARGUMENTS        those of flower-superlink

It is the same program, started in the same way; between it and its HTTP server stands `BodyLimit`. What a proxy does
better (rates, handshakes that are not finished, addresses) is in `deploy/nginx`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fedem_flwr.nodes.machine import limit_memory, memory_here, raise_descriptors

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OBJECT = 16 << 20  # bytes of a body: objects are chunks of 5 MiB and pieces of a few; apps have 10 MB at the most
NODE = 16 << 10  # of any other that nodes send: 230 pieces can be announced in it, a gigabyte in chunks
AT_ONCE = 512 << 20  # of all bodies together
SECONDS = 60.0  # for one body
_FULL, _TOO_LARGE, _TOO_SLOW = 503, 413, 408


class BodyLimit:
    """Reads a request's body, as far as it may go, and hands it on whole.

    Args:
        app: the program. at_once: bytes of all bodies that are held together. seconds: for one body.
    """

    def __init__(self, app: App, at_once: int = AT_ONCE, seconds: float = SECONDS) -> None:
        self._app, self._left, self._seconds = app, at_once, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it: 413 too large, 408 too slow, 503 too many at once."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = bytearray()
        try:
            async with asyncio.timeout(self._seconds):
                refusal = await self._read(scope, receive, body)
        except TimeoutError:
            refusal = _TOO_SLOW
        try:
            if refusal:
                await send({"type": "http.response.start", "status": refusal, "headers": [(b"connection", b"close")]})
                await send({"type": "http.response.body"})
            elif refusal is not None:
                await self._app(scope, _whole(bytes(body), receive), send)
        finally:
            self._left += len(body)

    async def _read(self, scope: Scope, receive: Receive, body: bytearray) -> int | None:
        """Take in a body; returns the status with which it is refused, 0: none, or None where the sender has left."""
        most = limit_of(scope["path"])
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not declared.isdigit() or int(declared) > most:
            return _TOO_LARGE
        while True:
            event = await receive()
            if event["type"] != "http.request":
                return None
            part = event.get("body", b"")
            if len(body) + len(part) > most:
                return _TOO_LARGE
            if len(part) > self._left:
                return _FULL
            body += part
            self._left -= len(part)
            if not event.get("more_body"):
                return 0


def limit_of(path: str) -> int:
    """Bytes of the largest body that a path takes."""
    return NODE if path.startswith("/v1/fleet/") and path != "/v1/fleet/push-object" else OBJECT


def _whole(body: bytes, receive: Receive) -> Receive:
    """What the program hears: all of the body, then whatever comes."""
    told = False

    async def again() -> MutableMapping[str, Any]:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def main() -> None:
    """Flower's program, behind `BodyLimit`, with as many descriptors as it may have and half of the memory."""
    import uvicorn
    from flwr.superlink.cli import flower_superlink

    descriptors = raise_descriptors()
    limit_memory(memory_here() // 2)
    run = uvicorn.run

    def limited(app: App, **settings: Any) -> None:
        """Connections take half of the descriptors at the most: the database and files want theirs."""
        run(BodyLimit(app), limit_concurrency=max(64, descriptors // 2), **settings)

    uvicorn.run = limited  # type: ignore[assignment]  # Flower looks it up when it serves, and has no setting for this
    flower_superlink()


if __name__ == "__main__":
    main()
