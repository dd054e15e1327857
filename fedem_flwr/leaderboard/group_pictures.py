"""How methods do by group of users: by activity, or by what a model knew of them (the form of FedEM's Figure 2)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import Any

from fedem_flwr.leaderboard.gather import Record, Row, Spread, Table
from fedem_flwr.report.drawing import RUN_COLOURS, NothingToDrawError, image_bytes, panels
from fedem_flwr.report.run_directory import number_at

_STYLES = ("-", "--", ":", "-.")  # one a round through the colours
_METRICS = ("hr@10", "ndcg@10")


def by_group(table: Table) -> bytes:
    """Headline HR@10 and NDCG@10 of each method by group of users, the mean over seeds and its standard deviation.

    Groups are those of `diagnostics.json`: up to five by number of interactions, the sparsest first. With variants of a
    method that differ in ρ as rows, this is groups × ρ.
    """
    labels = _labels(table)
    drawn = [row for row in table.methods if any(_groups(record) for record in row.records)]
    if not labels or not drawn:
        raise NothingToDrawError("groups of users were not recorded")
    places = range(len(labels))
    with panels(2) as (figure, axes):
        for axis, metric in zip(axes, _METRICS, strict=True):
            for number, (row, colour) in enumerate(zip(drawn, cycle(RUN_COLOURS), strict=False)):
                spreads = [_spread(row, label, metric) for label in labels]
                known = [(place, each) for place, each in zip(places, spreads, strict=True) if each is not None]
                axis.errorbar(
                    [place for place, _ in known],
                    [each.mean for _, each in known],
                    [each.deviation or 0.0 for _, each in known],
                    fmt=f"o{_STYLES[number // len(RUN_COLOURS) % len(_STYLES)]}",
                    color=colour,
                    ms=4,
                    capsize=2,
                    label=row.label,
                )
            axis.set_xticks(list(places), [_tick(table, label) for label in labels])
            axis.set(title=metric.upper(), ylim=(0, None))
            axis.margins(x=0.12)
            axis.grid(axis="y")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
        return image_bytes(figure, "svg")


def _groups(record: Record) -> list[Mapping[str, Any]]:
    groups = record.diagnostics.get("groups")
    return [group for group in groups if isinstance(group, Mapping)] if isinstance(groups, list) else []


def _labels(table: Table) -> list[str]:
    """Of the run with most groups: ties leave fewer than five in some."""
    found = [[str(group.get("label")) for group in _groups(record)] for row in table.methods for record in row.records]
    return max(found, key=len, default=[])


def _spread(row: Row, label: str, metric: str) -> Spread | None:
    return Spread.of(
        number_at(group, metric) for record in row.records for group in _groups(record) if group.get("label") == label
    )


def _tick(table: Table, label: str) -> str:
    """A group's name, how many users it has, and how many training rows these have on average."""
    users, rows = (_of_any(table, label, key) for key in ("users", "mean_interactions"))
    return f"{label}\n{users:.0f} users\n∅ {rows:.0f} rows"


def _of_any(table: Table, label: str, key: str) -> float:
    found = [_spread(row, label, key) for row in table.methods]
    return next((each.mean for each in found if each is not None), 0.0)
