"""Made-up measurements, and a clock that moves when it is told to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedem_flwr.bench.document import Document, Request
from fedem_flwr.bench.machine import Machine
from fedem_flwr.bench.rows import Row, Series
from fedem_flwr.bench.timing import Clock

MACHINE = Machine(
    processor="a processor", cores=2, memory=1 << 30, system="Linux", versions={"python": "3.11"}, load=0.5
)


@dataclass
class Told:
    """Seconds so far, by the wall; the processor works half of the time."""

    now: float = 0.0

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.now, lambda: self.now / 2)

    def spend(self, seconds: float) -> None:
        self.now += seconds


def row_of(
    name: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    stick: Sequence[float] | None = None,
    size: int | None = None,
    setting: str = "small",
) -> Row:
    """A ratio whose processor seconds are those of the clock."""
    sides = [Series(label="ours", wall=ours, cpu=ours, bytes=size), Series(label="theirs", wall=theirs, cpu=theirs)]
    yardstick = None if stick is None else Series(label="yardstick", wall=stick, cpu=stick)
    return Row(name=name, what="does", setting=setting, kind="ratio", series=tuple(sides), yardstick=yardstick)


def growth_of(name: str, sizes: Sequence[float], exponents: Sequence[float]) -> Row:
    """A growth with these exponents, turn by turn."""
    series = [
        Series(label=str(size), wall=[size**e for e in exponents], cpu=[size**e for e in exponents]) for size in sizes
    ]
    return Row(name=name, what="grows", setting="small", kind="growth", series=tuple(series), sizes=tuple(sizes))


def drawn(draw: np.random.Generator, noise: str, turns: int, scale: float = 1.0) -> list[float]:
    """Seconds of so many turns, by a kind of noise."""
    kinds = {
        "little": lambda: np.exp(0.1 * draw.normal(size=turns)),
        "much": lambda: np.exp(0.8 * draw.normal(size=turns)),
        "tails": lambda: 1 + 0.2 * draw.pareto(1.2, size=turns),
        "two ways": lambda: np.where(draw.random(turns) < 0.3, 3.0, 1.0) * np.exp(0.01 * draw.normal(size=turns)),
    }
    return [float(each) for each in scale * kinds[noise]()]


def document_of(rows: Sequence[Row], machine: Machine = MACHINE, quick: bool = True, threads: int = 2) -> Document:
    names = tuple(row.name for row in rows)
    request = Request(quick=quick, threads=threads, turns=rows[0].turns if rows else 7, names=names)
    return Document(
        version="1", command="fedem bench", began="2026-01-01", finished=True, request=request, machine=machine
    ).model_copy(update={"rows": tuple(rows)})


def measured(seed: int, noise: str, turns: int = 7, rows: int = 8, slow: float = 1.0, busy: float = 1.0) -> Document:
    """A program whose first row is so many times as slow, on a machine that makes everything so many times as slow."""
    draw = np.random.default_rng(seed)
    made = []
    for place in range(rows):
        ours = drawn(draw, noise, turns, busy * (slow if place == 0 else 1.0))
        made.append(row_of(f"row/{place}", ours, drawn(draw, noise, turns, busy), drawn(draw, noise, turns, busy)))
    made.append(growth_of("growth/n", (1, 2, 4), [1 + 0.05 * draw.normal() for _ in range(turns)]))
    return document_of(made)
