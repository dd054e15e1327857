"""What was measured, as tables: the cells, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table as Shown
from rich.text import Text

from fedem_flwr.bench.compare import Compared, Verdict
from fedem_flwr.bench.document import Document
from fedem_flwr.bench.rows import Row, Series, seconds_text, times_text
from fedem_flwr.bench.statistics import Estimate, median_of
from fedem_flwr.report.tables import ABSENT, bytes_text
from fedem_flwr.text import visible


@dataclass(frozen=True)
class Table:
    """A table of words."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables_of(document: Document, found: Compared | None = None) -> Iterator[Table]:
    """The tables that have rows."""
    ratios = [row for row in document.rows if row.kind == "ratio"]
    growths = [row for row in document.rows if row.kind == "growth"]
    heads: tuple[str, ...]
    if ratios:
        heads = ("benchmark", "ours", "the other side", "times as fast", "by the processor")
        yield Table("Against plain ways to do the same", heads, tuple(map(_ratio_cells, ratios)))
    if growths:
        heads = ("benchmark", "smallest", "largest", "seconds grow with")
        yield Table("Growth", heads, tuple(map(_growth_cells, growths)))
    if found is not None:
        heads = ("benchmark", "compared by", "before", "now", "chance", "verdict")
        yield Table("Against the older measurement", heads, tuple(map(_verdict_cells, found.verdicts)))


def _ratio_cells(row: Row) -> tuple[str, ...]:
    return (row.name, *map(_side, row.series), _times(row.ratio), _times(row.ratio_cpu))


def _side(series: Series) -> str:
    size = "" if series.bytes is None else f", {bytes_text(series.bytes)}"
    return f"{series.label}: {_seconds(series)}{size}"


def _seconds(series: Series) -> str:
    return seconds_text(median_of(series.wall).median)


def _times(estimate: Estimate | None) -> str:
    return ABSENT if estimate is None else "{} ({} to {})".format(*map(times_text, estimate))


def _growth_cells(row: Row) -> tuple[str, ...]:
    ends = (f"{series.label}: {_seconds(series)}" for series in (row.series[0], row.series[-1]))
    power = ABSENT if row.exponent is None else "size ^ {:.2f} ({:.2f} to {:.2f})".format(*row.exponent)
    return (row.name, *ends, power)


def _verdict_cells(verdict: Verdict) -> tuple[str, ...]:
    chance = ABSENT if verdict.chance is None else f"{verdict.chance:.2g}"
    word = verdict.word if not verdict.why else f"{verdict.word}: {verdict.why}"
    return (verdict.name, verdict.by, _value(verdict, verdict.before), _value(verdict, verdict.now), chance, word)


def _value(verdict: Verdict, value: float) -> str:
    if verdict.by == "bytes":
        return bytes_text(int(value))
    return f"{value:.2f}" if verdict.by == "exponent" else times_text(value)


def terminal_table(table: Table) -> Shown:
    """A table for the terminal; slower ones stand out."""
    shown = Shown(title=Text(table.title, style="bold"), title_justify="left")
    for place, head in enumerate(table.heads):
        shown.add_column(Text(head), overflow="fold", no_wrap=place == 0)
    for row in table.rows:
        shown.add_row(*(Text(cell) for cell in row), style="bold red" if row[-1] == "slower" else "")
    return shown


def facts_of(document: Document) -> Sequence[tuple[str, str]]:
    """What a reader must know of the machine, in words."""
    machine, request = document.machine, document.request
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    load = "unknown" if machine.load is None else f"{machine.load:g}"
    suite = "quick" if request.quick else "full"
    return (
        ("program", f"fedem-flwr {document.version}, {document.command}"),
        ("date", document.began),
        ("machine", f"{machine.processor}, {machine.cores} cores, {bytes_text(machine.memory)}, {machine.system}"),
        ("load at the start", f"{load} processes"),
        ("measured", f"{suite} sizes, {request.threads} threads a side, {request.turns} turns"),
        ("versions", versions),
    )


HOW_TO_READ = (
    "Medians by the clock. Both sides take turns, with equal threads; a ratio is the median of the turns' ratios, and "
    "in brackets is where the true median lies with at least 95 % certainty (six turns or more). Above 1 ours is "
    "faster. On a busy machine look at seconds of the processor."
)


def markdown(document: Document, picture: str, found: Compared | None = None) -> str:
    """The page: facts, tables, the picture, and what is missing.

    Args:
        picture: name of its file, beside the page.
    """
    parts = ["# fedem bench", *(f"- {name}: {_escaped(words)}" for name, words in facts_of(document)), "", HOW_TO_READ]
    for table in tables_of(document, found):
        parts += ["", f"## {table.title}", "", _line(table.heads), _line(["---"] * len(table.heads))]
        parts += map(_line, table.rows)
    if document.rows:
        parts += [
            "",
            f"![ratios and growth]({picture})",
            "",
            "## What each is",
            "",
            _line(["benchmark", "what", "sizes"]),
        ]
        parts += [_line(["---"] * 3), *(_line([row.name, row.what, _setting(row)]) for row in document.rows)]
    if document.left_out:
        parts += ["", "## Left out", "", *(f"- {name}: {_escaped(why)}" for name, why in document.left_out.items())]
    if found is not None and found.remarks:
        parts += ["", "## Of the comparison", "", *(f"- {_escaped(remark)}" for remark in found.remarks)]
    return "\n".join([*parts, ""])


def _setting(row: Row) -> str:
    return f"{row.setting}. {row.remark}" if row.remark else row.setting


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(words: str) -> str:
    """Words of a file, so that they are but words in Markdown."""
    for mark in ("&", "<", "|", "[", "`"):
        words = words.replace(mark, {"&": "&amp;", "<": "&lt;"}.get(mark, f"\\{mark}"))
    return visible(words)
