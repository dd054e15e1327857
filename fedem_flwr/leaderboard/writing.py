"""What a comparison leaves in its folder, in all its forms."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedem_flwr.errors import FedemError
from fedem_flwr.files import write_atomically
from fedem_flwr.leaderboard.contrasts import Contrasts, contrasts_of
from fedem_flwr.leaderboard.folder import FORMAT, RESULTS, Folder
from fedem_flwr.leaderboard.gather import BEYOND, COSTS, Row, Spread, Table
from fedem_flwr.leaderboard.page import pictures_of, render
from fedem_flwr.leaderboard.plain_tables import Place, comma_separated, latex, markdown
from fedem_flwr.leaderboard.published import published
from fedem_flwr.report.run_directory import plain
from fedem_flwr.version import __version__


def write_leaderboard(
    folder: Folder, tables: Sequence[Table], *, remarks: Sequence[str] = (), command: str = "", title: str = ""
) -> Path:
    """Write the folder's page, tables and pictures; returns the page.

    Args:
        remarks: what a reader must know: cells that failed, or were left out.

    Raises:
        FedemError: it cannot be written; what was there stays.
    """
    contrasts = {(table.dataset, table.protocol): contrasts_of(table) for table in tables}
    drawn, images = pictures_of(tables)
    try:
        folder.figures.mkdir(exist_ok=True)
    except OSError as error:
        raise FedemError(
            f"cannot write {folder.figures}: {error.strerror}; free space, then say the same again"
        ) from error
    for name, image in images.items():
        write_atomically(folder.figures / re.sub(r"[^A-Za-z0-9._-]+", "-", name), image)
    for protocol in dict.fromkeys(table.protocol for table in tables):
        inside = [table for table in tables if table.protocol == protocol]
        write_atomically(folder.path / f"leaderboard-{protocol}.csv", comma_separated(inside))
    write_atomically(folder.path / "leaderboard.md", markdown(tables, contrasts, remarks, folder.path))
    write_atomically(folder.path / "leaderboard.tex", latex(tables))
    folder.write(RESULTS, plain(_record(tables, contrasts, remarks, command)))
    page = folder.path / "leaderboard.html"
    shown = title or f"Leaderboard: {', '.join(dict.fromkeys(table.dataset for table in tables))}"
    write_atomically(
        page, render(tables, contrasts, drawn, folder=folder.path, title=shown, remarks=remarks, command=command)
    )
    return page


def _record(
    tables: Sequence[Table], contrasts: Mapping[Place, Contrasts], remarks: Sequence[str], command: str
) -> dict[str, Any]:
    """leaderboard.json: all that the other forms are made of."""
    return {
        "format": FORMAT,
        "version": __version__,
        "command": command,
        "remarks": list(remarks),
        "tables": [
            {
                "dataset": table.dataset,
                "protocol": table.protocol,
                "headline": table.headline,
                "rows": [_row(table, row) for row in table.rows],
                "differences": [
                    {**asdict(each.difference), "method": each.method, "against": each.against, "p_holm": each.adjusted}
                    for each in contrasts[table.dataset, table.protocol].found
                ],
            }
            for table in tables
        ],
    }


def _row(table: Table, row: Row) -> dict[str, Any]:
    def spread(each: Spread | None) -> dict[str, Any] | None:
        return None if each is None else {"mean": each.mean, "std": each.deviation, "values": each.values}

    known = [] if row.is_control else published(table.dataset, table.protocol, row.label)
    return {
        "method": row.label,
        "control": row.is_control,
        "seeds": [record.name.seed for record in row.records],
        "runs": [] if row.is_control else [record.directory.path.name for record in row.records],
        "figures": {f"{way}/{metric}": spread(each) for (way, metric), each in row.figures.items()},
        "without_federation": {f"{way}/{metric}": spread(each) for (way, metric), each in row.alone.items()},
        "costs": {cost: spread(row.costs.get(cost)) for cost in COSTS},
        "lists": {name: spread(row.lists.get(name)) for name in BEYOND},
        "privacy": asdict(row.privacy) if row.privacy else None,
        "published": [{"source": each.source, "hr@10": each.figures[0], "ndcg@10": each.figures[1]} for each in known],
    }
