"""The groups of users of a run under ``temporal``, in words and as rows of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fedem_flwr.report.labels import CONTROL_LABELS, control_label
from fedem_flwr.report.run_directory import number_at

TEMPORAL: Final = "temporal"
"""Key of what a run under this protocol has for itself, in its summary."""
METHOD: Final = "method"
"""Key of the method's own figures in a group."""
GROUP_HEADS: Final = ("users", "asked", "new items", "not served")
_DEVICES: Final = {
    "solve": "devices solve their user from the history",
    "adapted": "devices train their private parts on the history first (adapted)",
    "stale": "devices score with what training left them (stale)",
}


def of_summary(summary: Mapping[str, object]) -> Mapping[str, Any]:
    """What a summary says of the second training; empty where there was none."""
    section = summary.get(TEMPORAL)
    return section if isinstance(section, Mapping) else {}


def groups_in(summary: Mapping[str, object]) -> list[Mapping[str, Any]]:
    """The groups of a summary."""
    groups = of_summary(summary).get("groups")
    return [group for group in groups if isinstance(group, Mapping)] if isinstance(groups, list) else []


def asked_text(summary: Mapping[str, object]) -> str:
    """What was trained until when, and what was asked; empty where there are no instants."""
    section = of_summary(summary)
    if not section:
        return ""
    whole = next(iter(groups_in(summary)), {})
    users, new, unserved = (int(number_at(whole, key) or 0) for key in ("users", "new_items", "unserved"))
    said = (
        f"Trained anew for {section.get('rounds')} rounds on all rows before {section.get('date')}; {users:,} users "
        f"are asked for their {section.get('target')} row from then on, and "
        f"{_DEVICES.get(str(section.get('device')), 'devices do what they can')}"
    )
    said += f"; {new:,} targets are new items, which nothing here can rank: misses" if new else ""
    said += f"; {unserved:,} users cannot be served: misses" if unserved else ""
    return said + "."


def group_rows(
    summary: Mapping[str, object], metric: str = "full/ndcg@10"
) -> list[tuple[str, list[int], list[float | None]]]:
    """A row a group: its name; users, new items, users not served; the method's figure and those of `columns`."""
    return [
        (
            str(group.get("label")),
            [int(number_at(group, key) or 0) for key in ("users", "new_items", "unserved")],
            [number_at(group, "figures", name, metric) for name in (METHOD, *columns(summary))],
        )
        for group in groups_in(summary)
    ]


def group_cells(summary: Mapping[str, object]) -> list[list[str]]:
    """The same as texts, under `GROUP_HEADS`, the method and `column_labels`."""
    return [
        [label, *(f"{count:,}" for count in counts), *("–" if value is None else f"{value:.4f}" for value in figures)]
        for label, counts, figures in group_rows(summary)
    ]


def columns(summary: Mapping[str, object]) -> list[str]:
    """The controls that the groups have figures of."""
    whole = next(iter(groups_in(summary)), {})
    figures = whole.get("figures", {})
    return [key for key in CONTROL_LABELS if key in figures]


def column_labels(summary: Mapping[str, object]) -> list[str]:
    """Their names."""
    return [control_label(key) for key in columns(summary)]


def groups_text(summary: Mapping[str, object]) -> list[str]:
    """A line a group for the terminal: NDCG@10 of the method and of the best control."""
    said = []
    names = column_labels(summary)
    for label, (users, new, unserved), (own, *others) in group_rows(summary):
        if not users or own is None:
            said.append(f"{label}: nobody")
            continue
        known = [(value, name) for value, name in zip(others, names, strict=True) if value is not None]
        against = f" ({max(known)[1]} {max(known)[0]:.4f})" if known else ""
        lacking = [f"{new:,} new items"] if new else []
        lacking += [f"{unserved:,} not served"] if unserved else []
        aside = f", {', '.join(lacking)}" if lacking else ""
        said.append(f"{label}: {users:,} users{aside}: NDCG@10 {own:.4f}{against}")
    return said
