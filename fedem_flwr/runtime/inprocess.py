"""The fast runtime: a Flower ``Grid`` whose nodes live in this process, one after the other, without copies.

A node answers when its reply is asked for, so at any time the process holds one node's reply, and neither
messages nor replies pile up: a strategy may pass a generator of messages and add up replies as they come.
"""

from __future__ import annotations

import copy
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from flwr.app import Context, Error, Message, RecordDict, UserConfigValue
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

# Message() reads here who is sending; Flower (1.42) has no public way of saying it outside its own runtimes.
from flwr.supercore.task_identity import TaskIdentity

from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.runtime.own_grid import OwnGrid
from fedem_flwr.text import one_line

T = TypeVar("T")
RunConfig = Mapping[str, UserConfigValue]

CLIENT_RAISED = 2  # Flower's ErrorCode.CLIENT_APP_RAISED_EXCEPTION
SERVER_NODE_ID = 1  # as Flower numbers the SuperLink
FIRST_NODE_ID = 2
RUN_ID = 1

_log = logging.getLogger(__name__)


def run_inprocess(client_app: ClientApp, server_main: Callable[[Grid], T], *, nodes: int, run_config: RunConfig) -> T:
    """Run ``server_main`` over virtual nodes in this process and return what it returns.

    Args:
        client_app: answers for every node; node ``i`` has ``node_config`` ``{"partition-id": i,
            "num-partitions": nodes}`` and a ``Context.state`` of its own, kept from message to message.
        server_main: gets the grid; its exceptions pass through.
        nodes: how many virtual nodes.
        run_config: what every node finds in ``Context.run_config``.

    Raises:
        InputError: there is not one node.
    """
    if nodes < 1:
        raise InputError(f"a run needs at least one node, not {nodes}: raise the number of users or nodes")
    with task_identity():
        return server_main(InProcessGrid(client_app, nodes=nodes, run_config=run_config))


class InProcessGrid(OwnGrid):
    """Executes messages on ``nodes`` virtual nodes; node ids follow the partition ids, alike in every run."""

    def __init__(self, client_app: ClientApp, *, nodes: int, run_config: RunConfig) -> None:
        super().__init__()
        self._client_app = client_app
        self._run_config = run_config
        self._contexts = {
            FIRST_NODE_ID + partition: Context(
                run_id=RUN_ID,
                node_id=FIRST_NODE_ID + partition,
                node_config={"partition-id": partition, "num-partitions": nodes},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for partition in range(nodes)
        }
        self._pushed: dict[str, Message] = {}
        self._numbers = itertools.count(1)

    def get_node_ids(self) -> list[int]:
        """All node ids, in the order of their partition ids."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Keep messages for :meth:`pull_messages`, which executes them; return their ids."""
        identified = [self._identified(message) for message in messages]
        self._pushed.update((message.metadata.message_id, message) for message in identified)
        return [message.metadata.message_id for message in identified]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Execute pushed messages, in the order given; ids unknown or answered before are passed over."""
        wanted = [self._pushed.pop(message_id, None) for message_id in message_ids]
        return [self._execute(message) for message in wanted if message is not None]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Execute messages one at a time, each when the iterator is advanced, in the order given.

        Args:
            messages: may be a generator; one message is taken from it per reply.
            timeout: seconds that the nodes may take together. A node not started by then gets no message and
                sends no reply. The time the caller spends between two replies does not count: on other
                runtimes it has all the replies before it begins.

        Returns:
            An iterator, to be used once. A node whose reply is never asked for does not run.
        """
        source = iter(messages)
        spent = 0.0
        while timeout is None or spent < timeout:
            began = time.perf_counter()
            message = next(source, None)
            if message is None:
                return
            reply = self._execute(self._identified(message))
            del message
            spent += time.perf_counter() - began
            yield reply
            del reply  # else it would stay in memory while the next node works

    def _identified(self, message: Message) -> Message:
        if message.metadata.dst_node_id not in self._contexts:
            raise FedemError(f"there is no node {message.metadata.dst_node_id} to send a message to")
        # Flower's own grids number messages in the same way: there is no setter.
        vars(message.metadata)["_message_id"] = str(next(self._numbers))
        return message

    def _execute(self, message: Message) -> Message:
        reply = answer(self._client_app, message, self._contexts[message.metadata.dst_node_id], self._run_config)
        vars(reply.metadata)["_message_id"] = str(next(self._numbers))
        return reply


def answer(client_app: ClientApp, message: Message, context: Context, run_config: RunConfig) -> Message:
    """Let a client answer a message; what it raises becomes an error reply with the reason in one line.

    The client works on its own copies of the message's and the state's records (arrays are shared, and
    read-only), so neither the sender's records nor, after an error, the node's state are changed.
    ``context.state`` is what the client left behind once it has answered. KeyboardInterrupt and the like pass
    through.
    """
    working = Context(
        run_id=context.run_id,
        node_id=context.node_id,
        node_config=dict(context.node_config),
        state=_copy_records(context.state),
        run_config=dict(run_config),
        series_id=context.series_id,
    )
    received = copy.copy(message)
    if message.has_content():
        received.content = _copy_records(message.content)
    try:
        reply = client_app(received, working)
        if not isinstance(reply, Message):
            raise TypeError(f"a client must answer with a Message, not {type(reply).__name__}")
    except Exception as error:
        _log.debug("node %s failed", context.node_config.get("partition-id"), exc_info=True)
        reason = one_line(f"{type(error).__name__}: {error}")
        return Message(Error(code=CLIENT_RAISED, reason=reason), reply_to=message)
    context.state = working.state
    return reply


@contextmanager
def task_identity() -> Iterator[None]:
    """Let ``Message(...)`` be called on the server's side in this process; afterwards all is as before."""
    ours = {"task_id": 1, "run_id": RUN_ID, "node_id": SERVER_NODE_ID}
    before = {name: _identity(name) for name in ours}
    for name, value in ours.items():
        setattr(TaskIdentity, name, value)
    try:
        yield
    finally:
        for name, previous in before.items():
            setattr(TaskIdentity, name, previous)


def _identity(name: str) -> int | None:
    try:
        value: int = getattr(TaskIdentity, name)
    except RuntimeError:  # not set
        return None
    return value


def _copy_records(records: RecordDict) -> RecordDict:
    copied = RecordDict()
    for name, record in records.items():
        copied[name] = record.copy()
    return copied
