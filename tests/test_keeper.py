"""Processes that end: started anew, less and less often, and given up where they do not stay up."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.network import keeper
from fedem_flwr.network.keeper import RESTARTS, WINDOW, Keeper


@dataclass
class Fake:
    """A process that ends `lasts` seconds after each start, with a code."""

    name: str
    clock: Any
    lasts: float = 1e9
    code: int = -9
    began: float = 0.0
    log: Path = Path("a.log")
    starts: list[float] = field(default_factory=list)

    def ended(self) -> int | None:
        return self.code if self.clock.now >= self.began + self.lasts else None

    def start(self) -> None:
        self.began = self.clock.now
        self.starts.append(self.began)

    def reason(self) -> str:
        return "it said so"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    made = SimpleNamespace(now=0.0)
    monkeypatch.setattr(keeper, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


def looks(kept: Keeper, clock: Any, seconds: float) -> None:
    for _ in range(int(seconds * 10)):
        clock.now += 0.1
        kept.look()


def test_a_node_that_dies_once_in_a_while_is_always_started_anew(clock: Any) -> None:
    """However many times: only what dies soon after each start is given up."""
    node: Any = Fake("node-1", clock, lasts=WINDOW / RESTARTS + 1)
    looks(Keeper(None, [node, Fake("node-2", clock)]), clock, 10 * WINDOW)  # type: ignore[list-item]
    assert len(node.starts) > 2 * RESTARTS and node.starts[0] - node.lasts < 0.2


@pytest.mark.parametrize(("code", "least"), [(-9, 0.0), (1, 0.0), (2, 10.0)])
def test_a_node_that_does_not_stay_up_is_given_up_alone(
    code: int, least: float, clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    node: Any = Fake("node-1", clock, lasts=0.5, code=code)
    looks(Keeper(None, [node, Fake("node-2", clock)]), clock, WINDOW)  # type: ignore[list-item]
    assert len(node.starts) == RESTARTS
    pauses = [after - before - node.lasts for before, after in zip([0.0, *node.starts], node.starts, strict=False)]
    rounded = [round(pause) for pause in pauses]
    assert rounded == sorted(rounded) and rounded[0] >= least and rounded[-1] >= 8
    assert "given up, the run goes on without: it said so (log: a.log)" in caplog.text


def test_the_run_ends_where_no_node_or_no_superlink_stays_up(clock: Any) -> None:
    nodes: Any = [Fake(f"node-{node}", clock, lasts=0.5) for node in range(2)]
    with pytest.raises(FedemError, match="no node stays up: it said so"):
        looks(Keeper(None, nodes), clock, WINDOW)
    superlink: Any = Fake("SuperLink", clock, lasts=0.5)
    with pytest.raises(FedemError, match="the SuperLink keeps ending"):
        looks(Keeper(superlink, [Fake("node-1", clock, began=clock.now)]), clock, WINDOW)  # type: ignore[list-item]
    assert len(superlink.starts) == RESTARTS


def test_input_that_every_node_finds_wrong_is_the_users(clock: Any) -> None:
    nodes: Any = [Fake(f"node-{node}", clock, lasts=0.5, code=2) for node in range(2)]
    with pytest.raises(InputError, match="no node stays up"):
        looks(Keeper(None, nodes), clock, 5)
    assert nodes[0].starts == []
