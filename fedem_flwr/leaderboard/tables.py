"""The tables of a leaderboard in text: for the terminal, Markdown, CSV and LaTeX. One protocol a table."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from rich.table import Table as Shown
from rich.text import Text

from fedem_flwr.evaluation.ranking import LISTS
from fedem_flwr.leaderboard.gather import Privacy, Row, Spread, Table
from fedem_flwr.protocol.rules import rules_of
from fedem_flwr.report.sections import percent
from fedem_flwr.report.tables import ABSENT, bytes_text

LIST_TITLES = {"full": "whole catalogue", "sampled99": "99 negatives"}
SHOWN = tuple((way, metric) for way in LISTS for metric in ("hr@10", "ndcg@10"))


BEYOND_HEADS = {
    "coverage": "catalogue in lists",
    "gini": "Gini of exposure",
    "novelty": "novelty, bits",
    "long_tail": "long tail in lists",
    "popularity_recommended": "mean popularity in lists",
}


@dataclass(frozen=True)
class Link:
    """To a run's report."""

    text: str
    href: str


def links_of(row: Row, folder: Path) -> tuple[Link, ...]:
    """To the reports of a method's runs, by seed, from where a leaderboard lies; a control has none of its own."""
    runs = () if row.is_control else row.records
    return tuple(
        Link(str(run.name.seed), quote(os.path.relpath(run.directory.report_path.absolute(), folder.absolute())))
        for run in runs
    )


def spread_text(spread: Spread | None, digits: int = 4) -> str:
    """Mean ± standard deviation; a dash where there is none."""
    if spread is None:
        return ABSENT
    aside = "" if spread.deviation is None else f" ± {spread.deviation:.{digits}f}"
    return f"{spread.mean:.{digits}f}{aside}"


def title_of(table: Table) -> str:
    """What stands above a table."""
    return f"{table.dataset}, protocol '{table.protocol}', {rules_of(table.protocol).reported}"


def seconds_text(spread: Spread | None) -> str:
    """Seconds of a round."""
    return ABSENT if spread is None else f"{spread.mean:.3g} s"


def size_text(spread: Spread | None) -> str:
    """Bytes."""
    return bytes_text(None if spread is None else spread.mean)


def beyond_text(name: str, value: float) -> str:
    """What of lists is no accuracy: shares as per cent, the others as they are."""
    return f"{value:.3g}" if name in ("gini", "novelty") else percent(value)


def beyond_table(table: Table) -> tuple[list[str], list[list[str]]] | None:
    """The same as a table of the methods; None where no run has it."""
    rows = [row for row in table.methods if any(row.lists.values())]
    if not rows:
        return None
    found = [[(name, row.lists.get(name)) for name in BEYOND_HEADS] for row in rows]
    texts = [[beyond_text(name, each.mean) if each else ABSENT for name, each in cells] for cells in found]
    return ["method", *BEYOND_HEADS.values()], [[row.label, *cells] for row, cells in zip(rows, texts, strict=True)]


def privacy_text(privacy: Privacy | None) -> str:
    """ε with its δ."""
    if privacy is None:
        return ABSENT
    return _epsilon(privacy) + (f" (δ {privacy.delta:g})" if privacy.delta else "")


def _epsilon(privacy: Privacy, digits: int = 4) -> str:
    return f"{privacy.epsilon:,.0f}" if privacy.epsilon >= 1000 else f"{privacy.epsilon:.{digits}g}"


def terminal_table(table: Table) -> Shown:
    """A table for the terminal."""
    shown = Shown(title=Text(title_of(table), style="bold"), title_justify="left")
    longest = max((len(row.label) for row in table.rows), default=0)
    shown.add_column(Text("method"), overflow="fold", min_width=min(longest, 16))
    shown.add_column(Text("seeds"), justify="right")
    for way, metric in SHOWN:
        short = "all items" if way == "full" else "99 neg."
        shown.add_column(Text(f"{metric.upper()}\n{short}"), justify="right")
    shown.add_column(Text("a\nround"), justify="right")
    for index, row in enumerate(table.rows):
        ends = not row.is_control and index + 1 < len(table.rows) and table.rows[index + 1].is_control
        shown.add_row(*(Text(cell) for cell in _cells(row)), end_section=ends)
    return shown


def _cells(row: Row) -> list[str]:
    figures = [_short(row.figures.get(path)) for path in SHOWN]
    noise = f"\nε {_epsilon(row.privacy, 3)}" if row.privacy else ""  # below: 80 characters hold no other column
    return [row.label, str(len(row.records)), *figures, seconds_text(row.costs.get("seconds_per_round")) + noise]


def _short(spread: Spread | None) -> str:
    """As .517 with ±.012 below it, so that a table fits a terminal."""
    return spread_text(spread, 3).replace(" ± ", "\n±").replace("0.", ".")
