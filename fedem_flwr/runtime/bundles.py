"""Many nodes' messages in one of Flower's.

Under Ray a message costs Flower's driver some 10 ms, whatever is in it, and Flower looks through all messages that are
under way for every node it has. So few of our nodes are nodes of Flower's: there are carriers, a few for each of Ray's
actors. A message to a carrier is a bundle of messages to nodes; the actor that gets it answers them one after the
other, each by the node's own client with the node's own message and context, and sends the answers back in one reply.

What several nodes are sent is in a bundle once (`shared_arrays`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import cycle
from typing import Any

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
    UserConfigValue,
)
from flwr.app.message import make_message
from flwr.clientapp import ClientApp

from fedem_flwr.errors import FedemError
from fedem_flwr.runtime.inprocess import FIRST_NODE_ID, RunConfig, answer
from fedem_flwr.runtime.ordered import OrderedGrid
from fedem_flwr.runtime.own_grid import OwnGrid
from fedem_flwr.runtime.shared_arrays import Once

Record = ArrayRecord | ConfigRecord | MetricRecord

PROCESS_LOST = 0  # Flower's ErrorCode.UNKNOWN: the error was Ray's, not the client's
_MOST_BYTES = 32 << 20  # of a bundle that is not of one message
_ANSWERED = -1  # in the place of an error's code
_ABOUT = "bundle"  # the record that says what else is there
_CONTENT, _STATE = "content", "state"  # of the others: `content/PLACE/NAME` of messages, `state/PLACE/NAME` of nodes


class Bundles(OwnGrid):
    """A grid of nodes whose messages travel in bundles.

    Args:
        grid: of the carriers; a bundle that is lost with its process comes back as an error.
        patient: the same, but what is lost is sent again, as long as a process may take to be started anew.
        carriers: Flower's numbers of them. nodes: how many nodes there are.
        most: messages of a bundle.
    """

    def __init__(self, grid: OrderedGrid, patient: OrderedGrid, carriers: list[int], nodes: int, most: int) -> None:
        super().__init__()
        self._grid, self._patient, self._carriers, self._most = grid, patient, cycle(carriers), most
        self._states = {FIRST_NODE_ID + partition: RecordDict() for partition in range(nodes)}
        self._pushed: dict[str, Message] = {}

    def get_node_ids(self) -> list[int]:
        """All node ids, in the order of their partition ids; the same as in one process."""
        return list(self._states)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages, each in a bundle of its own, and return their ids."""
        sent = [self._checked(message) for message in messages]
        ids = self._patient.push_messages([self._bundle([message]) for message in sent])
        self._pushed.update(zip(ids, sent, strict=True))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that are there, to messages with these ids."""
        found = []
        for reply in self._patient.pull_messages([one for one in message_ids if one in self._pushed]):
            answered = reply.metadata.reply_to_message_id
            (opened,) = self._opened(reply, [self._pushed.pop(answered)])
            vars(opened.metadata)["_reply_to_message_id"] = answered
            found.append(opened)
        return found

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send messages in bundles, a few at a time; iterate over the replies in the order of the messages.

        Nodes whose bundle is not answered ``timeout`` seconds after the call are left out. Of a bundle that is lost
        with its process each message is sent again by itself, so that a node that kills processes costs its own
        reply only.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        under_way: dict[str, list[Message]] = {}

        def bundled() -> Iterator[Message]:
            once = Once()
            for number, members in enumerate(self._divided(messages, once)):
                under_way[str(number)] = members
                yield self._bundle(members, once, number)

        return self._in_turn(self._grid.send_and_receive(bundled(), timeout=timeout), under_way, deadline)

    def _in_turn(
        self, replies: Iterable[Message], under_way: dict[str, list[Message]], deadline: float
    ) -> Iterator[Message]:
        for reply in replies:
            members = under_way.pop(reply.metadata.group_id)
            if reply.has_error() and reply.error.code == PROCESS_LOST:
                yield from self._one_by_one(members, deadline)
            else:
                yield from self._opened(reply, members)
            del reply, members

    def _one_by_one(self, members: list[Message], deadline: float) -> Iterator[Message]:
        """All at once, as each may have to wait until its process has been started anew."""
        left = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
        alone = (self._bundle([member], None, number) for number, member in enumerate(members))
        for reply in self._patient.send_and_receive(alone, timeout=left):
            yield from self._opened(reply, [members[int(reply.metadata.group_id)]])

    def _checked(self, message: Message) -> Message:
        if message.metadata.dst_node_id not in self._states:
            raise FedemError(f"there is no node {message.metadata.dst_node_id} to send a message to")
        return message

    def _divided(self, messages: Iterable[Message], once: Once) -> Iterator[list[Message]]:
        """The messages of each bundle."""
        members: list[Message] = []
        weight = 0
        for message in messages:
            size = once.adds(self._checked(message).content)
            if members and (len(members) == self._most or weight + size > _MOST_BYTES):
                yield members
                members, weight = [], 0
                once.begin()
                size = once.adds(message.content)
            members.append(message)
            weight += size
        if members:
            yield members

    def _bundle(self, members: list[Message], once: Once | None = None, number: int = 0) -> Message:
        """Messages as one to a carrier.

        Args:
            once: what they were weighed with. number: of the bundle, which its reply gives back.
        """
        told = [member.metadata for member in members]
        about = ConfigRecord(
            {
                "nodes": [one.dst_node_id for one in told],
                "kinds": [one.message_type for one in told],
                "groups": [one.group_id for one in told],
                "made": [float(one.created_at) for one in told],
                "kept": [float(one.ttl) for one in told],
            }
        )
        content = RecordDict({_ABOUT: about})
        for place, member in enumerate(members):
            for name, record in member.content.items():
                together = once.shared(record) if once and isinstance(record, ArrayRecord) else record
                content[f"{_CONTENT}/{place}/{name}"] = together
            for name, record in self._states[member.metadata.dst_node_id].items():
                content[f"{_STATE}/{place}/{name}"] = record
        return Message(content, next(self._carriers), "train", group_id=str(number))

    def _opened(self, reply: Message, members: list[Message]) -> Iterator[Message]:
        """The answers in a carrier's reply."""
        if reply.has_error():
            yield from (Message(reply.error, reply_to=member) for member in members)
            return
        about = reply.content.config_records[_ABOUT]
        contents, states = _apart(reply.content, len(members))
        for place, member in enumerate(members):
            self._states[member.metadata.dst_node_id] = states[place]
            code, reason = _listed(about, "codes")[place], _listed(about, "reasons")[place]
            answered: Any = contents[place] if code == _ANSWERED else Error(code, reason)
            yield Message(answered, reply_to=member)


class CarrierApp(ClientApp):
    """Answers bundles: a client app with the run configuration of its nodes, that tells their errors in a reply.

    Args:
        client_app: answers each message. nodes: how many nodes there are. run_config: what each of them finds.
    """

    def __init__(self, client_app: ClientApp, nodes: int, run_config: RunConfig) -> None:
        super().__init__()
        self._client_app, self._nodes, self._config = client_app, nodes, dict(run_config)

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer the messages of a bundle, one after the other."""
        about = message.content.config_records[_ABOUT]
        nodes = _listed(about, "nodes")
        contents, states = _apart(message.content, len(nodes))
        answers, codes, reasons = RecordDict(), [], []
        own: dict[int, Context] = {}  # a node may have several messages
        for place, node in enumerate(nodes):
            own.setdefault(node, self._context(context.run_id, node, states[place]))
            reply = answer(self._client_app, self._message(message, place, contents[place]), own[node], self._config)
            failed = reply.error if reply.has_error() else None
            codes.append(failed.code if failed else _ANSWERED)
            reasons.append((failed.reason or "") if failed else "")
            for name, record in {} if failed else reply.content.items():
                answers[f"{_CONTENT}/{place}/{name}"] = record
            for name, record in own[node].state.items():
                answers[f"{_STATE}/{place}/{name}"] = record
        answers[_ABOUT] = ConfigRecord({"codes": codes, "reasons": reasons})
        return Message(answers, reply_to=message)

    def _message(self, bundle: Message, place: int, content: RecordDict) -> Message:
        """One of a bundle's messages, as it was sent."""
        about, outside = bundle.content.config_records[_ABOUT], bundle.metadata
        kind, group, node = (_listed(about, name)[place] for name in ("kinds", "groups", "nodes"))
        made, kept = (_listed(about, name)[place] for name in ("made", "kept"))
        name = f"{outside.message_id}/{place}"
        return make_message(
            Metadata(outside.run_id, name, outside.src_node_id, node, "", group, made, kept, kind), content
        )

    def _context(self, run: int, node: int, state: RecordDict) -> Context:
        config: dict[str, UserConfigValue] = {"partition-id": node - FIRST_NODE_ID, "num-partitions": self._nodes}
        return Context(run_id=run, node_id=node, node_config=config, state=state, run_config=dict(self._config))


def _listed(record: ConfigRecord, name: str) -> list[Any]:
    found: Any = record[name]
    return found  # type: ignore[no-any-return]


def _apart(records: Mapping[str, Record], count: int) -> tuple[list[RecordDict], list[RecordDict]]:
    """What a bundle holds for each of its messages, and the states of their nodes."""
    contents, states = [RecordDict() for _ in range(count)], [RecordDict() for _ in range(count)]
    kinds = {_CONTENT: contents, _STATE: states}
    for key, record in records.items():
        if key != _ABOUT:
            kind, place, name = key.split("/", 2)
            kinds[kind][int(place)][name] = record
    return contents, states
