"""The server's connection to a SuperLink: the part of a ServerApp, taken by this process.

A SuperLink in isolation mode "process" hands the ServerApp's task to whoever holds the superexec secret. Taking it here
leaves `flwr-serverapp` out: progress, checkpoints and interrupts are those of any other run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Error, Message, Metadata
from flwr.app.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID, SubStatus
from flwr.common.serde import context_from_proto, fab_to_proto, message_from_proto, message_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    GetNodesRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import no_object_id_recompute
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity

from fedem_flwr.errors import FedemError
from fedem_flwr.network.condense import condense, expand
from fedem_flwr.network.control import app_bundle, control_client
from fedem_flwr.network.link import Address, Patience, Refused, Unreachable
from fedem_flwr.network.parcels import Allowance, BrokenOff, Incoming, deliver, tree_of
from fedem_flwr.network.seal import FORGED, Forged, ServerSeals
from fedem_flwr.network.taking import own_task
from fedem_flwr.network.trust import Session

_HEARTBEAT = 5.0  # seconds
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
_DAMAGED, BROKEN_OFF = 1, 1002  # codes of the errors made here
_SERVER = Node(node_id=SUPERLINK_NODE_ID)
_AWAY = (Unreachable, Refused)  # the SuperLink itself
_REPLIES = 3  # of one node in one round: one that broke off is asked for again, and so is a node that was started anew

log = logging.getLogger("fedem.server")


class ServerLink:
    """The ServerApp's task of one run at a SuperLink, from `open` to `close`.

    Args:
        address: of the SuperLink. secret: what lets us take the task.
        patience: seconds that a call waits for a SuperLink that is away.
        largest: bytes of the largest reply taken.
        signing_key: the server's; None where nodes believe anybody.
    """

    def __init__(
        self,
        address: Address,
        secret: bytes,
        *,
        patience: float,
        largest: int,
        signing_key: Ed25519PrivateKey | None = None,
    ) -> None:
        self._address, self._largest = address, largest
        self.stopped = threading.Event()
        hint = "resume the run once it is back"
        self._patience = Patience(address, patience, self.stopped, hint)
        self._once = Patience(address, 0.0, self.stopped)
        self._version = RuntimeVersionHttpInterceptor(component_name="flwr-serverapp")
        self._guard = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={_ACQUIRE})
        self.control = control_client(address, self._patience)
        self._client: RuntimeHttpClient
        self._seals = ServerSeals(signing_key)
        self._lost: str = ""  # why the task is no longer ours
        self._one_by_one = False  # whether a node has made a call fail
        self._incoming: list[tuple[Metadata, Incoming]] = []  # replies that are on their way
        self._asked: dict[str, int] = {}  # the node that a message is for, by the message's id; of this round
        self._allowances: dict[int, Allowance] = {}  # what each node may still send in this round
        self.run_id = 0
        self.bytes_down = self.bytes_up = 0

    def open(self) -> int:
        """Start a run and take its task; returns the run's number.

        Tasks of runs that others have started are left to them: nothing is said to nodes in their name.

        Raises:
            InputError: the SuperLink runs server apps by itself, or the secret is another's. FedemError: it fails.
        """
        fab = Fab("", app_bundle(), {})
        started = self.control.StartRun(StartRunRequest(fab=fab_to_proto(fab))).run_id
        guarded = self._runtime([self._guard], self._patience)
        token = own_task(guarded, self.control, started, self._address.place, self.stopped)
        self._token = RuntimeTokenHttpInterceptor(token)
        self._client = self._runtime([self._token], self._patience)
        task = self._client.PullTaskInput(PullTaskInputRequest())
        if task.run.run_id != started:
            raise FedemError(f"the SuperLink at {self._address.place} hands out another run than it was asked for")
        self.run_id = started
        TaskIdentity.task_id, TaskIdentity.run_id = task.task_id, self.run_id
        TaskIdentity.node_id = context_from_proto(task.context).node_id
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        return self.run_id

    def _runtime(self, interceptors: list[Any], patience: Patience) -> RuntimeHttpClient:
        return self._address.client(RuntimeHttpClient, [self._version, *interceptors], patience)

    def _beat(self) -> None:
        client = self._runtime([self._token], self._once)
        while not self.stopped.wait(_HEARTBEAT):
            try:
                if not client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success:
                    self._lost = "it was stopped at the SuperLink"
            except FedemError:
                continue  # the next call finds out, with more patience

    def nodes(self) -> dict[int, Session]:
        """The nodes that are there, by number, each with the key that it had the first time."""
        if self._lost:
            raise FedemError(f"this run has ended: {self._lost}; the run can be resumed")
        found = self._client.GetNodes(GetNodesRequest()).nodes
        met = {node.node_id: Session(node.public_key, node.last_activated_at) for node in found}
        return {node: one for node, one in met.items() if self._seals.meet(node, one.public_key)}

    def new_round(self) -> None:
        """What nodes may send is counted from here."""
        self._asked.clear()
        self._allowances.clear()

    def push(self, message: Message) -> str:
        """Leave a message for a node; returns its number, empty if the SuperLink does not take it."""
        node = message.metadata.dst_node_id
        message = condense(message)
        with no_object_id_recompute():  # each byte is hashed once, for its name and for the seal
            message = self._seals.sealed(message)
            bare, tree = tree_of(message)
        message_id = str(tree.object_id)
        request = PushAppMessagesRequest(messages_list=[message_to_proto(bare)], message_object_trees=[tree])
        taken: list[str] = []

        def announce() -> tuple[set[str], Callable[[str, bytes], None]]:
            response = self._client.PushMessages(request)
            taken.append(message_id if response.message_ids[0] else "")
            push = make_push_object_fn_protobuf(self._client.PushObject, _SERVER, self.run_id, response.session_id)
            return set(response.objects_to_push), push

        self._seals.sent(message_id, message.metadata.dst_node_id)
        self.bytes_down += deliver(message, announce)
        self._asked[taken[0]] = node
        return taken[0]

    def pull(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies to messages that are there whole, without waiting for those that are still on their way.

        One that is damaged, broken off, too large or not signed by whom was asked is an error reply. What is on its way
        to no message among these is forgotten.
        """
        asked = set(message_ids)
        self._seals.forget_others(asked)
        self._incoming = [(outside, one) for outside, one in self._incoming if outside.reply_to_message_id in asked]
        # A SuperLink tells of a reply once: whoever asks again hears that there is no such message.
        new = asked - {outside.reply_to_message_id for outside, _ in self._incoming}
        replies = self._announced(sorted(new)) if new else []
        left = []
        pull = make_pull_object_fn_protobuf(self._client.PullObject, _SERVER, self.run_id)
        for outside, incoming in self._incoming:
            try:
                if not incoming.fetch(pull):
                    left.append((outside, incoming))
                    continue
                reply = self._reply(outside, incoming)
                self.bytes_up += incoming.size
            except _AWAY:
                raise
            except FedemError as error:
                code = FORGED if isinstance(error, Forged) else BROKEN_OFF if isinstance(error, BrokenOff) else _DAMAGED
                reply = error_from(outside.src_node_id, outside, str(error), code)
            self._confirm(incoming.object_id)
            replies.append(reply)
        self._incoming = left
        return replies

    def _announced(self, message_ids: list[str]) -> list[Message]:
        """Take in what the SuperLink tells of replies; returns errors in the place of those that it cannot tell of.

        A node may announce what makes the SuperLink or the parsing here fail, and the other replies of the call with
        it. These then count as lost by the SuperLink, are asked for again, and from now on each is by itself.
        """
        batches = [[one] for one in message_ids] if self._one_by_one else [message_ids]
        errors = []
        for batch in batches:
            try:
                response = self._client.PullMessages(PullAppMessagesRequest(message_ids=batch))
                pairs = list(zip(response.messages_list, response.message_object_trees, strict=True))
                found = [self._on_its_way(message_from_proto(bare).metadata, tree) for bare, tree in pairs]
            except _AWAY:
                raise
            except Exception as error:  # foreign bytes fail to parse in any way
                if not self._one_by_one:
                    self._one_by_one = True
                    return self._announced(message_ids)
                outside = _outside(self.run_id, batch[0])
                errors.append(
                    error_from(0, outside, f"a reply that cannot be told of: {type(error).__name__}: {error}")
                )
                continue
            self._incoming += found
        return errors

    def _on_its_way(self, outside: Metadata, tree: ObjectTree) -> tuple[Metadata, Incoming]:
        """A reply, counted for the node that was asked, whoever it says it is from."""
        node = self._asked.get(outside.reply_to_message_id, outside.src_node_id)
        if node not in self._allowances:
            self._allowances[node] = Allowance.of(self._largest, _REPLIES)
        return outside, Incoming(tree, self._largest, self._allowances[node])

    def _confirm(self, object_id: str) -> None:
        """Let the SuperLink forget a reply; one that it cannot forget is its own trouble."""
        request = ConfirmMessageReceivedRequest(node=_SERVER, run_id=self.run_id, message_object_id=object_id)
        try:
            self._client.ConfirmMessageReceived(request)
        except _AWAY:
            raise
        except FedemError as error:
            log.warning("the SuperLink does not forget a reply: %s", error)

    def _reply(self, outside: Metadata, incoming: Incoming) -> Message:
        """What came, under the outside that the SuperLink tells, if the node that was asked has signed that."""
        told = incoming.message()
        if not told.has_content() and not told.has_error():
            raise FedemError("a message of nothing")
        return expand(self._seals.opened(outside, told, incoming.records), self._largest)

    def close(self, failure: str = "") -> None:
        """End the run at the SuperLink; what failed is shown by `flwr ls`."""
        self.stopped.set()
        if not self.run_id:
            return
        status = SubStatus.FAILED if failure else SubStatus.COMPLETED
        try:
            client = self._runtime([self._token], self._once)
            client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=failure))
        except FedemError:
            pass  # the SuperLink is gone


def error_from(node: int, answered: Metadata, reason: str, code: int = _DAMAGED) -> Message:
    """An error in the place of a node's reply.

    Args:
        answered: outside of the reply that came instead, or could not be read.
    """
    return make_message(
        metadata=_outside(answered.run_id, answered.reply_to_message_id, node, answered.group_id),
        error=Error(code, reason),
    )


def _outside(run_id: int, reply_to: str, node: int = 0, group: str = "") -> Metadata:
    """Of a reply that is made here."""
    return Metadata(
        run_id=run_id,
        message_id="",
        src_node_id=node,
        dst_node_id=SUPERLINK_NODE_ID,
        reply_to_message_id=reply_to,
        group_id=group,
        message_type=SYSTEM_MESSAGE_TYPE,
        created_at=time.time(),
        ttl=1.0,
    )
