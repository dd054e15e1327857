"""The suite: all benchmarks in the order in which they are measured."""

from __future__ import annotations

from collections.abc import Sequence

from fedem_flwr.bench.asking import SERVING
from fedem_flwr.bench.engines import ENGINES
from fedem_flwr.bench.files_read import READING
from fedem_flwr.bench.sending import MESSAGES
from fedem_flwr.bench.simulated import SIMULATION
from fedem_flwr.bench.suite import Benchmark
from fedem_flwr.bench.weighing import AGGREGATION
from fedem_flwr.bench.whole import WHOLE
from fedem_flwr.errors import InputError, suggest

BENCHMARKS: tuple[Benchmark, ...] = (*ENGINES, *AGGREGATION, *MESSAGES, *READING, *SERVING, *WHOLE, *SIMULATION)


def chosen(only: Sequence[str]) -> tuple[Benchmark, ...]:
    """The benchmarks of some names or families, in the suite's order; all of them where none is named.

    Raises:
        InputError: a name that none has.
    """
    families = {each.name.partition("/")[0] for each in BENCHMARKS}
    known = families | {each.name for each in BENCHMARKS}
    for name in only:
        if name not in known:
            raise InputError(f"--only {name}: no benchmark has this name{suggest(name, known)}; see --list")
    return tuple(each for each in BENCHMARKS if not only or each.name in only or each.name.partition("/")[0] in only)
