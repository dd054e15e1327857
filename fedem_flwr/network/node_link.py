"""A node's connection to the SuperLink: Flower's Fleet API, kept open by one warm process.

Flower's SuperNode speaks the same protocol, but looks for messages every three seconds and hands each to a new process.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from flwr.app import Message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import no_object_id_recompute
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.network.condense import condense, expand
from fedem_flwr.network.link import Address, Patience, Refused, Unreachable, already_known
from fedem_flwr.network.parcels import Incoming, await_message, deliver, tree_of
from fedem_flwr.network.seal import NodeSeals, NotTaken
from fedem_flwr.network.trust import NodeKeys

log = logging.getLogger("fedem.node")
Asked = TypeVar("Asked")
Answered = TypeVar("Answered")

HEARTBEAT_SECONDS = 10.0  # the shortest that a SuperLink takes; a node silent for twice as long is away
BEATS = 3  # heartbeats sent in that time


class NodeLink:
    """One node at one SuperLink, between `connect` and `close`.

    Args:
        address: of the SuperLink.
        keys: the node's.
        server_key: whose messages it takes; None: anybody's.
        registers: whether it makes itself known, where that is allowed; else the SuperLink must know it.
        patience: seconds that a call waits for a SuperLink that is away; admission is tried once.
        stopped: ends all waiting.
        largest: bytes of the largest message taken, asked at each.
        known_as: the number that the SuperLink knew this node by the last time; 0: none.
        on_contact: called whenever the SuperLink has answered whoever receives or replies. Heartbeats go on by
            themselves, so they say nothing of whether this node works.
    """

    def __init__(
        self,
        address: Address,
        keys: NodeKeys,
        server_key: Ed25519PublicKey | None = None,
        *,
        registers: bool = False,
        patience: float,
        stopped: threading.Event,
        largest: Callable[[], int],
        known_as: int = 0,
        on_contact: Callable[[], None] = lambda: None,
    ) -> None:
        self._registers = registers
        self._seals = NodeSeals(keys, server_key)
        private, public = keys
        self._public = public_key_to_bytes(public)
        self._closed, self._stopped = threading.Event(), stopped
        self._largest, self._on_contact = largest, on_contact
        self._known_as = known_as
        interceptors: list[Any] = [
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(private, public),
        ]
        self._client = address.client(FleetHttpClient, interceptors, Patience(address, patience, stopped))
        self._once = address.client(FleetHttpClient, interceptors, Patience(address, 0.0, stopped))
        self._node = Node()  # number 0: not connected
        self._beats = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    @property
    def node_id(self) -> int:
        """The number that the SuperLink knows this node by."""
        return int(self._node.node_id)

    def connect(self) -> int:
        """Register where that is due, and become active; returns the node's number.

        Raises:
            FedemError: the SuperLink does not know this node, or cannot be reached.
        """
        if self._registers:
            try:
                self._once.RegisterNode(RegisterNodeFleetRequest(public_key=self._public))
            except FedemError as error:
                if not already_known(error):
                    raise
        try:
            self._activate()
            self._on_contact()
        except (Unreachable, InputError):
            raise
        except FedemError:
            self._activate_anew()
        self._beats.start()
        return self.node_id

    def _activate_anew(self) -> None:
        """A process that was killed could not say goodbye: for a while the SuperLink takes it for alive."""
        try:
            if self._known_as:
                self._once.DeactivateNode(DeactivateNodeRequest(node_id=self._known_as))
            self._activate()
        except (Unreachable, InputError):
            raise
        except FedemError:
            raise Refused(
                "the SuperLink does not know this node's key: a server or `deploy up` registers it; one that somebody "
                "has unregistered needs another (`fedem deploy certs --rekey`)"
            ) from None

    def _activate(self) -> None:
        request = ActivateNodeRequest(public_key=self._public, heartbeat_interval=HEARTBEAT_SECONDS)
        self._node = Node(node_id=self._once.ActivateNode(request).node_id)
        TaskIdentity.node_id = self._node.node_id  # Message(...) reads here who is sending

    def _beat(self) -> None:
        said = ""
        while not self._closed.wait(HEARTBEAT_SECONDS / BEATS):
            try:
                request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_SECONDS)
                if not self._once.SendNodeHeartbeat(request).success and not self._closed.is_set():
                    self._activate()  # the SuperLink took this node for gone, or was started anew
                said = ""
            except Exception as error:  # whatever it is: without heartbeats this node is taken for gone
                if not isinstance(error, Unreachable) and str(error) != said:  # `receive` finds that out, and says so
                    said = str(error)
                    log.warning("a heartbeat failed: %s: %s", type(error).__name__, error)

    def receive(self) -> Message | None:
        """The next message, or None where none waits.

        Raises:
            NotTaken: the message is not the known server's word of now; the sender was told, where that is due.
            FedemError: the SuperLink is gone or refuses, or the message is damaged or too large.
        """
        response = self._client.PullMessages(PullMessagesRequest(node=self._node))
        self._on_contact()
        if not response.messages_list:
            return None
        run_id = message_from_proto(response.messages_list[0]).metadata.run_id
        tree = response.message_object_trees[0]
        pull = make_pull_object_fn_protobuf(self._noted(self._client.PullObject), self._node, run_id)
        most = self._largest()
        incoming = Incoming(tree, most)
        message = await_message(incoming, pull, self._stopped)
        make_confirm_message_received_fn_protobuf(self._client.ConfirmMessageReceived, self._node, run_id)(
            tree.object_id
        )
        self._on_contact()
        try:
            return expand(self._seals.opened(message, incoming.records), most)
        except NotTaken as error:
            if error.code is not None:
                TaskIdentity.run_id, TaskIdentity.task_id = run_id, 1
                self.reply(error.reply(message), 0.0)
            raise

    def reply(self, message: Message, seconds: float) -> int:
        """Send an answer that took so many seconds; returns the bytes that crossed.

        Raises:
            FedemError: the SuperLink is gone, or does not want it any more.
        """
        message = condense(message)
        with no_object_id_recompute():  # each byte is hashed once, for its name and for the seal
            message = self._seals.sealed(message)
            bare, tree = tree_of(message)
        request = PushMessagesRequest(
            node=self._node,
            messages_list=[message_to_proto(bare)],
            message_object_trees=[tree],
            clientapp_runtime_list=[seconds],
        )

        def announce() -> tuple[set[str], Callable[[str, bytes], None]]:
            response = self._client.PushMessages(request)
            run_id = message.metadata.run_id
            pushing = self._noted(self._client.PushObject)
            push = make_push_object_fn_protobuf(pushing, self._node, run_id, response.session_id)
            return set(response.objects_to_push), push

        sent = deliver(message, announce)
        self._on_contact()
        return sent

    def _noted(self, call: Callable[[Asked], Answered]) -> Callable[[Asked], Answered]:
        """The same call, each a sign of life: a large message takes a while."""

        def noted(request: Asked) -> Answered:
            answer = call(request)
            self._on_contact()
            return answer

        return noted

    def close(self) -> None:
        """Say goodbye, so that nobody waits for this node."""
        self._closed.set()
        if self._beats.is_alive():
            self._beats.join(timeout=HEARTBEAT_SECONDS)
        try:
            if self._node.node_id:
                self._once.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id))
        except (FedemError, RuntimeError):
            pass  # it is gone itself
        for client in (self._client, self._once):
            client.close()
