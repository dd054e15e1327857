"""What a benchmark is, and what it is given to measure with."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from fedem_flwr.bench.rows import Row, Series
from fedem_flwr.bench.timing import CLOCK, LEAST_SECONDS, Clock, Side, in_turns, yardstick

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Setting:
    """What a benchmark is measured with.

    Attributes:
        quick: with small sizes.
        threads: that each side may use.
        turns: samples of each side.
        folder: for what it writes; empty, and removed afterwards.
        clock: says how late it is.
        tell: hears how many turns are over.
        least: seconds that a sample takes at least.
    """

    quick: bool
    threads: int
    turns: int
    folder: Path
    clock: Clock = CLOCK
    tell: Callable[[int], None] = lambda turn: None
    least: float = LEAST_SECONDS

    def either(self, quick: Choice, full: Choice) -> Choice:
        """The first of the two with --quick, else the second."""
        return quick if self.quick else full

    def series(self, sides: Sequence[Side]) -> tuple[tuple[Series, ...], Series]:
        """Samples of the sides, and of the yardstick in the same turns."""
        *found, last = in_turns([*sides, yardstick()], self.turns, self.clock, self.tell, self.least)
        return tuple(found), last


@dataclass(frozen=True)
class Benchmark:
    """A measurement with a name.

    Attributes:
        name: family/member.
        what: is compared with what, in words.
        measure: makes its row.
        needs: packages that it takes, import name to what brings them.
        quick: whether it is measured with --quick, too.
    """

    name: str
    what: str
    measure: Callable[[Benchmark, Setting], Row]
    needs: Mapping[str, str] = field(default_factory=dict)
    quick: bool = True

    def missing(self, *, quick: bool) -> str | None:
        """Why it is not measured here; None where it is."""
        if quick and not self.quick:
            return "it takes minutes: measured without --quick"
        for package, brings in self.needs.items():
            if importlib.util.find_spec(package) is None:
                return f"{package} is not installed: {brings}"
        return None

    def ratio(self, setting: Setting, ours: Side, theirs: Side, words: str, remark: str = "") -> Row:
        """A row of two sides, measured in turns.

        Args:
            words: the sizes.
        """
        series, stick = setting.series([ours, theirs])
        return self.row(words, series, stick, remark)

    def row(self, words: str, series: Sequence[Series], stick: Series | None, remark: str = "") -> Row:
        """A row of two sides that were measured."""
        return Row(
            name=self.name,
            what=self.what,
            setting=words,
            kind="ratio",
            series=tuple(series),
            yardstick=stick,
            remark=remark,
        )

    def growth(self, setting: Setting, along: str, sides: Mapping[int, Side], words: str) -> Row:
        """A row of one side at several sizes, measured in turns.

        Args:
            along: what the size is.
            sides: size to side; a size's label is made of both.
        """
        sizes = sorted(sides)
        labelled = [replace(sides[size], label=f"{size:,} {along}") for size in sizes]
        series, stick = setting.series(labelled)
        return Row(
            name=self.name,
            what=self.what,
            setting=f"{words}; {along} {', '.join(map(str, sizes))}",
            kind="growth",
            series=series,
            sizes=tuple(map(float, sizes)),
            yardstick=stick,
        )
