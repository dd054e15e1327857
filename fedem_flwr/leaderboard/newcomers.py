"""Under `temporal`: the methods and controls of a table by group of users: warm, with some rows, newcomers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fedem_flwr.leaderboard.gather import Record, Spread, Table
from fedem_flwr.leaderboard.tables import spread_text
from fedem_flwr.report.groups import METHOD, groups_in
from fedem_flwr.report.labels import CONTROL_LABELS
from fedem_flwr.report.run_directory import number_at

GROUP_WORDS = (
    "NDCG@10 in the whole catalogue by what the model knew of a user at the instant. A target that is a new item, and "
    "a user that a method cannot serve, is a miss."
)
_PATH = "full/ndcg@10"


def group_table(table: Table) -> tuple[list[str], list[list[str]]] | None:
    """Heads and rows, a method or control each; None where runs have no such groups."""
    whole = next((found for row in table.methods for r in row.records if (found := groups_in(r.summary))), None)
    if whole is None:
        return None
    keys = {label: key for key, label in CONTROL_LABELS.items()}
    labels = [str(group.get("label")) for group in whole]
    rows = []
    for row in table.rows:
        key = keys.get(row.label, row.label) if row.is_control else METHOD
        spreads = [_spread(row.records, label, key) for label in labels]
        if any(spreads):
            rows.append([row.label, *map(spread_text, spreads)])
    records = [record for row in table.methods for record in row.records]
    asked = [["users asked", *(_count(records, label, "users") for label in labels)]]
    asked += [["for new items", *(_count(records, label, "new_items") for label in labels)]]
    return ["method", *labels], [*asked, *rows]


def _group(record: Record, label: str) -> Mapping[str, Any]:
    return next((group for group in groups_in(record.summary) if group.get("label") == label), {})


def _spread(records: Iterable[Record], label: str, key: str) -> Spread | None:
    return Spread.of(number_at(_group(record, label), "figures", key, _PATH) for record in records)


def _count(records: Iterable[Record], label: str, key: str) -> str:
    """How many a group has; a range where seeds differ."""
    found = sorted({int(number_at(_group(record, label), key) or 0) for record in records})
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"
