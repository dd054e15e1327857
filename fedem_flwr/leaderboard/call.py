"""`fedem_flwr.compare`: a grid of runs from Python, and its leaderboard as a DataFrame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fedem_flwr.config import Tree
from fedem_flwr.errors import FedemError
from fedem_flwr.evaluation.ranking import LISTS
from fedem_flwr.leaderboard.compare import Compared, compare_cells, compare_runs, default_jobs
from fedem_flwr.leaderboard.folder import DEFAULT_ROOT
from fedem_flwr.leaderboard.gather import BEYOND, COSTS, METRIC_NAMES, PRIVACY, Spread
from fedem_flwr.leaderboard.grid import Axes, cells_of

if TYPE_CHECKING:
    import pandas as pd


def compare_tree(
    tree: Tree,
    options: Tree,
    axes: Axes,
    *,
    origin: str,
    out: Path | None,
    jobs: int | None,
    command: str,
    console: Console | None,
    parallel: str = "processes",
) -> pd.DataFrame:
    """Carry out a grid; see `grid.cells_of` and `compare.compare_cells`.

    Raises:
        FedemError: cells failed; the leaderboard of the others is written.
    """
    cells = cells_of(tree, options, axes, origin=origin)
    place = out or DEFAULT_ROOT / "comparison"
    at_a_time = jobs or default_jobs()
    compared = compare_cells(cells, place, jobs=at_a_time, command=command, console=console, parallel=parallel)
    if compared.failed:
        name, why = next(iter(compared.failed.items()))
        raise FedemError(f"{len(compared.failed)} of {len(cells)} cells failed; {name}: {why}")
    return frame_of(compared)


def compare_finished(runs: Sequence[Path], out: Path | None) -> pd.DataFrame:
    """The leaderboard of finished runs."""
    return frame_of(compare_runs(runs, out or DEFAULT_ROOT / "runs"))


def frame_of(compared: Compared) -> pd.DataFrame:
    """A row for each protocol, data set and method or control.

    Columns: ``full/ndcg@10`` and so on, means over seeds, ``... std`` beside them where there are several; costs; what
    users' top 10 hold; epsilon and delta, where uploads are noised; seeds. ``attrs["folder"]`` is where the leaderboard
    lies.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for table in compared.tables:
        for row in table.rows:
            found: dict[str, Any] = {"protocol": table.protocol, "dataset": table.dataset, "method": row.label}
            found |= {"control": row.is_control, "seeds": len(row.records)}
            for way in LISTS:
                for metric in METRIC_NAMES:
                    found |= _columns(f"{way}/{metric}", row.figures.get((way, metric)))
            for cost in COSTS:
                found[cost] = spread.mean if (spread := row.costs.get(cost)) else None
            found |= {name: spread.mean if (spread := row.lists.get(name)) else None for name in BEYOND}
            found |= dict.fromkeys(PRIVACY) if row.privacy is None else asdict(row.privacy)
            rows.append(found)
    frame = pd.DataFrame(rows).set_index(["protocol", "dataset", "method"])
    frame.attrs["folder"] = str(compared.folder.path)
    return frame


def _columns(name: str, spread: Spread | None) -> Mapping[str, float | None]:
    if spread is None:
        return {name: None}
    return {name: spread.mean} | ({} if spread.deviation is None else {f"{name} std": spread.deviation})
