"""A Flower ``Grid`` over a SuperLink: our server's side of messages to networked nodes."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Iterator

from flwr.app import Message
from flwr.common.constant import SUPERLINK_NODE_ID

from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.network.control import remedy, shut_out
from fedem_flwr.network.seal import FORGED, UNHEARD
from fedem_flwr.network.server_link import BROKEN_OFF, ServerLink, error_from
from fedem_flwr.network.trust import Roster, Session
from fedem_flwr.runtime.ordered import OrderedGrid
from fedem_flwr.text import one_line

log = logging.getLogger("fedem.server")

GONE = 1001  # error code: the SuperLink has lost the node
_LOOK = 0.5  # seconds between looks whether a node that is waited for was started anew
_LOOK_OUT = 60.0  # seconds between looks whether nodes that are missing were unregistered
_RETURN = 15.0  # seconds that a node which is gone may take to come back, as far as the round's time allows
_SPARE = 30.0  # seconds that a SuperLink keeps a message beyond the time that its reply is waited for


class NetworkGrid(OrderedGrid):
    """Messages leave one by one: the first node works while the last message is still on its way.

    Args:
        link: the run's connection, open.
        keep_seconds: how long the SuperLink keeps a message for a node that does not fetch it.
        roster: of the nodes that there may be; None: anybody. A SuperLink knows every key that somebody registers.
    """

    def __init__(self, link: ServerLink, keep_seconds: float, roster: Roster | None = None) -> None:
        super().__init__(link.stopped)
        self._link, self._keep, self._roster = link, keep_seconds + _SPARE, roster
        self._strangers: set[bytes] = set()  # keys of nodes that were refused
        self._missing: set[str] = set()  # nodes of the roster that are not there
        self._shut_out: set[str] = set()  # those among them that cannot come back
        self._looked_out = 0.0  # when they were looked for
        self._asked: dict[int, Session] = {}  # the session that each node had when its message was sent
        self._looked = 0.0
        self._nodes: dict[str, int] = {}  # that messages are for, by the messages' ids

    def sessions(self) -> dict[int, Session]:
        """The nodes that are there and may be; one that was started anew has another session.

        Raises:
            InputError: none is, and none can come: somebody has unregistered them all.
        """
        found = self._link.nodes()
        if self._roster is None:
            return found
        known = {node: one for node, one in found.items() if self._roster.shard_of(one.public_key) is not None}
        self._look_for_shut_out(self._roster, {one.public_key for one in known.values()})
        for node in found.keys() - known.keys():
            if found[node].public_key not in self._strangers:
                self._strangers.add(found[node].public_key)
                log.warning("node %s is not in the roster: refused", node)
        return known

    def _look_for_shut_out(self, roster: Roster, present: set[bytes]) -> None:
        """Where nodes are missing, say so of those that cannot come back.

        Raises:
            InputError: all of them are, and none can.
        """
        missing = [(name, key) for name, key in roster.entries() if key not in present]
        names, now = {name for name, _ in missing}, time.monotonic()
        known, self._missing = self._missing, names
        if names <= known and (not names or now - self._looked_out < _LOOK_OUT):
            return
        self._looked_out = now
        try:
            gone = shut_out(self._link.control, missing)
        except InputError:
            raise
        except FedemError as error:  # a look, and no more
            log.warning("cannot look who is shut out: %s", error)
            return
        if len(gone) == len(roster.nodes):
            raise InputError(remedy(gone))
        if news := sorted(set(gone) - self._shut_out):
            log.warning("the run goes on without %s", remedy(news))
        self._shut_out |= set(gone)

    def get_node_ids(self) -> list[int]:
        """All node ids, sorted; a SuperLink knows nodes by random numbers."""
        return sorted(self.sessions())

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages and return their ids; an empty one for a message that could not be left for its node."""
        ids = []
        for message in messages:
            message.metadata.ttl = self._keep
            message.metadata.created_at = time.time()  # else a repeated message is the first one to a SuperLink
            ids.append(self._link.push(message))
            self._nodes[ids[-1]] = message.metadata.dst_node_id
        return ids

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """As the base says; a reply that is still on its way at the end of the time is given up, too."""
        self._asked, self._looked = self.sessions(), time.monotonic()
        self._nodes.clear()
        self._link.new_round()
        return super().send_and_receive(messages, timeout=timeout)

    def started_anew(self, nodes: Collection[int]) -> Collection[int]:
        """Whoever took their first message is dead.

        Rounds can be repeated: a node goes on from the state that it had the first time.
        """
        if time.monotonic() - self._looked < _LOOK:
            return ()
        self._looked, now = time.monotonic(), self.sessions()
        found = {node for node in nodes if node in now and now[node] != self._asked.get(node)}
        self._asked.update({node: now[node] for node in found})
        return found

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that are there; reasons of errors in one line, and as the node's own where the SuperLink errs."""
        replies = []
        for reply in self._link.pull(message_ids):
            if not reply.has_error():
                replies.append(reply)
                continue
            node = self._nodes.get(reply.metadata.reply_to_message_id, reply.metadata.src_node_id)
            gone = reply.metadata.src_node_id == SUPERLINK_NODE_ID
            reason = "is gone" if gone else one_line(reply.error.reason or "no reason given")
            replies.append(error_from(node, reply.metadata, reason, GONE if gone else reply.error.code))
        return replies

    def again_at(self, reply: Message, since: float, now: float) -> float | None:
        """Where a node is gone or tells its challenge, and where a reply broke off or is forged; for a while only."""
        if not reply.has_error() or reply.error.code not in (GONE, BROKEN_OFF, FORGED, UNHEARD):
            return None
        if reply.error.code == UNHEARD and now == since:
            return now  # it can be signed for now
        return now + _LOOK if now - since < _RETURN else None

    def outlives(self, reply: Message) -> bool:
        """A node whose challenge is new takes nothing from before, and what took the copies before is dead."""
        return reply.has_error() and reply.error.code == UNHEARD

    def await_nodes(self, count: int, seconds: float) -> int:
        """Wait for so many nodes, or so long; returns how many are there.

        Raises:
            FedemError: not a single one came.
        """
        deadline = time.monotonic() + seconds
        while (here := len(self.sessions())) < count and time.monotonic() < deadline:
            self._stopped.wait(0.2)
        if not here:
            raise FedemError(
                f"no node has come within {seconds:.0f} s: start them with `fedem deploy node`, or look at their logs"
            )
        return here
