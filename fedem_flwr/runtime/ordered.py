"""A grid whose replies come in the order of the messages: sums of floats are then the same in every repetition."""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator

from flwr.app import Message

from fedem_flwr.errors import FedemError
from fedem_flwr.runtime.own_grid import OwnGrid

PULL_INTERVAL = 0.05  # seconds between looks for replies; Flower's simulation hands out messages every 0.1 s


class OrderedGrid(OwnGrid):
    """What grids share whose nodes are other processes.

    Args:
        stopped: set when no more replies can come.
    """

    def __init__(self, stopped: threading.Event) -> None:
        super().__init__()
        self._stopped = stopped

    @abstractmethod
    def get_node_ids(self) -> list[int]:
        """All node ids, sorted."""

    @abstractmethod
    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages and return their ids."""

    @abstractmethod
    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that are there, to messages with these ids."""

    def again_at(self, reply: Message, since: float, now: float) -> float | None:
        """When a message is sent again because of this reply to it; None: the reply counts.

        Args:
            since: when the first such reply to it came; `now` for the first.
        """
        return None

    def to_repeat(self, sent: list[Message], waiting: Iterable[int]) -> list[int]:
        """Places of messages that are sent again though nothing came back: their node was started anew meanwhile."""
        return []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send all messages; iterate over the replies in the order of the messages, as soon as that order allows.

        Nodes whose reply is not there ``timeout`` seconds after sending are left out (they work on, in vain).
        """
        sent = list(messages)
        deadline = None if timeout is None else time.monotonic() + timeout
        waiting = {message_id: place for place, message_id in enumerate(self.push_messages(sent)) if message_id}
        return self._in_order(sent, waiting, deadline)

    def _in_order(self, sent: list[Message], waiting: dict[str, int], deadline: float | None) -> Iterator[Message]:
        """Yield the replies to ``sent`` by their place in it; ``waiting`` has the places by message id."""
        arrived: dict[int, Message] = {}
        first: dict[int, float] = {}  # when a reply first asked for another try
        again: dict[int, float] = {}  # when to try once more
        place = 0
        while waiting or again:
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                break
            if self._stopped.is_set():
                raise FedemError("the nodes were stopped before all replies had come")
            for reply in self.pull_messages(list(waiting)):
                replied = waiting.pop(reply.metadata.reply_to_message_id, None)
                if replied is None:
                    continue  # to nothing that still waits
                if replied in arrived or replied < place:
                    continue  # the second reply to one that was sent twice
                when = self.again_at(reply, first.setdefault(replied, now), now)
                if when is None:
                    arrived[replied] = reply
                    again.pop(replied, None)
                elif replied not in waiting.values():  # else the next copy is on its way already
                    again[replied] = when
            due = [position for position, when in again.items() if when <= now]
            for position in (*due, *self.to_repeat(sent, waiting.values())):
                sent[position].metadata.delivered_at = ""
                message_id = self.push_messages([sent[position]])[0]
                if message_id:
                    again.pop(position, None)
                    waiting[message_id] = position
                else:  # its node is not there yet
                    again[position] = now + PULL_INTERVAL
            while place in arrived:
                yield arrived.pop(place)
                place += 1
            waiting = {message: at for message, at in waiting.items() if at >= place and at not in arrived}
            if waiting or again:
                self._stopped.wait(PULL_INTERVAL)
        yield from (arrived[position] for position in sorted(arrived))
