"""What a search inside a run came to: its table, its picture, what it took, and the choice in one line.

The numbers are those of ``diagnostics.json`` and ``metrics.jsonl``; what is missing gives nothing to show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedem_flwr.report.drawing import (
    GREY,
    ORANGE,
    ImageFormat,
    NothingToDrawError,
    image_bytes,
    panels,
)
from fedem_flwr.report.labels import settings_text
from fedem_flwr.report.run_directory import Json, number_at
from fedem_flwr.report.tables import bytes_text
from fedem_flwr.text import visible

METRIC = "ndcg@10"
_ORDER = ("order_weight", "map_weight")
_SPENT = ("bytes_up", "bytes_down", "node_bytes_up", "node_bytes_down", "seconds")  # of a metrics line


def search_of(lines: Sequence[Json], diagnostics: Mapping[str, Any]) -> dict[str, Any] | None:
    """For summary.json: what is served, what else was tried, and what looking for it took; None where nothing was.

    Args:
        lines: of metrics.jsonl. diagnostics: of the run, with what is served.
    """
    found: dict[str, Any] = {}
    if section := diagnostics.get("search"):
        own = [line for line in lines if line["round"] <= section["rounds"]]
        spent = {name: sum(number_at(line, name) or 0.0 for line in own) for name in _SPENT}
        tables = len({(row["weight"], row["ridge"]) for row in section["rows"]})
        found |= {"tables": tables, "rounds": section["rounds"], "chosen": section["chosen"], **spent}
    if families := families_of(diagnostics.get("mixing")):
        found |= {"families": families, "served": family_of(diagnostics["mixing"]["chosen"])}
    return found or None


def families_of(mixing: object) -> dict[str, float]:
    """The best validation NDCG@10 of each kind of mixture that was tried, best first; empty without popularity."""
    best: dict[str, float] = {}
    for row in _rows(mixing):
        if "popularity_weight" not in row:
            return {}
        name, value = family_of(row), number_at(row, METRIC)
        if value is not None:
            best[name] = max(best.get(name, value), value)
    return dict(sorted(best.items(), key=lambda one: -one[1]))


def family_of(weights: Mapping[str, float]) -> str:
    """What a mixture is called."""
    if not weights.get("fold_in_weight"):
        return "popularity"
    return "fedials-order" if any(weights.get(name) for name in _ORDER) else "fedials"


def search_text(summary: Mapping[str, Any]) -> str:
    """Say in a line what was chosen, by how much, and what the search took; else nothing."""
    section, said = summary.get("search"), list[str]()
    given = section.get("families") if isinstance(section, Mapping) else None
    names = list(given) if isinstance(given, Mapping) else []
    families = [(visible(str(name)), value) for name in names if (value := number_at(given, name)) is not None]
    if families:
        served = visible(str(section.get("served"))) if isinstance(section, Mapping) else ""
        (first, value), *others = sorted(families, key=lambda one: one[0] != served)
        text = f"chose {first}: validation NDCG@10 {value:.4f}"
        rest = ", ".join(f"{name} {one:.4f}" for name, one in others)
        said.append(f"{text} ({rest}; margin {value - others[0][1]:+.4f})" if others else text)
        if first == "popularity":
            said.append("nothing beats popularity here, so popularity is served")
    tables, rounds, seconds = (number_at(section, name) for name in ("tables", "rounds", "seconds"))
    if isinstance(section, Mapping) and tables and rounds:
        up, down = (bytes_text(number_at(section, name)) for name in ("bytes_up", "bytes_down"))
        said.append(
            f"settings: {visible(settings_text(section.get('chosen')))}, of {tables:.0f} in {rounds:.0f} rounds, "
            f"{seconds or 0:.1f} s, {up} up and {down} down a user"
        )
    return f"{visible(str(summary.get('method')))} {'; '.join(said)}." if said else ""


def picture(diagnostics: Mapping[str, Any], *, image_format: ImageFormat = "svg") -> bytes:
    """Draw the validation NDCG@10 of each table that was compared, by stage; kept ones are orange."""
    rows = [row for row in _rows(diagnostics.get("search")) if number_at(row, METRIC) is not None]
    if not rows:
        raise NothingToDrawError("no settings were searched")
    stages = sorted({number_at(row, "stage") or 0 for row in rows})
    with panels(len(stages)) as (figure, axes):
        for stage, axis in zip(stages, axes, strict=True):
            own = sorted(
                (row for row in rows if (number_at(row, "stage") or 0) == stage), key=lambda row: _value(row, METRIC)
            )
            names = [
                f"a {_value(row, 'weight'):g}, λ {_value(row, 'ridge'):g}, h {_value(row, 'half_life'):g}"
                for row in own
            ]
            colours = [ORANGE if row.get("kept") else GREY for row in own]
            values = [_value(row, METRIC) for row in own]
            bars = axis.barh(np.arange(len(own)), values, color=colours, height=0.7)
            axis.bar_label(bars, [f"{value:.4f}" for value in values], padding=2, fontsize=8)
            axis.set_yticks(np.arange(len(own)), names, fontsize=8)
            axis.set(title=f"Comparison {stage:g}", xlabel="validation NDCG@10 (orange: kept)")
            axis.margins(x=0.15)
            axis.grid(axis="x")
        return image_bytes(figure, image_format)


def _rows(section: object) -> list[Mapping[str, Any]]:
    stored = section.get("rows") if isinstance(section, Mapping) else None
    return [row for row in stored if isinstance(row, Mapping)] if isinstance(stored, list) else []


def _value(row: Mapping[str, Any], name: str) -> float:
    return number_at(row, name) or 0.0
