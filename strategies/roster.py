"""The roll of nodes: who is there, which users each hosts, whose word counts, and what was lost.

Where nodes are processes on a network they come, go and come back. A run goes on with those that are there.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from fedem_flwr.config import Config
from fedem_flwr.contract.fields import Named
from fedem_flwr.errors import FedemError
from fedem_flwr.messages.admission import Admission, AdmitAll, greetings, meeting_seconds, sessions_of
from fedem_flwr.messages.uploads import Failure, arrays_of, introduces
from fedem_flwr.text import one_line

from .declared import Behind, Declared

_NOBODY = np.empty(0, dtype=np.int64)
_SILENCE = 30.0  # seconds after which a node that has not answered is asked once more, in passing
_PASSING = 2.0  # seconds that a round waits for such a node


@dataclass
class Member:
    """A node that is there.

    Attributes:
        session: which start of the node this is.
        users: those that it hosts; nobody: it was refused, or has not said yet.
        claim: its introduction, where another node hosts users that it names: it counts once that node has left.
        ask_at: when it is asked again, by the monotonic clock; None: it has answered.
    """

    session: Hashable
    users: np.ndarray
    claim: Named | None = None
    ask_at: float | None = 0.0


class NodeRoster:
    """Mixed into strategies whose clients introduce themselves.

    Attributes:
        users: n, how many users there are; set before `meet`, which believes no node that claims others.
        failures: contributions left out so far; the run goes on without them.
        samples: (n,) training interactions of each user, known after `meet`.
        undeclared: how many metrics that nobody had asked for came from nodes, by name; they are dropped.
        stateless: whether the clients keep nothing between rounds.
    """

    stateless: bool = False

    def __init__(self, config: Config, items: int) -> None:
        self.config, self.items = config, items
        self.users = 0
        self.failures: list[Failure] = []
        self.samples: np.ndarray = _NOBODY
        self._guests: dict[int, Member] = {}
        self._nodes: dict[int, np.ndarray] = {}  # users of the guests that host some, by first user
        self._away: dict[str, np.ndarray] = {}  # users of nodes that were met and are not there now, by name
        self._names: dict[int, str] = {}
        self._open: dict[int, np.ndarray] = {}  # nodes that have not answered yet
        self._declared = Declared()  # what may come in answer to what was sent last
        self.undeclared: dict[str, int] = {}

    def meet(self, grid: Grid, timeout: float, welcome: Admission | None = None, round_: int = 0) -> None:
        """Ask every node that came since the last time which users it hosts and how much data each has.

        Where nodes come and go, it is called before every round. A node that names users which another node hosts, or
        that are not its own, is refused and left out. One that does not answer is asked again later, and hardly waited
        for.

        Args:
            round_: the last one that is done.

        Raises:
            FedemError: no node answered.
        """
        if not len(self.samples):
            self.samples = np.zeros(self.users, dtype=np.int64)
        present, first = sessions_of(grid), not self._guests and not self._away
        for node, guest in list(self._guests.items()):
            if node not in present or present[node] != guest.session:  # what it said before no longer holds
                del self._guests[node]
                if len(guest.users):
                    self._away[_named(guest.users)] = guest.users
        new = [node for node in present if node not in self._guests]
        for node in new:
            self._guests[node] = Member(present[node], _NOBODY)
        seconds = timeout if welcome is None else meeting_seconds(len(new), timeout)
        welcome = welcome or AdmitAll()
        self._ask(grid, new, seconds, welcome, round_, first)
        now = time.monotonic()
        silent = [node for node, one in self._guests.items() if one.ask_at is not None and one.ask_at <= now]
        self._ask(grid, [node for node in silent if node not in new], min(timeout, _PASSING), welcome, round_, first)
        for node, guest in self._guests.items():
            if guest.claim is not None and not self._taken(guest.claim["users"]):
                self._seat(node, guest.claim, round_, first)
        hosts = [(node, guest.users) for node, guest in self._guests.items() if len(guest.users)]
        self._nodes = dict(sorted(hosts, key=lambda entry: int(entry[1][0])))
        if not self._nodes and not self._away:
            reason = f": {self.failures[-1].reason}" if self.failures else ""
            raise FedemError(f"no node answered{reason}")

    def _ask(self, grid: Grid, nodes: list[int], seconds: float, welcome: Admission, round_: int, first: bool) -> None:
        """Greet nodes, and take in those that answer."""
        if not nodes:
            return
        self._open = dict.fromkeys(nodes, _NOBODY)
        replies = grid.send_and_receive(greetings(welcome, nodes, round_), timeout=seconds)
        for reply in self._answers(0 if first else round_, replies):  # nodes are met again on resuming
            node = reply.metadata.src_node_id
            self._guests[node].ask_at = None
            self._admit(reply, node, welcome, round_, first)
        for node in self._open:
            self._guests[node].ask_at = time.monotonic() + _SILENCE

    def _admit(self, reply: Message, node: int, welcome: Admission, round_: int, first: bool) -> None:
        """Take in a node that has introduced itself, or name what is wrong with it."""
        arrays = arrays_of(reply)
        if arrays is None or not introduces(arrays, self.users):
            self.fail(round_, node, "does not say properly which users it hosts")
            return
        users = arrays["users"]
        if not len(users):  # more nodes than users
            return
        objection = welcome.objection(self._guests[node].session, users)
        if objection:
            self.fail(round_, _named(users), objection)
        elif taken := self._taken(users):
            self.fail(round_, _named(users), taken)
            self._guests[node].claim = arrays
        else:
            self._seat(node, arrays, round_, first)

    def _seat(self, node: int, arrays: Named, round_: int, first: bool) -> None:
        """Let a node host the users that it has named."""
        users, guest = arrays["users"], self._guests[node]
        guest.users, guest.claim = users, None
        self._names[node] = name = _named(users)
        self.samples[users] = arrays["samples"]
        back = self._away.pop(name, None) is not None or first  # else it is late, and has never been there
        stored = arrays.get("stored")
        if round_ > 0 and back and not self.stateless and stored is not None and not stored.any():
            self.fail(round_, node, "came back without its private state: its users begin anew")

    def _taken(self, users: np.ndarray) -> str:
        """Whether other nodes host some of these users; those that are away come back with the users they had."""
        here = [guest.users for guest in self._guests.values() if len(guest.users)]
        away = [hosted for hosted in self._away.values() if not np.array_equal(hosted, users)]
        for hosted in (*here, *away):
            if users[-1] >= hosted[0] and hosted[-1] >= users[0]:
                return f"claims users that the {_named(hosted)} hosts: refused"
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
        """Answers with their metrics, where these are there and can be true."""
        for reply in self._answers(round_, replies):
            node = reply.metadata.src_node_id
            metrics, dropped = self._declared.read(reply.content.metric_records.get("metrics", {}))
            if dropped:
                name = self._names.get(node, f"node {node}")
                self.undeclared[name] = self.undeclared.get(name, 0) + dropped
            if problem := self._declared.problem(metrics, self._behind(node)):
                self.fail(round_, node, problem)
            else:
                yield reply, metrics

    def _behind(self, node: int) -> Behind:
        """What a node's metrics are held against."""
        users = self._nodes[node]
        interactions = int(self.samples[users].sum())
        examples = (interactions + len(users)) * (1 + self.config.local.negatives)
        return Behind(len(users), interactions, examples, self.items)

    def dropped(self) -> list[str]:
        """What is said of metrics that nobody had asked for."""
        return [
            f"the {name} sent {count:,} metrics that nobody had asked for: they were left out"
            for name, count in self.undeclared.items()
        ]

    def fail(self, round_: int, node: int | str, reason: str) -> None:
        """Count a contribution as lost, of a node known by its number or its name."""
        name = node if isinstance(node, str) else self._names.get(node, f"node {node}")
        self.failures.append(Failure(round_, name, one_line(reason, 300)))


def _named(users: np.ndarray) -> str:
    return f"node of users {users[0]}–{users[-1]}"
