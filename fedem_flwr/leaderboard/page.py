"""leaderboard.html: one file that opens offline, sorts, filters, and links to the reports of its runs.

Its one script is known to the page's own policy by its digest; nothing else runs, and nothing is loaded. What comes
from files of runs is escaped, without characters that nobody sees or that turn a line around.
"""

from __future__ import annotations

import base64
import hashlib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from fedem_flwr.errors import FedemError
from fedem_flwr.leaderboard import pictures
from fedem_flwr.leaderboard.contrasts import Contrasts
from fedem_flwr.leaderboard.gather import Privacy, Row, Spread, Table
from fedem_flwr.leaderboard.group_pictures import by_group
from fedem_flwr.leaderboard.newcomers import GROUP_WORDS, group_table
from fedem_flwr.leaderboard.plain_tables import CONTRAST_HEADS, Place, contrast_cells
from fedem_flwr.leaderboard.published import Published, published
from fedem_flwr.leaderboard.setting_pictures import by_setting, sweep_of
from fedem_flwr.leaderboard.tables import (
    BEYOND_HEADS,
    LIST_TITLES,
    SHOWN,
    Link,
    beyond_text,
    links_of,
    privacy_text,
    title_of,
)
from fedem_flwr.protocol.rules import rules_of
from fedem_flwr.report.html import PAPER_WARNING, Picture
from fedem_flwr.report.tables import ABSENT, bytes_text
from fedem_flwr.report.tables_plot import tables_picture, tables_text
from fedem_flwr.text import visible
from fedem_flwr.version import __version__

CONTRAST_WORDS = (
    "Mean difference over users, each user's seeds averaged first. Intervals and p: a paired bootstrap of 10,000 draws "
    "of users, Holm-corrected over all rows of this table; * where the corrected p is below .05. Effect d: mean over "
    "standard deviation of the users' differences. What is compared is the model that a run serves: the best round's "
    "by validation where clients keep nothing, else the last round's."
)

_LESS = ("gini", "popularity_recommended")  # of what is no accuracy: the first click shows the least of these


@dataclass(frozen=True)
class PageCell:
    """A cell of a table on the page; `value` is what it is sorted by, `href` what it is of, `links` stand beside it."""

    text: str
    value: float | None = None
    aside: str = ""
    best: bool = False
    links: tuple[Link, ...] = ()
    href: str = ""


def render(
    tables: Sequence[Table],
    contrasts: Mapping[Place, Contrasts],
    drawn: Mapping[str, Sequence[Picture]],
    *,
    folder: Path,
    title: str,
    remarks: Sequence[str],
    command: str,
) -> str:
    """The page's text.

    Args:
        drawn: of each table, by `key_of`, and under "" those of both protocols.
        folder: where it will lie: links are relative to it.
        remarks: what a reader must know first.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    template = tomllib.loads(files("fedem_flwr.leaderboard").joinpath("templates/page.toml").read_text("utf-8"))
    script = template["script"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    runs = sum(len(row.records) for table in tables for row in table.methods)
    sources = sorted({p.source for t in tables for r in t.methods for p in published(t.dataset, t.protocol, r.label)})
    return environment.from_string(template["page"]).render(
        title=title,
        summary=f"{runs} runs: {sum(len(table.methods) for table in tables)} rows of methods in {len(tables)} tables",
        remarks=list(remarks),
        datasets=sorted({table.dataset for table in tables}),
        protocols=sorted({table.protocol for table in tables}),
        boards=[_board(table, contrasts, drawn, folder) for table in tables],
        ledgers=list(drawn.get("", [])),
        leak=PAPER_WARNING,
        contrast_heads=CONTRAST_HEADS,
        contrast_words=CONTRAST_WORDS,
        group_words=GROUP_WORDS,
        command=command,
        version=__version__,
        sources="; ".join(sources) or "none of these methods and data sets.",
        script=Markup(script),  # ours, from the package
        script_hash=Markup(f"sha256-{digest}"),
    )


def _shown(value: object) -> object:
    return visible(value, keep="\n\t") if type(value) is str else value


def key_of(table: Table) -> str:
    """What a table's pictures go by."""
    return f"{table.dataset}-{table.protocol}"


def _board(
    table: Table, contrasts: Mapping[Place, Contrasts], drawn: Mapping[str, Sequence[Picture]], folder: Path
) -> dict[str, Any]:
    found = contrasts[table.dataset, table.protocol]
    best = {
        path: max((spread.mean for row in table.rows if (spread := row.figures.get(path))), default=0.0)
        for path in SHOWN
    }
    return {
        "dataset": table.dataset,
        "protocol": table.protocol,
        "title": title_of(table),
        "leaks": rules_of(table.protocol).leaks,
        "headline": LIST_TITLES[table.headline],
        "heads": [{"text": text, "first": first} for text, first in _heads(table)],
        "rows": [
            {"name": row.label.lower(), "is_control": row.is_control, "cells": _cells(table, row, best, folder)}
            for row in table.rows
        ],
        "contrasts": [
            {"cells": cells, "sure": each.sure} for each, cells in zip(found.found, contrast_cells(found), strict=True)
        ],
        "groups": group_table(table),
        "notes": found.notes,
        "pictures": list(drawn.get(key_of(table), [])),
    }


def _heads(table: Table) -> list[tuple[str, str]]:
    """What the columns are called, and whether the first click sorts downwards."""
    figures = [(f"{metric.upper()} {LIST_TITLES[way]}", "1") for way, metric in SHOWN]
    compared = [("published HR@10", "1"), ("published NDCG@10", "1")] if rules_of(table.protocol).leaks else []
    costs = [("a round", "0"), ("up a user and round", "0"), ("down a user and round", "0"), ("peak memory", "0")]
    costs += [("ε, all uploads of a user", "0")] if table.noised else []
    return [
        ("method", "0"),
        ("seeds (reports)", "1"),
        ("rounds", "1"),
        *figures,
        *compared,
        ("NDCG@10 without federation", "1"),
        *costs,
        *((text, "0" if name in _LESS else "1") for name, text in BEYOND_HEADS.items()),
    ]


def _cells(table: Table, row: Row, best: Mapping[tuple[str, str], float], folder: Path) -> list[PageCell]:
    links = links_of(row, folder)
    run = links[0].href if len(links) == 1 else ""
    rounds = {int(record.summary.get("rounds", 0)) for record in row.records}
    known: list[Published] = [] if row.is_control else published(table.dataset, table.protocol, row.label)
    compared = [PageCell(f"{f:.4f}", f) for f in known[0].figures] if known else [PageCell(ABSENT)] * 2
    return [
        PageCell(row.label),
        PageCell(str(len(row.records)), len(row.records), links=links),
        PageCell(ABSENT) if row.is_control else PageCell("/".join(map(str, sorted(rounds))), max(rounds, default=0)),
        *(_figure(row.figures.get(path), best[path], run) for path in SHOWN),
        *(compared if rules_of(table.protocol).leaks else []),
        _figure(row.alone.get((table.headline, "ndcg@10"))),
        _cost(row.costs.get("seconds_per_round"), lambda seconds: f"{seconds:.3g} s"),
        *(_cost(row.costs.get(name), bytes_text) for name in ("bytes_up", "bytes_down", "peak_rss_bytes")),
        *([_private(row.privacy)] if table.noised else []),
        *(_cost(row.lists.get(name), partial(beyond_text, name)) for name in BEYOND_HEADS),
    ]


def _figure(spread: Spread | None, best: float | None = None, run: str = "") -> PageCell:
    if spread is None:
        return PageCell(ABSENT)
    aside = "" if spread.deviation is None else f"{spread.deviation:.4f}"
    return PageCell(f"{spread.mean:.4f}", spread.mean, aside, best is not None and 0 < best == spread.mean, href=run)


def _cost(spread: Spread | None, words: Callable[[float], str]) -> PageCell:
    return PageCell(ABSENT) if spread is None else PageCell(words(spread.mean), spread.mean)


def _private(privacy: Privacy | None) -> PageCell:
    return PageCell(privacy_text(privacy), None if privacy is None else privacy.epsilon)


def pictures_of(tables: Sequence[Table]) -> tuple[dict[str, list[Picture]], dict[str, bytes]]:
    """All pictures, for the page by table and as files by name."""
    shown: dict[str, list[Picture]] = {}
    images: dict[str, bytes] = {}

    def add(place: str, name: str, title: str, caption: str, draw: Callable[[], bytes]) -> None:
        try:
            image = draw()
        except FedemError as error:
            shown.setdefault(place, []).append(Picture(title, caption, None, f"Not drawn: {error}."))
            return
        uri = f"data:image/svg+xml;base64,{base64.b64encode(image).decode('ascii')}"
        shown.setdefault(place, []).append(Picture(title, caption, uri))
        images[name] = image

    for table in tables:
        key, where = key_of(table), f"{LIST_TITLES[table.headline]}, mean over seeds"
        part = pictures.part_of(table)
        convergence = f"{part.capitalize()} figures by round ({where}).{' Dotted: controls.' if part == 'test' else ''}"
        add(key, f"convergence-{key}.svg", "Convergence", convergence, partial(pictures.convergence, table))
        cost = f"NDCG@10 of the reported round ({where}); the line joins what nothing else beats in both."
        groups = f"Test figures by group of users ({where}; bars: standard deviation)."
        add(key, f"groups-{key}.svg", "Users by group", groups, partial(by_group, table))
        add(key, f"cost-{key}.svg", "Accuracy and cost", cost, partial(pictures.accuracy_and_cost, table))
        if found := sweep_of(table):
            setting = f"Methods that differ in `{found.setting}` alone ({where}; bars: standard deviation)."
            add(key, f"setting-{key}.svg", "One setting", setting, partial(by_setting, table))
        for row in table.methods:
            if section := row.records[0].diagnostics.get("tables"):
                text, name = tables_text(row.records[0].diagnostics), f"tables-{key}-{row.label}.svg"
                add(key, name, f"The tables of one user, {row.label}", text, partial(tables_picture, section))
    by_place = {(table.dataset, table.protocol): table for table in tables}
    for (dataset, protocol), strict in by_place.items():
        paper = by_place.get((dataset, "paper"))
        if protocol == "strict" and paper is not None:
            caption = (
                "Each arrow leads from a figure under the leaky protocol to the one without the leak. Fitted controls "
                "draw no training negatives, so that no leak reaches them: their arrows show what else differs "
                "(without times: which items are held out)."
            )
            name = f"leak-{dataset}.svg"
            add("", name, dataset, caption, partial(pictures.leak_ledger, paper, strict))
    return shown, images
