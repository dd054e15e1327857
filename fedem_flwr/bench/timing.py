"""Taking turns: each side once, then each once more, so that whatever else the machine does meets all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fedem_flwr.bench.rows import Series
from fedem_flwr.pulse import watched_by

LEAST_SECONDS = 0.05  # of the processor; a call that takes less is repeated, and the mean taken
_MOST_CALLS = 10_000
_PATIENCE = 10  # times as long as a sample takes by the clock, at most, where calls are short
_SMALLEST = 1e-9  # seconds; a clock may not have moved


@dataclass(frozen=True)
class Clock:
    """Seconds by the wall and of this process's processors, from any start."""

    wall: Callable[[], float] = time.perf_counter
    cpu: Callable[[], float] = time.process_time


CLOCK = Clock()


@dataclass(frozen=True)
class Side:
    """One way to do some work.

    Attributes:
        label: what it is called.
        call: does it once, and takes what `prepare` gives, if there is that.
        times: what a call's seconds are multiplied by, where it does but a part of the work.
        bytes: what it sends or keeps, where that is compared.
        prepare: makes what a call takes, anew for each; not timed.
    """

    label: str
    call: Callable[..., object]
    times: float = 1.0
    bytes: int | None = None
    prepare: Callable[[], object] | None = None


def in_turns(
    sides: Sequence[Side],
    turns: int,
    clock: Clock,
    tell: Callable[[int], None] = lambda turn: None,
    least: float = LEAST_SECONDS,
) -> tuple[Series, ...]:
    """Call each side once to warm up, then all of them in turns.

    Args:
        turns: samples of each side.
        tell: hears how many turns are over.
        least: seconds of the processor that a sample takes at least; quick calls are repeated.
    """
    with watched_by(None):  # what is measured does not show its own progress
        for side in sides:
            _timed(side, clock, 0.0)
    wall: list[list[float]] = [[] for _ in sides]
    cpu: list[list[float]] = [[] for _ in sides]
    for turn in range(turns):
        for place, side in enumerate(sides):
            with watched_by(None):
                seconds, busy = _timed(side, clock, least)
            wall[place].append(seconds)
            cpu[place].append(busy)
        tell(turn + 1)
    return tuple(
        Series(label=side.label, wall=tuple(wall[place]), cpu=tuple(cpu[place]), bytes=side.bytes)
        for place, side in enumerate(sides)
    )


def _timed(side: Side, clock: Clock, least: float) -> tuple[float, float]:
    """Seconds of the work, by the wall and of the processor: the mean of as many calls as make a sample.

    The processor's seconds say when it is long enough: on a busy machine a call may wait for its turn.
    """
    wall, cpu, calls = 0.0, 0.0, 0
    while calls == 0 or (calls < _MOST_CALLS and cpu < least and wall < _PATIENCE * least):
        given = () if side.prepare is None else (side.prepare(),)
        began, busy = clock.wall(), clock.cpu()
        side.call(*given)
        wall, cpu, calls = wall + clock.wall() - began, cpu + clock.cpu() - busy, calls + 1
    share = side.times / calls
    return max(_SMALLEST, share * wall), max(_SMALLEST, share * cpu)


def yardstick() -> Side:
    """Work that nothing of this package is in: a matrix product, exponentials, and a copy through memory."""
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(256, 256, generator=draw), torch.rand(1 << 18, generator=draw)
    source, target = torch.rand(1 << 20, generator=draw), torch.empty(1 << 20)

    def call() -> None:
        torch.exp(b)
        target.copy_(source)
        torch.mm(a, a)

    return Side("yardstick", call)
