"""Result tables and the verdict: a method's figures beside the controls measured on the same split.

The rows built here feed the terminal and the HTML report alike, so both always say the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from fedem_flwr.protocol.rules import RULES, rules_of
from fedem_flwr.report.comparison import comparison_text
from fedem_flwr.report.groups import asked_text, groups_text
from fedem_flwr.report.labels import CENTRALISED, control_rows
from fedem_flwr.report.run_directory import Json, number_at
from fedem_flwr.report.selection import reported_key
from fedem_flwr.text import visible

ABSENT = "–"
_HEADLINES = {"full": "whole catalogue", "sampled99": "99 negatives"}
COLUMNS = (("hr@10",), ("ndcg@10",), ("sampled99", "hr@10"), ("sampled99", "ndcg@10"))
_ROUNDS = {"best_validation": "best validation", "best_test": "best test", "last": "last"}


@dataclass(frozen=True)
class ResultRow:
    """One line of the result table.

    Attributes:
        label: what was measured.
        is_control: a control or another run, which the reported row is measured against.
        is_reported: the method's row that the protocol reports.
        round: the round the figures are from, where there is one.
        figures: HR@10, NDCG@10 (headline), HR@10, NDCG@10 (99 negatives); None where not measured.
        best: whether a figure is the highest of its column among the reported row and the controls.
        settings: what was chosen for a control, in words.
    """

    label: str
    is_control: bool
    is_reported: bool
    round: int | None
    figures: tuple[float | None, ...]
    best: tuple[bool, ...]
    settings: str = ""


@dataclass(frozen=True)
class Verdict:
    """Whether the reported round beats the two controls it must beat (None: not measured)."""

    sentence: str
    beats_popularity: bool | None
    beats_local_only: bool | None


def text_at(record: Mapping[str, object], key: str, default: str = "unknown") -> str:
    """Return a field as text, ``default`` where it is missing or null."""
    value = record.get(key)
    return default if value is None else visible(str(value), keep="\n\t")


def method_text(summary: Mapping[str, object]) -> str:
    """Return the method's name; of a control that had all data in one place, with that."""
    return text_at(summary, "method") + (CENTRALISED if summary.get("centralised") is True else "")


def figure_text(value: float | None, digits: int = 4) -> str:
    """Return a metric with ``digits`` decimals, a dash where there is none."""
    return ABSENT if value is None else f"{value:.{digits}f}"


def bytes_text(count: float | None) -> str:
    """Return a byte count in decimal units (1 kB = 1000 B), a dash where there is none."""
    if count is None:
        return ABSENT
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if abs(size) < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} B" if unit == "B" else f"{size:.3g} {unit}" if size < 999.5 else f"{size:.0f} {unit}"


def selected_key(summary: Mapping[str, object]) -> str:
    """Return which of ``metrics`` is reported: what the summary says, else what its protocol prescribes."""
    selected = summary.get("selected")
    if selected in _ROUNDS:
        return str(selected)
    return reported_key(text_at(summary, "protocol"))


def headline_text(summary: Mapping[str, object]) -> str:
    """Return what the headline metrics rank the target in: the whole catalogue or 99 negatives."""
    known = RULES.get(text_at(summary, "protocol"))
    return _HEADLINES[known.headline] if known else "headline"


def _figures(record: object) -> tuple[float | None, ...]:
    return tuple(number_at(record, *keys) for keys in COLUMNS)


def _section(summary: Mapping[str, object], name: str) -> Mapping[str, object]:
    section = summary.get(name)
    return section if isinstance(section, Mapping) else {}


def result_rows(summary: Mapping[str, object], against: Sequence[Mapping[str, object]] = ()) -> list[ResultRow]:
    """Build the rows: the method's rounds, the reported round of every other run, then the controls.

    Args:
        summary: ``summary.json``; what is missing shows as a dash.
        against: summaries of other runs on the same data set and protocol.
    """
    metrics, controls, selected = (
        _section(summary, "metrics"),
        _section(summary, "controls"),
        selected_key(summary),
    )
    method = method_text(summary)
    rounds = rules_of(text_at(summary, "protocol")).rounds
    found: list[tuple[str, bool, bool, object, str]] = [
        (f"{method}, {_ROUNDS[key]}", False, key == selected, metrics.get(key), "") for key in rounds
    ]
    for other in against:
        key = selected_key(other)
        label = f"{method_text(other)}, {_ROUNDS[key]}"
        found.append((label, True, False, _section(other, "metrics").get(key), ""))
    found += [(row.label, True, False, row.record, row.settings) for row in control_rows(controls)]

    # A round chosen by the test set may not win the column unless the protocol reports that very round.
    rivals = [_figures(record) for _, is_control, is_reported, record, _ in found if is_control or is_reported]
    top = [max((row[column] or 0.0 for row in rivals), default=0.0) for column in range(len(COLUMNS))]
    rows = []
    for label, is_control, is_reported, record, settings in found:
        figures, number = _figures(record), number_at(record, "round")
        enters = is_control or is_reported
        best = tuple(enters and value is not None and value > 0 and value == top[i] for i, value in enumerate(figures))
        round_ = None if number is None else int(number)
        rows.append(ResultRow(label, is_control, is_reported, round_, figures, best, settings))
    return rows


def _beats(reported: object, control: object) -> tuple[bool | None, str]:
    """Compare on NDCG@10 and say so where HR@10 disagrees."""
    ours, theirs = number_at(reported, "ndcg@10"), number_at(control, "ndcg@10")
    if ours is None or theirs is None:
        return None, "not measured"
    won = ours > theirs
    our_hits, their_hits = number_at(reported, "hr@10"), number_at(control, "hr@10")
    split = our_hits is not None and their_hits is not None and (our_hits > their_hits) != won
    aside = "" if not split else ", but not by HR@10" if won else ", though it does by HR@10"
    return won, f"{'yes' if won else 'no'} ({ours:.4f} against {theirs:.4f}{aside})"


def verdict(summary: Mapping[str, object]) -> Verdict:
    """Say in a sentence whether the reported round beats popularity and local-only, by test NDCG@10."""
    selected = selected_key(summary)
    reported, controls = _section(summary, "metrics").get(selected), _section(summary, "controls")
    popularity, popularity_words = _beats(reported, controls.get("popularity"))
    local_only, local_words = _beats(reported, controls.get("local_only"))
    sentence = (
        f"By test NDCG@10 ({headline_text(summary)}, {_ROUNDS[selected]} round), "
        f"{method_text(summary)} beats popularity: {popularity_words}; beats local-only: {local_words}."
    )
    return Verdict(sentence, popularity, local_only)


def title_text(summary: Mapping[str, object]) -> str:
    """Return ``method on dataset, protocol 'strict'``."""
    method, dataset = method_text(summary), text_at(summary, "dataset")
    return f"{method} on {dataset}, protocol '{text_at(summary, 'protocol')}'"


def result_table(summary: Mapping[str, object], against: Sequence[Mapping[str, object]] = ()) -> Table:
    """Return the result table for the terminal, with the verdict below it.

    The reported row is bold and starts with ``>``; the best figure of a column carries a ``*`` (marks
    that survive a log file without colours).
    """
    rows = result_rows(summary, against)
    below = [verdict(summary).sentence, comparison_text(summary), asked_text(summary), *groups_text(summary)]
    below += [f"{row.label}: {row.settings}" for row in rows if row.settings]  # too long for a cell
    below += [text_at(_section(each, "ldp"), "words", "") for each in (summary, *against)]
    below += ["> reported round   * best of the reported round and the controls"]
    table = Table(
        title=Text(f"{title_text(summary)}, headline: {headline_text(summary)}", style="bold"),
        caption=Text("\n".join(line for line in below if line)),
        caption_justify="left",
        title_justify="left",
    )
    table.add_column(Text("test set"), overflow="fold")
    table.add_column(Text("round"), justify="right")
    for name, ranked_in in (
        ("HR@10", "headline"),
        ("NDCG@10", "headline"),
        ("HR@10", "99 neg."),
        ("NDCG@10", "99 neg."),
    ):
        table.add_column(Text(f"{name}\n{ranked_in}"), justify="right")
    for index, row in enumerate(rows):
        cells = [
            Text(f"{figure_text(value)}{'*' if best else ' '}", style="bold green" if best else "")
            for value, best in zip(row.figures, row.best, strict=True)
        ]
        label = Text(f"{'>' if row.is_reported else ' '} {row.label}", style="bold" if row.is_reported else "")
        ends = not row.is_control and index + 1 < len(rows) and rows[index + 1].is_control
        table.add_row(label, Text(ABSENT if row.round is None else str(row.round)), *cells, end_section=ends)
    return table


def audit_table(rows: Sequence[Json], *, title: str = "", caption: str = "") -> Table:
    """Return a table with one column a key, in the order the keys first appear; numbers to the right.

    Args:
        rows: dictionaries; a missing or null value shows as a dash.
        title: above the table.
        caption: below it.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(title=Text(title) if title else None, caption=Text(caption) if caption else None)
    for name in names:
        values = [row.get(name) for row in rows]
        numeric = any(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        table.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(row.get(name))) for name in names))
    return table


def _cell(value: object) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return figure_text(number_at({"value": value}, "value"))
    return str(value)
