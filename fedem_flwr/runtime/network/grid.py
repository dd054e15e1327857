"""A Flower ``Grid`` over a SuperLink: our server's side of messages to networked nodes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator

from flwr.app import Error, Message

from fedem_flwr.errors import FedemError
from fedem_flwr.runtime.inprocess import one_line
from fedem_flwr.runtime.network.server_link import ServerLink, Session
from fedem_flwr.runtime.ordered import OrderedGrid

_SPARE = 30.0  # seconds that a SuperLink keeps a message beyond the time that its reply is waited for


class NetworkGrid(OrderedGrid):
    """Messages leave one by one: the first node works while the last message is still on its way.

    Args:
        link: the run's connection, open.
        keep_seconds: how long the SuperLink keeps a message for a node that does not fetch it.
    """

    def __init__(self, link: ServerLink, keep_seconds: float) -> None:
        super().__init__(link.stopped)
        self._link, self._keep = link, keep_seconds + _SPARE
        self._deadline = math.inf

    def sessions(self) -> dict[int, Session]:
        """The nodes that are there; one that was started anew has another session."""
        return self._link.nodes()

    def get_node_ids(self) -> list[int]:
        """All node ids, sorted; a SuperLink knows nodes by random numbers."""
        return sorted(self.sessions())

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages and return their ids; an empty one for a message that could not be left for its node."""
        ids = []
        for message in messages:
            message.metadata.ttl = self._keep
            ids.append(self._link.push(message))
        return ids

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """As the base says; a reply that is still on its way at the end of the time is given up, too."""
        self._deadline = math.inf if timeout is None else time.monotonic() + timeout
        return super().send_and_receive(messages, timeout=timeout)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that are there; reasons of errors in one line."""
        replies = self._link.pull(message_ids, self._deadline)
        for reply in replies:
            if reply.has_error():
                reply.error = Error(reply.error.code, one_line(reply.error.reason or "no reason given"))
        return replies

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
