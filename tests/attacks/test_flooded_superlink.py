"""A stranger at the SuperLink's port, without a key: bodies without end, slow ones, many at once."""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from fedem_flwr.network import superlink
from fedem_flwr.network.commands import Trusted, superlink_command
from fedem_flwr.network.link import Address
from fedem_flwr.network.superlink import NODE, OBJECT, BodyLimit, limit_of

pytestmark = pytest.mark.attacks
OBJECTS, MESSAGES, CONTROL = "/v1/fleet/push-object", "/v1/fleet/push-messages", "/v1/control/start-run"


class Program:
    """What stands behind the limits: it notes the bodies that reach it, and holds on to the last where told to."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            event = await receive()
            assert not event["more_body"]
            self.bodies.append(event["body"])
            await self.go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})


async def call(app: BodyLimit, path: str, parts: Sequence[bytes], declared: int | None = None) -> tuple[int, int]:
    """A request in parts, whose length is said only if one is declared; returns its status, and the parts taken."""
    left, status = list(parts), []

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.Event().wait()  # a sender that has fallen silent
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left) or declared is not None}

    async def send(event: dict[str, Any]) -> None:
        status.extend([event["status"]] if "status" in event else [])

    headers = [] if declared is None else [(b"content-length", str(declared).encode())]
    await app({"type": "http", "path": path, "headers": headers}, receive, send)
    return status[0], len(parts) - len(left)


def test_a_body_that_is_too_large_is_refused_before_it_is_there() -> None:
    async def attack() -> None:
        program = Program()
        app = BodyLimit(program)
        part = bytes(1 << 20)
        assert await call(app, CONTROL, [part], declared=800 << 20) == (413, 0), "what held 1.8 GB"
        assert await call(app, CONTROL, [part] * 800) == (413, 17), "the same without saying so"
        assert await call(app, MESSAGES, [bytes(1000)] * 2000) == (413, NODE // 1000 + 1), "30,000 announcements"
        assert await call(app, OBJECTS, [part] * 16) == (200, 16), "an honest chunk"
        assert [len(body) for body in program.bodies] == [16 << 20]

    asyncio.run(attack())


def test_a_body_that_does_not_come_is_given_up() -> None:
    assert asyncio.run(call(BodyLimit(Program(), seconds=0.05), MESSAGES, [b"x"], declared=2)) == (408, 1)


def test_many_bodies_at_once_share_one_limit() -> None:
    """Each is small enough; those that find no room are told to come again, and room comes back."""

    async def attack() -> None:
        program = Program()
        app = BodyLimit(program, at_once=3000)
        program.go_on.clear()
        busy = [asyncio.create_task(call(app, OBJECTS, [bytes(1000)])) for _ in range(3)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert await call(app, OBJECTS, [bytes(1000)]) == (503, 1)
        program.go_on.set()
        assert [await one for one in busy] == [(200, 1)] * 3
        assert await call(app, OBJECTS, [bytes(3000)]) == (200, 1)

    asyncio.run(attack())


def test_whoever_leaves_is_not_waited_for() -> None:
    async def attack() -> None:
        program, sent = Program(), []

        async def gone() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(event: dict[str, Any]) -> None:
            sent.append(event)

        await BodyLimit(program)({"type": "http", "path": OBJECTS, "headers": []}, gone, send)
        assert not program.bodies and not sent

    asyncio.run(attack())


def test_what_is_no_request_passes() -> None:
    """Flower's start and end."""
    sent: list[Any] = []

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    async def none() -> dict[str, Any]:
        raise AssertionError

    asyncio.run(BodyLimit(Program())({"type": "lifespan"}, none, send))
    assert sent[0]["status"] == 200


def test_limits_by_path() -> None:
    assert {limit_of(path) for path in (MESSAGES, "/v1/fleet/pull-object", "/v1/fleet/activate-node")} == {NODE}
    assert {limit_of(path) for path in (OBJECTS, CONTROL, "/v1/runtime/push-object", "/elsewhere")} == {OBJECT}


def test_the_superlink_that_we_start_has_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And as many descriptors as it may have: 995 handshakes that were not finished took all of the usual 1,024."""
    command = superlink_command(Address("127.0.0.1:8000"), Trusted(None), tmp_path / "secret", None)
    assert command[:3] == [sys.executable, "-m", "fedem_flwr.network.superlink"]
    served: list[tuple[Any, dict[str, Any]]] = []
    limits: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(uvicorn, "run", lambda app, **settings: served.append((app, settings)))
    monkeypatch.setattr("flwr.superlink.cli.flower_superlink", lambda: uvicorn.run(app=Program(), host="here"))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, values: limits.append((kind, values)))
    superlink.main()
    ((app, settings),) = served
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert isinstance(app, BodyLimit) and settings == {"host": "here", "limit_concurrency": max(64, hard // 2)}
    assert (resource.RLIMIT_NOFILE, (hard, hard)) in limits
    ((memory, _),) = [values for kind, values in limits if kind == resource.RLIMIT_DATA]
    assert memory < superlink.memory_here()
