"""The measurement: one benchmark after the other, each result on the disk before the next begins."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow
import torch

from fedem_flwr.bench.document import Document
from fedem_flwr.bench.rows import Row
from fedem_flwr.bench.suite import Benchmark, Setting
from fedem_flwr.bench.timing import CLOCK, LEAST_SECONDS, Clock
from fedem_flwr.errors import FedemError
from fedem_flwr.pulse import tell


def carry_out(
    document: Document,
    benchmarks: Sequence[Benchmark],
    out: Path,
    *,
    on_start: Callable[[int, Benchmark], None] = lambda place, benchmark: None,
    on_row: Callable[[Row], None] = lambda row: None,
    on_left_out: Callable[[str, str], None] = lambda name, why: None,
    clock: Clock = CLOCK,
    least: float = LEAST_SECONDS,
) -> Document:
    """Measure what the document lacks, and write it after each.

    What cannot be measured here, or fails, is left out with its reason; the rest goes on.

    Args:
        benchmarks: those that were asked for, in order.
        out: folder of bench.json.
        on_start, on_row, on_left_out: told what comes, what was found, and what is missing.
        clock: says how late it is. least: seconds of a sample.

    Returns:
        the document, finished.
    """
    request = document.request
    with _threads(request.threads):
        for place, benchmark in enumerate(benchmarks, 1):
            if benchmark.name in document.done:
                continue
            on_start(place, benchmark)
            why = benchmark.missing(quick=request.quick)
            if why is None:
                words = f"{place} of {len(benchmarks)}: {benchmark.name}"

                def told(turn: int, words: str = words) -> None:
                    tell(words, turn, request.turns)

                with tempfile.TemporaryDirectory(prefix="fedem-bench-") as folder:
                    setting = Setting(request.quick, request.threads, request.turns, Path(folder), clock, told, least)
                    try:
                        row = benchmark.measure(benchmark, setting)
                    except FedemError as error:
                        why = str(error)
                gc.collect()  # its tables, before the next one's
            if why is None:
                document = document.with_row(row)
                on_row(row)
            else:
                document = document.without(benchmark.name, why)
                on_left_out(benchmark.name, why)
            document.write(out)
    document = document.model_copy(update={"finished": True})
    document.write(out)
    return document


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many for torch, which our own threads follow, and for pyarrow; afterwards as before."""
    torch_had, arrow_had = torch.get_num_threads(), pyarrow.cpu_count()
    torch.set_num_threads(count)
    pyarrow.set_cpu_count(count)
    try:
        yield
    finally:
        torch.set_num_threads(torch_had)
        pyarrow.set_cpu_count(arrow_had)
