"""Keeps a run's processes going: those that end are started anew, and one that does not stay up is given up."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.network.processes import Child

RESTARTS = 5  # within WINDOW, after which a process is given up
WINDOW = 300.0  # seconds
_SHORTEST, _LONGEST = 1.0, 30.0  # seconds until it is started for the second time, and at most
_WRONG = 10.0  # seconds until one is started again that found its input wrong, such as a disk without space
_INPUT_ERROR = 2  # exit code

log = logging.getLogger("fedem.network")


@dataclass
class Kept:
    """A process that is started anew when it ends.

    Attributes:
        restarts: when that was done, within the last `WINDOW`. due: when it will be done. given_up: why it will not.
    """

    child: Child
    restarts: deque[float] = field(default_factory=deque)
    due: float | None = None
    given_up: str = ""

    def look(self, now: float) -> None:
        """Start it anew where that is due, or give it up."""
        code = self.child.ended()
        if code is None or self.given_up:
            return
        while self.restarts and now - self.restarts[0] > WINDOW:
            self.restarts.popleft()
        if self.due is None:
            before = len(self.restarts)
            if before >= RESTARTS:
                self.given_up = f"{self.child.reason()} (log: {self.child.log})"
                return
            pause = min(_SHORTEST * 2 ** (before - 1), _LONGEST) if before else 0.0
            pause = max(pause, _WRONG) if code == _INPUT_ERROR else pause
            when = f"in {pause:.0f} s" if pause else "now"
            why = f"signal {-code}" if code < 0 else f"exit code {code}: {self.child.reason()}"
            log.warning("the %s ended (%s); it is started anew %s", self.child.name, why, when)
            self.due = now + pause
        if now >= self.due:
            self.restarts.append(now)
            self.due = None
            try:
                self.child.start()
            except OSError as error:  # no memory, no processes left
                log.warning("the %s cannot be started: %s", self.child.name, error)

    @property
    def wrong(self) -> bool:
        """Whether it has ended because its input is wrong."""
        return self.child.ended() == _INPUT_ERROR


class Keeper:
    """Of a SuperLink and its nodes.

    Args:
        superlink: None where it runs elsewhere. nodes: those that run here.
    """

    def __init__(self, superlink: Child | None, nodes: Sequence[Child]) -> None:
        self._superlink = Kept(superlink) if superlink is not None else None
        self._nodes = [Kept(node) for node in nodes]

    def look(self) -> None:
        """Start anew what has ended. A node that does not stay up costs its users' contributions, and nothing else.

        Raises:
            FedemError: the SuperLink does not stay up, or no node does. InputError: each finds its input wrong.
        """
        now = time.monotonic()
        if self._superlink is not None:
            self._superlink.look(now)
            if self._superlink.given_up:
                raise FedemError(f"the SuperLink keeps ending: {self._superlink.given_up}")
        for node in self._nodes:
            known = node.given_up
            node.look(now)
            if node.given_up and not known:
                log.warning(
                    "the %s keeps ending and is given up, the run goes on without: %s", node.child.name, node.given_up
                )
        if self._nodes and all(node.given_up or node.wrong for node in self._nodes):
            kind = InputError if all(node.wrong for node in self._nodes) else FedemError
            raise kind(f"no node stays up: {self._nodes[0].child.reason()} (log: {self._nodes[0].child.log})")
