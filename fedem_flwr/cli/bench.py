"""`fedem bench`: how fast it is here, and whether it got slower."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table as Shown

from fedem_flwr.cli.shared import Quiet
from fedem_flwr.errors import FedemError, InputError, Interrupted
from fedem_flwr.files import quoted

if TYPE_CHECKING:
    from fedem_flwr.bench.compare import Compared
    from fedem_flwr.bench.document import Document
    from fedem_flwr.bench.rows import Row
    from fedem_flwr.bench.suite import Benchmark

_ROOT = Path("benches")
_PAGE, _PICTURE = "bench.md", "bench.svg"


def bench(
    measured: Annotated[
        Path | None, typer.Argument(help="a finished bench.json: show it (and --compare it), measure nothing")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="small sizes: under two minutes on two cores that are free")
    ] = False,
    only: Annotated[
        str | None, typer.Option(help="benchmarks or families, separated by commas: engine, wire/network")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="say what there is to measure, and measure nothing")] = False,
    compare: Annotated[
        Path | None, typer.Option(help="an older bench.json: exit code 1 where something is slower than there")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder for bench.json, bench.md and bench.svg; default: a new one in benches/")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="threads of each side; default: one a core")] = None,
    turns: Annotated[int, typer.Option(min=3, max=50, help="samples of each side; a comparison wants 7 or more")] = 7,
    quiet: Quiet = False,
) -> None:
    """Measure how fast the program is here, against plain ways to do the same, and how that grows with the work.

    Two sides take turns with equal threads: compiled local training and batched torch, Eq. 13's closed form and a
    solver, Ray with cohorts and stock Flower, whole runs and a plain loop. Every sample is kept in bench.json. Killed,
    it loses the benchmark that it was at; with the same --out it goes on. Given a bench.json, it shows that one,
    compares it where --compare is given, and measures nothing.
    """
    from fedem_flwr.bench.catalogue import chosen
    from fedem_flwr.bench.compare import compared, refuse_other
    from fedem_flwr.bench.document import read_document
    from fedem_flwr.bench.machine import cores_here

    benchmarks = chosen([word.strip() for word in (only or "").split(",") if word.strip()])
    if listed:
        _list(benchmarks, quick=quick)
        return
    old = None if compare is None else read_document(compare)
    if measured is not None:
        if only or quick or threads or out:
            raise InputError(f"{measured} is measured already: --only, --quick, --threads and --out are for a new one")
        document = read_document(measured)
    else:
        count = threads or cores_here()
        if old is not None:
            refuse_other(old, quick, count)
        document, folder = _measure(benchmarks, out, quick=quick, threads=count, turns=turns, quiet=quiet)
    found = None if old is None else compared(old, document)
    if measured is None:
        _write(document, folder, found)
    _show(document, found)
    if measured is None:
        from fedem_flwr.terminal import console

        console().print(f"samples: {folder / 'bench.json'}\npage: {folder / _PAGE}", soft_wrap=True)
    if found is not None and found.slower:
        names = dict.fromkeys(each.name for each in found.slower)
        raise FedemError(f"slower than in {compare}: {', '.join(names)}")


def _list(benchmarks: Sequence[Benchmark], *, quick: bool) -> None:
    from fedem_flwr.terminal import console

    table = Shown("benchmark", "what is measured")
    for each in benchmarks:
        missing = each.missing(quick=quick)
        table.add_row(each.name, each.what if missing is None else f"{each.what} (left out here: {missing})")
    console().print(table)


def _measure(
    benchmarks: Sequence[Benchmark], out: Path | None, *, quick: bool, threads: int, turns: int, quiet: bool
) -> tuple[Document, Path]:
    from fedem_flwr.bench.carry_out import carry_out
    from fedem_flwr.bench.document import Document, Request, begin
    from fedem_flwr.bench.machine import Machine
    from fedem_flwr.cli.options import quiet_libraries
    from fedem_flwr.report.steps import steps_shown
    from fedem_flwr.terminal import console
    from fedem_flwr.version import __version__

    quiet_libraries()
    now = datetime.now().astimezone()
    folder = out or _ROOT / now.strftime("%Y%m%d-%H%M%S")
    document = begin(
        folder,
        Document(
            version=__version__,
            command=shlex.join(["fedem", *sys.argv[1:]]),
            began=now.isoformat(timespec="seconds"),
            request=Request(quick=quick, threads=threads, turns=turns, names=tuple(each.name for each in benchmarks)),
            machine=Machine.here(),
        ),
    )
    shown = console(stderr=True)

    def say(words: str) -> None:
        if not quiet:
            shown.print(words, soft_wrap=True)

    kept = f"; {len(document.rows)} are there already" if document.rows else ""
    say(f"{len(benchmarks)} benchmarks, {threads} threads a side, {turns} turns, into {folder}{kept}")
    try:
        with steps_shown(quiet=quiet, console=shown):
            done = carry_out(
                document,
                benchmarks,
                folder,
                on_start=lambda place, each: say(f"{place} of {len(benchmarks)}: {each.name}: {each.what}"),
                on_row=lambda row: say(f"    {_said(row)}"),
                on_left_out=lambda name, why: say(f"    left out: {why}"),
            )
    except KeyboardInterrupt:
        rest = " ".join(["fedem bench", *_options(quick, benchmarks, threads, turns), f"--out {quoted(folder)}"])
        raise Interrupted(f"interrupted; what was measured is in {folder}, and `{rest}` goes on from there") from None
    return done, folder


def _options(quick: bool, benchmarks: Sequence[Benchmark], threads: int, turns: int) -> list[str]:
    from fedem_flwr.bench.catalogue import BENCHMARKS

    only = [] if len(benchmarks) == len(BENCHMARKS) else [f"--only {','.join(each.name for each in benchmarks)}"]
    return [*(["--quick"] if quick else []), *only, f"--threads {threads}", f"--turns {turns}"]


def _said(row: Row) -> str:
    from fedem_flwr.bench.rows import seconds_text, times_text
    from fedem_flwr.bench.statistics import median_of

    sides = ", ".join(f"{one.label} {seconds_text(median_of(one.wall).median)}" for one in row.series)
    if row.exponent is not None:
        return f"{sides}: size ^ {row.exponent.median:.2f}"
    return sides if row.ratio is None else f"{sides}: {times_text(row.ratio.median)} times as fast"


def _write(document: Document, folder: Path, found: Compared | None) -> None:
    from fedem_flwr.bench.pictures import picture
    from fedem_flwr.bench.tables import markdown
    from fedem_flwr.files import write_atomically

    drawn = picture(document)
    if drawn is not None:
        write_atomically(folder / _PICTURE, drawn)
    write_atomically(folder / _PAGE, markdown(document, _PICTURE, found))


def _show(document: Document, found: Compared | None) -> None:
    from fedem_flwr.bench.tables import facts_of, tables_of, terminal_table
    from fedem_flwr.terminal import console

    out = console()
    for name, words in facts_of(document):
        out.print(f"{name}: {words}", soft_wrap=True)
    for table in tables_of(document, found):
        out.print(terminal_table(table))
    for name, why in document.left_out.items():
        out.print(f"left out: {name}: {why}", soft_wrap=True)
    for remark in found.remarks if found is not None else ():
        out.print(f"note: {remark}", soft_wrap=True)
