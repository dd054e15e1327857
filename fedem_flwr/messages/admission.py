"""How server and nodes get to know each other: what a node is told, and whether it may host the users that it names."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Protocol

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedem_flwr.errors import FedemError

_MEETING, _EACH = 30.0, 0.5  # seconds that a meeting takes at most: in any case, and for each node


class TooFewContributions(FedemError):
    """A round got fewer contributions than it needs; it may be repeated, as nothing has been made of them."""


class Admission(Protocol):
    """What a runtime adds to the introduction of nodes."""

    def greeting(self, round_: int) -> RecordDict:
        """What a node is told that is met before `round_`."""

    def objection(self, session: Hashable, users: np.ndarray) -> str:
        """Why a node with this session may not host these users; empty if it may."""


class AdmitAll:
    """Nodes that this process started itself: they have the run's directory, and are who they say."""

    def greeting(self, round_: int) -> RecordDict:
        """Nothing."""
        return RecordDict()

    def objection(self, session: Hashable, users: np.ndarray) -> str:
        """None."""
        return ""


def meeting_seconds(nodes: int, timeout: float) -> float:
    """How long nodes that have just come are waited for: they have little to do, but may be many."""
    return min(timeout, _MEETING + _EACH * nodes)


def sessions_of(grid: Grid) -> Mapping[int, Hashable]:
    """The nodes that are there; one that was started anew has another session, where the grid can tell."""
    found: Mapping[int, Hashable] = (
        grid.sessions() if hasattr(grid, "sessions") else dict.fromkeys(grid.get_node_ids(), True)
    )
    return found


def greetings(welcome: Admission, nodes: list[int], round_: int) -> Iterator[Message]:
    """A message to each node; its reply says which users it hosts."""
    return (Message(welcome.greeting(round_), node, "query", group_id=str(round_)) for node in nodes)
