"""What a search inside a run came to: its table, its picture, what it took, and the choice in one line.

The numbers are those of ``diagnostics.json`` and ``metrics.jsonl``; what is missing gives nothing to show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedem_flwr.report.drawing import (
    BLUE,
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

METRIC = "ndcg@10"
_ORDER = ("order_weight", "map_weight")
_SPENT = ("bytes_up", "bytes_down", "node_bytes_up", "node_bytes_down", "seconds")  # of a metrics line


def search_of(lines: Sequence[Json], diagnostics: Mapping[str, Any]) -> dict[str, Any] | None:
    """For summary.json: what was chosen, by how much, and what looking for it took; None where nothing was.

    Args:
        lines: of metrics.jsonl. diagnostics: of the strategy.
    """
    found: dict[str, Any] = {}
    if section := diagnostics.get("search"):
        own = [line for line in lines if line["round"] <= section["rounds"]]
        spent = {name: sum(number_at(line, name) or 0.0 for line in own) for name in _SPENT}
        tables = sum(row["stage"] == 1 for row in section["rows"])
        found |= {"tables": tables, "rounds": section["rounds"], "chosen": section["chosen"], **spent}
    if families := families_of(diagnostics.get("mixing")):
        found["families"] = families
    return found or None


def families_of(mixing: object) -> dict[str, float]:
    """The best validation NDCG@10 of each kind of mixture that was tried, best first; empty without popularity."""
    rows = mixing.get("rows") if isinstance(mixing, Mapping) else None
    best: dict[str, float] = {}
    for row in rows or ():
        if "popularity_weight" not in row:
            return {}
        name = family_of(row)
        best[name] = max(best.get(name, row[METRIC]), row[METRIC])
    return dict(sorted(best.items(), key=lambda one: -one[1]))


def family_of(weights: Mapping[str, float]) -> str:
    """What a mixture is called."""
    if not weights.get("fold_in_weight"):
        return "popularity"
    if any(weights.get(name) for name in _ORDER):
        return "fedials-order"
    return "fedials with popularity" if weights.get("popularity_weight") else "fedials"


def search_text(summary: Mapping[str, Any]) -> str:
    """Say in a line what was chosen, by how much, and what the search took; else nothing."""
    section = summary.get("search")
    if not isinstance(section, Mapping):
        return ""
    said = []
    if families := section.get("families"):
        (first, value), *others = families.items()
        text = f"chose {first}: validation NDCG@10 {value:.4f}"
        rest = ", ".join(f"{name} {one:.4f}" for name, one in others)
        said.append(f"{text} ({rest}; margin {value - others[0][1]:+.4f})" if others else text)
        if first == "popularity":
            said.append("nothing beats popularity here, so popularity is served")
    if section.get("tables"):
        up, down = (bytes_text(section[name]) for name in ("bytes_up", "bytes_down"))
        said.append(
            f"settings: {settings_text(section['chosen'])}, of {section['tables']} in {section['rounds']} rounds, "
            f"{section['seconds']:.1f} s, {up} up and {down} down a user"
        )
    return f"{summary.get('method')} {'; '.join(said)}."


def picture(diagnostics: Mapping[str, Any], *, image_format: ImageFormat = "svg") -> bytes:
    """Draw the validation NDCG@10 of each table that was compared, by stage; kept ones are marked."""
    section = diagnostics.get("search")
    rows = [row for row in (section or {}).get("rows", ()) if number_at(row, METRIC) is not None]
    if not rows:
        raise NothingToDrawError("no settings were searched")
    stages = sorted({int(row["stage"]) for row in rows})
    with panels(len(stages)) as (figure, axes):
        for stage, axis in zip(stages, axes, strict=True):
            own = sorted((row for row in rows if row["stage"] == stage), key=lambda row: row[METRIC])
            names = [f"a {row['weight']:g}, λ {row['ridge']:g}, h {row['half_life']:g}" for row in own]
            colours = [ORANGE if row["kept"] else GREY for row in own]
            bars = axis.barh(np.arange(len(own)), [row[METRIC] for row in own], color=colours, height=0.7)
            axis.bar_label(bars, [f"{row[METRIC]:.4f}" for row in own], padding=2, fontsize=8)
            axis.set_yticks(np.arange(len(own)), names, fontsize=8)
            axis.set(title=f"Comparison {stage}", xlabel="validation NDCG@10 (orange: kept)")
            axis.margins(x=0.15)
            axis.grid(axis="x", color=BLUE, alpha=0.15)
        return image_bytes(figure, image_format)
