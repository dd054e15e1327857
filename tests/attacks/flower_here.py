"""Flower's own SuperLink inside the test's process, with a server and nodes at it; each attacker has a client there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from flwr.app import Message, RecordDict
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.main import create_app
from signed import new_keys

from fedem_flwr.network.control import control_client, register_nodes
from fedem_flwr.network.grid import NetworkGrid
from fedem_flwr.network.link import Address, Patience
from fedem_flwr.network.node_link import NodeLink
from fedem_flwr.network.server_link import ServerLink
from fedem_flwr.network.trust import NodeKeys
from fedem_flwr.runtime.inprocess import task_identity

SECRET = b"lets its holder take the tasks of server apps"
LARGEST = 1 << 24  # bytes


class SuperLink:
    """One that asks for node keys; without TLS, which is not what these attacks are about."""

    def __init__(self) -> None:
        app = create_app()
        app.state.superexec_auth_secret, app.state.enable_supernode_auth = SECRET, True
        self._server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 60
        while not self._server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        self.state: Any = app.state.linkstate_factory.state()
        self.address = Address(f"127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}")

    def close(self) -> None:
        """No more."""
        self._server.should_exit = True
        self._thread.join(timeout=30)

    def control(self) -> ControlHttpClient:
        """What anybody may call who reaches the port."""
        return control_client(self.address, Patience(self.address, 2.0, threading.Event()))

    def server(self, signing_key: Ed25519PrivateKey | None = None, secret: bytes = SECRET) -> ServerLink:
        """A run's server, not open yet."""
        return ServerLink(self.address, secret, patience=2.0, largest=LARGEST, signing_key=signing_key)

    def node(self, keys: NodeKeys | None = None, server_key: Ed25519PublicKey | None = None) -> Node:
        """Somebody with a key that is registered here, connected."""
        keys = keys or new_keys()
        register_nodes(self.control(), [("somebody", public_key_to_bytes(keys[1]))])
        return Node(self.address, keys, server_key)


class Node(NodeLink):
    """A node in the test's thread: `Message(...)` takes it for the sender while it works.

    Attributes:
        keys: its own.
    """

    def __init__(self, address: Address, keys: NodeKeys, server_key: Ed25519PublicKey | None) -> None:
        super().__init__(address, keys, server_key, patience=2.0, stopped=threading.Event(), largest=lambda: LARGEST)
        self.keys = keys
        with self.speaking():
            self.connect()

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """As if this were its process."""
        with task_identity():
            TaskIdentity.node_id = self.node_id
            yield

    def next(self) -> Message | None:
        """The next message that it takes."""
        with self.speaking():
            return self.receive()

    def say(self, content: Any, to: Message) -> None:
        """Answer a message."""
        with self.speaking():
            TaskIdentity.run_id = to.metadata.run_id
            self.reply(Message(content, reply_to=to), 0.1)


class Turns:
    """In the place of a grid's event: while the server waits, nodes and attackers have their turns."""

    def __init__(self, *turns: Callable[[], object]) -> None:
        self._turns = turns

    def is_set(self) -> bool:
        """Never."""
        return False

    def wait(self, seconds: float) -> bool:
        """Everybody's turn."""
        for turn in self._turns:
            turn()
        return False


def asked(
    run: ServerLink, node: Node, content: RecordDict, *turns: Callable[[], object], roster: Any = None
) -> Message:
    """What comes of a message to a node within a round's time, through the grid that rounds use."""
    grid = NetworkGrid(run, 20.0)
    grid._stopped = Turns(*turns)  # type: ignore[assignment]
    message = Message(content, node.node_id, "train", group_id="1")
    (reply,) = grid.send_and_receive([message], timeout=20.0)
    return reply
