"""How a figure goes with one setting: rows of a table that differ in nothing else.

Of the FedEM paper these are Figure 6 (`merge.hidden`, the adapter's depth), Table 4 (`ldp.multiplier`, the noise), and,
over all users, Figure 2 (`merge.rho`).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedem_flwr.config.search import leaves
from fedem_flwr.errors import FedemError
from fedem_flwr.leaderboard.gather import Row, Table
from fedem_flwr.report.drawing import BLUE, GREY, ORANGE, NothingToDrawError, image_bytes, panels

FEWEST = 3  # rows that make a curve
_ASIDE = {"method.name", "method.base", "method.title", "run.seed", "run.threads"}  # a name, and what changes no figure
_METRICS = (("hr@10", BLUE), ("ndcg@10", ORANGE))
_TITLES = {
    "merge.hidden": "Layers of the adapter",
    "merge.rho": "Fixed ρ",
    "ldp.multiplier": "Noise, by its multiplier",
}
_LAYERS = ("merge.hidden",)  # a list of hidden widths: one layer more than it has entries


@dataclass(frozen=True, eq=False)
class Sweep:
    """Rows that differ in one setting.

    Attributes:
        setting: its dotted name.
        points: rows with what they have of it, ascending.
        level: a row that has its whole section as it is by default, and is the same otherwise.
    """

    setting: str
    points: Sequence[tuple[float, Row]]
    level: Row | None


def sweep_of(table: Table) -> Sweep | None:
    """The longest one among a table's methods; None where no three rows differ in one setting alone."""
    known = [(row, found) for row in table.methods if (found := _settings(row))]
    best: Sweep | None = None
    for setting in sorted({key for _, found in known for key in found}):
        groups: dict[str, list[tuple[float, Row]]] = {}
        for row, found in known:
            if (value := _number(setting, found.get(setting))) is not None:
                groups.setdefault(_but(found, setting), []).append((value, row))
        for rest, points in groups.items():
            if len({value for value, _ in points}) < max(FEWEST, len(best.points) + 1 if best else 0):
                continue
            inside = {id(row) for _, row in points}
            without = _but_section(json.loads(rest), setting)
            others = [r for r, found in known if id(r) not in inside and _but_section(found, setting) == without]
            level = others[0] if len(others) == 1 else None
            best = Sweep(setting, sorted(points, key=lambda each: each[0]), level)
    return best


def by_setting(table: Table) -> bytes:
    """Headline HR@10 and NDCG@10 by the setting, the mean over seeds and its standard deviation."""
    found = sweep_of(table)
    if found is None:
        raise NothingToDrawError("no three methods differ in one setting alone")
    places = range(len(found.points))
    with panels(2) as (figure, axes):
        for axis, (metric, colour) in zip(axes, _METRICS, strict=True):
            spreads = [row.figures.get((table.headline, metric)) for _, row in found.points]
            drawn = [(place, each) for place, each in zip(places, spreads, strict=True) if each is not None]
            axis.errorbar(
                [place for place, _ in drawn],
                [each.mean for _, each in drawn],
                [each.deviation or 0.0 for _, each in drawn],
                fmt="o-",
                color=colour,
                ms=5,
                capsize=2,
            )
            for place, each in drawn:
                axis.annotate(f"{each.mean:.3f}", (place, each.mean), (0, 6), textcoords="offset points", ha="center")
            level = None if found.level is None else found.level.figures.get((table.headline, metric))
            if found.level is not None and level is not None:
                axis.axhline(level.mean, color=GREY, linestyle=":", label=f"{found.level.label}: {level.mean:.3f}")
                axis.legend(loc="lower left")
            axis.set_xticks(list(places), [_tick(found.setting, value, row) for value, row in found.points])
            axis.margins(x=0.12)
            axis.set(title=metric.upper(), xlabel=_TITLES.get(found.setting, found.setting))
            axis.set_ylim(0, 1.12 * axis.dataLim.y1)  # room for the highest figure's text
            axis.grid(axis="y")
        return image_bytes(figure, "svg")


def _tick(setting: str, value: float, row: Row) -> str:
    """A value; under noise what it comes to: the composed ε of the user who sent the most."""
    text = f"{value:g}"
    if not setting.startswith("ldp.") or row.privacy is None:
        return text
    spent = row.privacy.epsilon
    return f"{text}\nε {spent:,.{0 if spent >= 100 else 1}f}"


def _settings(row: Row) -> dict[str, Any]:
    """Of a row's first run, by dotted name; empty where it cannot be read."""
    try:
        tree = tomllib.loads(row.records[0].directory.read_config())
    except (FedemError, ValueError):
        return {}
    return {key: value for key, value in leaves(tree) if key not in _ASIDE}


def _number(setting: str, value: object) -> float | None:
    """What a setting is drawn at."""
    if setting in _LAYERS and isinstance(value, list):
        return float(len(value) + 1)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _but(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps({key: value for key, value in settings.items() if key != name}, sort_keys=True, default=str)


def _but_section(settings: Mapping[str, Any], name: str) -> str:
    section = name.partition(".")[0] + "."
    kept = {key: value for key, value in settings.items() if not key.startswith(section)}
    return json.dumps(kept, sort_keys=True, default=str)
