"""Whether a program got slower: two measurements, each row against itself, beyond the noise of both.

A row has up to three tests. Against the other side: turn by turn, how many times as fast ours was, by the clock and by
seconds of the processor (of a growth: the exponent); both sides of a turn met the same machine, so this holds between
machines, too. By seconds: ours in yardsticks, work that nothing of this package is in; that holds on one machine alone,
if it had little else to do both times.

A test asks for the exact chance that so many of the new turns would be worse than the old ones, were all drawn alike
(Mann and Whitney, one-sided); chances are corrected for there being several (Holm). Slower is what stays below 5 %, if
the median changed by more than a margin: so equal programs under equal noise are called slower, anywhere in the table,
in at most 5 of 100 comparisons.

Bytes are no measurements: more are more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from fedem_flwr.bench.document import Document
from fedem_flwr.bench.rows import Row
from fedem_flwr.bench.statistics import chance_of_larger, least_chance
from fedem_flwr.errors import InputError
from fedem_flwr.evaluation.significance import holm

LEVEL = 0.05  # of all tests of a comparison together
RATIO_MARGIN = math.log(1.05)  # changes that nobody would act on
EXPONENT_MARGIN = 0.1
PACE_MARGIN = math.log(1.25)  # a yardstick is not exactly as busy as what is measured

Word = Literal["slower", "faster", "same", "not judged"]
Against = Literal["ratio", "cpu ratio", "exponent", "seconds", "bytes"]


@dataclass(frozen=True)
class Verdict:
    """One test of one row.

    Attributes:
        name: of the row.
        by: what was compared: ratios by the clock, and of the processor's seconds (cpu); exponents; ours in yardsticks
            (seconds); bytes.
        before, now: medians: how many times as fast as the other side, the exponent, yardsticks, or bytes.
        chance: of such a change by noise alone, corrected for all tests; None where nothing was tested.
        word: what follows.
        why: nothing follows, in words.
    """

    name: str
    by: Against
    before: float
    now: float
    chance: float | None
    word: Word
    why: str = ""


@dataclass(frozen=True)
class Compared:
    """What a comparison found.

    Attributes:
        verdicts: one a test.
        remarks: what a reader must know first.
    """

    verdicts: tuple[Verdict, ...]
    remarks: tuple[str, ...]

    @property
    def slower(self) -> tuple[Verdict, ...]:
        """The regressions."""
        return tuple(each for each in self.verdicts if each.word == "slower")


@dataclass(frozen=True)
class _Test:
    """Values of which larger ones are slower; before and now as they are shown."""

    name: str
    by: Against
    old: Sequence[float]
    new: Sequence[float]
    before: float
    now: float
    margin: float


def refuse_other(old: Document, quick: bool, threads: int) -> None:
    """Refuse, before anything is measured, what could not be compared.

    Raises:
        InputError: other sizes, or other threads.
    """
    if old.request.quick != quick:
        had, has = ("with", "without") if old.request.quick else ("without", "with")
        raise InputError(f"the older measurement was made {had} --quick, this one is {has}: their sizes differ")
    if old.request.threads != threads:
        raise InputError(
            f"the older measurement had {old.request.threads} threads a side, and this one {threads}: "
            f"measure with --threads {old.request.threads}"
        )


def compared(old: Document, new: Document) -> Compared:
    """Judge every row that both have.

    Raises:
        InputError: they differ in sizes or threads, or have no row in common.
    """
    refuse_other(old, new.request.quick, new.request.threads)
    before = {row.name: row for row in old.rows}
    both = [(before[row.name], row) for row in new.rows if row.name in before]
    if not both:
        raise InputError("the two measurements have no benchmark in common: nothing can be compared")
    alike = [(a, b) for a, b in both if a.setting == b.setting and a.kind == b.kind]
    same_machine = old.machine.same_as(new.machine)
    seconds = same_machine and old.machine.quiet and new.machine.quiet
    tests = [test for a, b in alike for test in _tests(a, b, seconds=seconds)]
    verdicts = [*_judged(tests), *(verdict for a, b in alike for verdict in _bytes(a, b))]
    return Compared(tuple(verdicts), (*_remarks(old, new, same_machine), *_unlike(old, new, both)))


def _tests(old: Row, new: Row, *, seconds: bool) -> Iterator[_Test]:
    ways: tuple[tuple[Against, Sequence[float], Sequence[float], float], ...] = (
        ("exponent", old.exponents, new.exponents, EXPONENT_MARGIN),
        ("ratio", old.ratios, new.ratios, RATIO_MARGIN),
        ("cpu ratio", old.ratios_cpu, new.ratios_cpu, RATIO_MARGIN),
        ("seconds", old.pace if seconds else (), new.pace, PACE_MARGIN),
    )
    for by, before, now, margin in ways:
        if before and now:
            worse = _WORSE[by]
            yield _Test(new.name, by, [*map(worse, before)], [*map(worse, now)], median(before), median(now), margin)


def _slowness(ratio: float) -> float:
    return -math.log(ratio)


_WORSE: Mapping[Against, Callable[[float], float]] = {  # of a value: larger is slower
    "exponent": float,
    "ratio": _slowness,
    "cpu ratio": _slowness,
    "seconds": math.log,
}


def _judged(tests: Sequence[_Test]) -> Iterator[Verdict]:
    worse = holm([chance_of_larger(test.new, test.old) for test in tests])
    better = holm([chance_of_larger(test.old, test.new) for test in tests])
    for test, slower, faster in zip(tests, worse, better, strict=True):
        change = median(test.new) - median(test.old)
        word: Word = "same"
        if least_chance(len(test.new), len(test.old)) * len(tests) > LEVEL:
            why = f"{len(test.old)} and {len(test.new)} turns are too few for {len(tests)} tests"
            yield Verdict(test.name, test.by, test.before, test.now, None, "not judged", why)
            continue
        if slower <= LEVEL and change > test.margin:
            word = "slower"
        elif faster <= LEVEL and -change > test.margin:
            word = "faster"
        yield Verdict(test.name, test.by, test.before, test.now, min(slower, faster), word)


def _bytes(old: Row, new: Row) -> Iterator[Verdict]:
    if old.ours.bytes is not None and new.ours.bytes is not None:
        a, b = old.ours.bytes, new.ours.bytes
        yield Verdict(new.name, "bytes", a, b, None, "slower" if b > a else "faster" if b < a else "same")


def _remarks(old: Document, new: Document, same_machine: bool) -> Iterator[str]:
    if not same_machine:
        yield (
            f"another machine ({old.machine.processor}, {old.machine.cores} cores; now {new.machine.processor}, "
            f"{new.machine.cores}): compared by ratios and exponents alone, not by seconds"
        )
    elif not (old.machine.quiet and new.machine.quiet):
        loads = " and ".join(
            "unknown" if each.load is None else f"{each.load:g}" for each in (old.machine, new.machine)
        )
        yield (
            f"the machine was busy (load {loads} at the start, {new.machine.cores} cores): compared by ratios and "
            "exponents alone, not by seconds"
        )
    changed = [
        f"{name} {old.machine.versions.get(name, 'none')} -> {version}"
        for name, version in new.machine.versions.items()
        if old.machine.versions.get(name) != version
    ]
    if changed:
        yield f"other versions: {', '.join(changed)}"
    if not old.finished:
        yield "the older measurement was cut short"


def _unlike(old: Document, new: Document, both: Sequence[tuple[Row, Row]]) -> Iterator[str]:
    """What was not compared."""
    for a, b in both:
        if a.setting != b.setting or a.kind != b.kind:
            yield f"{b.name}: other sizes ({a.setting}; now {b.setting}), not compared"
    common = {b.name for _, b in both}
    for where, rows in (("the older measurement", old.rows), ("this one", new.rows)):
        if alone := [row.name for row in rows if row.name not in common]:
            yield f"only in {where}: {', '.join(alone)}"
