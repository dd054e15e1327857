"""The roll of nodes: who is there, which users each hosts, whose word counts, and what was lost.

Where nodes are processes on a network they come, go and come back. A run goes on with those that are there.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from fedem_flwr.errors import FedemError
from fedem_flwr.runtime.welcome import OpenDoor, Welcome, greetings, sessions_of
from fedem_flwr.runtime.wire import plain_numbers
from strategies.uploads import Failure, arrays_of, introduces

_NOBODY = np.empty(0, dtype=np.int64)
_LONGEST_MEETING = 30.0  # seconds that a running round waits for nodes that have just come


class Roll:
    """Mixed into strategies whose clients introduce themselves.

    Attributes:
        users: n, how many users there are; set before `meet`, which believes no node that claims others.
        failures: contributions left out so far; the run goes on without them.
        samples: (n,) training interactions of each user, known after `meet`.
        stateless: whether the clients keep nothing between rounds.
    """

    stateless: bool = False

    def __init__(self) -> None:
        self.users = 0
        self.failures: list[Failure] = []
        self.samples: np.ndarray = _NOBODY
        self._nodes: dict[int, np.ndarray] = {}
        self._away: dict[int, np.ndarray] = {}  # nodes that were met and are not there now
        self._sessions: dict[int, Hashable] = {}  # of nodes that need not be asked again
        self._names: dict[int, str] = {}
        self._open: dict[int, np.ndarray] = {}  # nodes that have not answered yet

    def meet(self, grid: Grid, timeout: float, welcome: Welcome | None = None, round_: int = 0) -> None:
        """Ask every node that came since the last time which users it hosts and how much data each has.

        Where nodes come and go, it is called before every round. A node that names users which another node hosts, or
        that are not its own, is refused and left out.

        Args:
            round_: the last one that is done.

        Raises:
            FedemError: no node answered.
        """
        if not len(self.samples):
            self.samples = np.zeros(self.users, dtype=np.int64)
        present, first = sessions_of(grid), not self._sessions and not self._away
        for node in self._sessions.keys() - present.keys():
            del self._sessions[node]
            if node in self._nodes:
                self._away[node] = self._nodes.pop(node)
        asked = [node for node in present if self._sessions.get(node) != present[node]]
        for node in asked:
            if node in self._nodes:  # started anew: what it said before no longer holds
                self._away[node] = self._nodes.pop(node)
        if asked:
            self._open = dict.fromkeys(asked, _NOBODY)
            seconds = timeout if first else min(timeout, _LONGEST_MEETING)
            welcome, when = welcome or OpenDoor(), 0 if first else round_  # nodes are met again on resuming
            replies = grid.send_and_receive(greetings(welcome, asked, round_), timeout=seconds)
            for reply in self._answers(when, replies):
                node = reply.metadata.src_node_id
                self._sessions[node] = present[node]
                self._admit(reply, node, welcome, round_, first)
            self._nodes = dict(sorted(self._nodes.items(), key=lambda entry: int(entry[1][0])))
        if not self._nodes and not self._away:
            reason = f": {self.failures[-1].reason}" if self.failures else ""
            raise FedemError(f"no node answered{reason}")

    def _admit(self, reply: Message, node: int, welcome: Welcome, round_: int, first: bool) -> None:
        """Take in a node that has introduced itself, or name what is wrong with it."""
        arrays = arrays_of(reply)
        if arrays is None or not introduces(arrays, self.users):
            self.fail(round_, node, "does not say properly which users it hosts")
            return
        users = arrays["users"]
        if not len(users):  # more nodes than users
            return
        self._names[node] = _named(users)
        objection = welcome.objection(node, users) or self._taken(users)
        if objection:
            self.fail(round_, node, objection)
            if node in self._away:  # what it hosted before is missed under its own name
                self._names[node] = _named(self._away[node])
            return
        before = [away for away, hosted in self._away.items() if np.array_equal(hosted, users)]
        for away in before:  # the same users are back, under this or another number
            del self._away[away]
        stored, back = arrays.get("stored"), bool(before) or first  # else it is late, and has never been there
        if round_ > 0 and back and not self.stateless and stored is not None and not stored.any():
            self.fail(round_, node, "came back without its private state: its users begin anew")
        self._nodes[node] = users
        self.samples[users] = arrays["samples"]

    def _taken(self, users: np.ndarray) -> str:
        """Whether other nodes host some of these users; those that are away come back with the users they had."""
        for hosted in (*self._nodes.values(), *self._away.values()):
            away = any(hosted is one for one in self._away.values())
            apart = users[-1] < hosted[0] or hosted[-1] < users[0]
            if not apart and not (away and np.array_equal(hosted, users)):
                return f"claims users that the node of users {hosted[0]}–{hosted[-1]} hosts: refused"
        return ""

    def _answers(self, round_: int, replies: Iterable[Message]) -> Iterator[Message]:
        """The first reply of each node that was asked, errors left out; afterwards, who did not reply is counted."""
        waiting = self._open
        for reply in replies:
            node = reply.metadata.src_node_id
            if waiting.pop(node, None) is None:
                self.fail(round_, node, "an answer that nobody asked for, or a second one")
            elif reply.has_error():
                self.fail(round_, node, reply.error.reason or "no reason given")
            else:
                yield reply
        for node in waiting:
            self.fail(round_, node, "no reply within the round's time")

    def _valid(self, round_: int, replies: Iterable[Message]) -> Iterator[tuple[Message, Mapping[str, float]]]:
        """Answers with their metrics, where these are there and finite."""
        for reply in self._answers(round_, replies):
            record = reply.content.metric_records.get("metrics")
            metrics = {} if record is None else plain_numbers(record)
            if not metrics:
                self.fail(round_, reply.metadata.src_node_id, "a reply without metrics")
            elif not all(np.isfinite(value) for value in metrics.values()):
                self.fail(round_, reply.metadata.src_node_id, "a metric that is not finite")
            else:
                yield reply, metrics

    def fail(self, round_: int, node: int, reason: str) -> None:
        """Count a contribution as lost."""
        self.failures.append(Failure(round_, self._names.get(node, f"node {node}"), " ".join(reason.split())[:300]))


def _named(users: np.ndarray) -> str:
    return f"node of users {users[0]}–{users[-1]}"
