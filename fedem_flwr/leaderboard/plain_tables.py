"""The tables of a leaderboard as Markdown, CSV and LaTeX. Never two protocols in one table."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path

from fedem_flwr.evaluation.ranking import LISTS
from fedem_flwr.leaderboard.contrasts import Contrasts
from fedem_flwr.leaderboard.gather import BEYOND, COSTS, METRIC_NAMES, PRIVACY, Row, Table
from fedem_flwr.leaderboard.newcomers import GROUP_WORDS, group_table
from fedem_flwr.leaderboard.published import METRICS, published
from fedem_flwr.leaderboard.tables import (
    LIST_TITLES,
    SHOWN,
    beyond_table,
    links_of,
    privacy_text,
    seconds_text,
    size_text,
    spread_text,
    title_of,
)
from fedem_flwr.protocol.rules import rules_of
from fedem_flwr.report.comparison import signed
from fedem_flwr.report.tables import ABSENT
from fedem_flwr.text import visible

Place = tuple[str, str]  # of a table: data set and protocol
_TEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{
        "ε": r"$\varepsilon$",
        "δ": r"$\delta$",
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "–": "--",
        "±": r"$\pm$",
    },
}


def published_text(table: Table, row: Row) -> str:
    """What has been published of a method, as HR@10/NDCG@10; a dash where there is nothing."""
    found = [] if row.is_control else published(table.dataset, table.protocol, row.label)
    return f"{found[0].figures[0]:.4f}/{found[0].figures[1]:.4f}" if found else ABSENT


def cells_of(table: Table, row: Row) -> list[str]:
    """A row's cells, as `heads_of` names them."""
    alone = row.alone.get((table.headline, "ndcg@10"))
    compared = [published_text(table, row)] if rules_of(table.protocol).leaks else []
    costs = [seconds_text(row.costs.get("seconds_per_round"))]
    costs += [size_text(row.costs.get(name)) for name in ("bytes_up", "bytes_down", "peak_rss_bytes")]
    costs += [privacy_text(row.privacy)] if table.noised else []
    rounds = sorted({int(record.summary.get("rounds", 0)) for record in row.records}) if not row.is_control else []
    figures = [spread_text(row.figures.get(path)) for path in SHOWN]
    return [
        row.label,
        str(len(row.records)),
        "/".join(map(str, rounds)) or ABSENT,
        *figures,
        *compared,
        spread_text(alone),
        *costs,
    ]


def heads_of(table: Table) -> list[str]:
    """What the columns are called."""
    figures = [f"{metric.upper()}, {LIST_TITLES[way]}" for way, metric in SHOWN]
    compared = ["published HR/NDCG@10"] if rules_of(table.protocol).leaks else []
    alone = f"NDCG@10 alone, {LIST_TITLES[table.headline]}"
    costs = ["a round", "up", "down", "peak memory", *(["ε, all uploads of a user"] if table.noised else [])]
    return ["method", "seeds", "rounds", *figures, *compared, alone, *costs]


def markdown(
    tables: Sequence[Table], contrasts: Mapping[Place, Contrasts], remarks: Sequence[str], folder: Path
) -> str:
    """A page of tables, each with its differences below it.

    Args:
        folder: where it will lie: links are relative to it.
    """
    texts = ["# Leaderboard", *(f"- {visible(remark)}" for remark in remarks)]
    for table in tables:
        texts.append(f"## {visible(title_of(table))}")
        texts.append(_markdown_table(heads_of(table), [_linked(table, row, folder) for row in table.rows]))
        if groups := group_table(table):
            texts += ["### Who was asked", GROUP_WORDS, _markdown_table(*groups)]
        if beyond := beyond_table(table):
            texts += ["### What users' top 10 hold", _markdown_table(*beyond)]
        found = contrasts[table.dataset, table.protocol]
        if found.found:
            texts.append(f"### Differences in NDCG@10, {LIST_TITLES[table.headline]}, user by user")
            texts.append(_markdown_table(CONTRAST_HEADS, contrast_cells(found)))
        texts += [f"- {visible(note)}" for note in found.notes]
    return "\n\n".join(texts) + "\n"


def _linked(table: Table, row: Row, folder: Path) -> list[str]:
    """A row's cells, with a link to each run's report at its seed."""
    label, seeds, *others = cells_of(table, row)
    links = " ".join(f"[{link.text}]({link.href})" for link in links_of(row, folder))
    return [label, f"{seeds}: {links}" if links else seeds, *others]


CONTRAST_HEADS = [
    *("method", "against", "difference", "95 % interval", "p, Holm", "effect d", "better / worse users", "seeds"),
]


def contrast_cells(contrasts: Contrasts) -> list[list[str]]:
    """The rows of a table of differences."""
    return [
        [
            each.method,
            each.against,
            f"{signed(each.difference.mean)}{' *' if each.sure else ''}",
            f"{signed(each.difference.low)} to {signed(each.difference.high)}",
            f"{each.adjusted:.4f}",
            f"{each.difference.effect:+.2f}",
            f"{100 * each.difference.better:.0f} % / {100 * each.difference.worse:.0f} %",
            str(each.seeds),
        ]
        for each in contrasts.found
    ]


def _markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(visible(cell).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(heads), line(["---"] * len(heads)), *map(line, rows)])


def comma_separated(tables: Sequence[Table]) -> str:
    """All figures of tables of one protocol, a line a row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    figures = [f"{way}/{metric}" for way in LISTS for metric in METRIC_NAMES]
    spreads = [name for figure in figures for name in (figure, f"{figure} std")]
    beside = [f"published {metric}" for metric in METRICS]
    writer.writerow(["protocol", "dataset", "method", "control", "seeds", *spreads, *COSTS, *PRIVACY, *BEYOND, *beside])
    for table in tables:
        for row in table.rows:
            found: list[object] = []
            for spread in (row.figures.get((way, metric)) for way in LISTS for metric in METRIC_NAMES):
                found += ["", ""] if spread is None else [spread.mean, _or_empty(spread.deviation)]
            costs = [_or_empty(each.mean if each else None) for each in map(row.costs.get, COSTS)]
            known = [] if row.is_control else published(table.dataset, table.protocol, row.label)
            names = [table.protocol, _no_formula(table.dataset), _no_formula(row.label)]
            size = [int(row.is_control), len(row.records)]
            costs += astuple(row.privacy) if row.privacy else [""] * len(PRIVACY)
            costs += [_or_empty(each.mean if each else None) for each in map(row.lists.get, BEYOND)]
            writer.writerow([*names, *size, *found, *costs, *(known[0].figures if known else ["", ""])])
    return text.getvalue()


def _or_empty(value: float | None) -> object:
    return "" if value is None else value


def _no_formula(name: str) -> str:
    """A name that a spreadsheet takes for a formula is none."""
    return f"'{name}" if name[:1] in "=+-@" else name


def latex(tables: Sequence[Table]) -> str:
    r"""Tables for a paper; they want \usepackage{booktabs}."""
    texts = ["% \\usepackage{booktabs}"]
    for table in tables:
        heads = heads_of(table)
        body = [
            r"\midrule" if previous is not None and row.is_control and not previous.is_control else None
            for previous, row in zip([None, *table.rows], table.rows, strict=False)
        ]
        lines = []
        for rule, row in zip(body, table.rows, strict=True):
            lines += [rule] if rule else []
            lines.append(" & ".join(map(_tex, cells_of(table, row))) + r" \\")
        texts.append(
            "\n".join(
                [
                    r"\begin{table}",
                    rf"\caption{{{_tex(title_of(table))}}}",
                    rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
                    r"\toprule",
                    " & ".join(map(_tex, heads)) + r" \\",
                    r"\midrule",
                    *lines,
                    r"\bottomrule",
                    r"\end{tabular}",
                    r"\end{table}",
                ]
            )
        )
    return "\n\n".join(texts) + "\n"


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in visible(text))
