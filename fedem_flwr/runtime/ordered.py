"""A grid whose replies come in the order of the messages: sums of floats are then the same in every repetition."""

from __future__ import annotations

import math
import sys
import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from flwr.app import Message

from fedem_flwr.errors import FedemError
from fedem_flwr.runtime.own_grid import OwnGrid

PULL_INTERVAL = 0.05  # seconds between looks for replies; Flower's simulation hands out messages every 0.1 s
_LONGEST_PAUSE = 0.5  # seconds between looks where nothing has come for long
_PATIENCE = 0.02  # of the time since the last reply: how long the next pause is


class OrderedGrid(OwnGrid):
    """What grids share whose nodes are other processes.

    Args:
        stopped: set when no more replies can come.
        at_a_time: how many messages are made and sent before the reply to the first of them is handed over.
    """

    def __init__(self, stopped: threading.Event, at_a_time: int = sys.maxsize) -> None:
        super().__init__()
        self._stopped, self._at_a_time = stopped, at_a_time

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

    def outlives(self, reply: Message) -> bool:
        """Whether a reply to a copy of a message says that nobody will answer the earlier ones."""
        return False

    def started_anew(self, nodes: Collection[int]) -> Collection[int]:
        """Those of these nodes that were started anew since they were sent a message, which then is sent again."""
        return ()

    def shortest_pause(self, waiting: int) -> float:
        """Seconds between two looks for the replies to so many messages."""
        return PULL_INTERVAL

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send all messages; iterate over the replies in the order of the messages, as soon as that order allows.

        Nodes whose reply is not there ``timeout`` seconds after the call are left out (they work on, in vain).
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        source = iter(messages)
        return self._in_order(self._posted(source, self._at_a_time), source, deadline)

    def _posted(self, source: Iterator[Message], most: int) -> deque[_Post]:
        """Send the next messages, at most so many; those that cannot be left for their nodes are left out."""
        posts: deque[_Post] = deque()
        while sent := list(islice(source, most - len(posts))):
            ids = self.push_messages(sent)
            posts += [_Post(message, [one]) for message, one in zip(sent, ids, strict=True) if one]
        return posts

    def _in_order(self, posts: deque[_Post], source: Iterator[Message], deadline: float) -> Iterator[Message]:
        """Yield the replies to ``posts`` and to what is left in ``source``, in that order."""
        last, over = time.monotonic(), False
        while posts and not over:
            if self._stopped.is_set():
                raise FedemError("the nodes were stopped before all replies had come")
            over = time.monotonic() >= deadline  # if so, this is the last look
            waiting = [post for post in posts if post.reply is None]
            last = time.monotonic() if self._look(waiting) else last
            if not over:
                self._send_again([post for post in waiting if post.reply is None])
            while posts and (reply := posts[0].reply) is not None:
                posts.popleft()  # the reply may be large
                yield reply
                del reply
            if not over:
                posts += self._posted(source, self._at_a_time - len(posts))
            count, now = sum(post.reply is None for post in posts), time.monotonic()
            if count and not over:
                pause = max(self.shortest_pause(count), min(_PATIENCE * (now - last), _LONGEST_PAUSE))
                self._stopped.wait(min(pause, max(0.0, deadline - now)))
        yield from (post.reply for post in posts if post.reply is not None)

    def _look(self, waiting: list[_Post]) -> bool:
        """Take the replies that are there; returns whether there were any."""
        by_id = {message_id: post for post in waiting for message_id in post.ids}
        replies = self.pull_messages(list(by_id)) if by_id else []
        for reply in replies:
            post = by_id.pop(reply.metadata.reply_to_message_id, None)
            if post is None or post.reply is not None:
                continue  # to nothing that still waits, or the second one to what was sent twice
            place = post.ids.index(reply.metadata.reply_to_message_id)
            del post.ids[0 if self.outlives(reply) else place : place + 1]
            now = time.monotonic()
            post.missed_at = now if post.missed_at is None else post.missed_at
            when = self.again_at(reply, post.missed_at, now)
            if when is None:
                vars(reply.metadata)["_group_id"] = post.message.metadata.group_id  # Flower's own errors name none
                post.reply = reply
            elif not post.ids:  # else the next copy is on its way already
                post.again = when
        return bool(replies)

    def _send_again(self, waiting: list[_Post]) -> None:
        """Send the messages again that are due, or whose node was started anew."""
        now = time.monotonic()
        anew = self.started_anew({post.node for post in waiting if post.ids})
        for post in waiting:
            due = post.again is not None and post.again <= now
            if not due and not (post.ids and post.node in anew):
                continue
            post.message.metadata.delivered_at = ""
            message_id = self.push_messages([post.message])[0]
            if message_id:
                post.ids.append(message_id)
                post.again = None
            else:  # its node is not there yet
                post.again = now + PULL_INTERVAL


@dataclass
class _Post:
    """A message and what came of it.

    Attributes:
        ids: of its copies that are on their way, or being answered, the oldest first.
        reply: that counts. missed_at: when the first reply came that did not. again: when it is sent once more.
    """

    message: Message
    ids: list[str]
    reply: Message | None = None
    missed_at: float | None = None
    again: float | None = None

    @property
    def node(self) -> int:
        """Whom it is for."""
        return self.message.metadata.dst_node_id
