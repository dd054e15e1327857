"""Small grids of runs, and what they are when they are carried out one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dying import results
from worlds import SYNTHETIC

from fedem_flwr.config import Tree
from fedem_flwr.experiment.flow import Runs, carry_out
from fedem_flwr.leaderboard.cells import Prepared
from fedem_flwr.leaderboard.grid import Axes, cells_of
from fedem_flwr.runtime.prepared import PreparedRun

OPTIONS: Tree = {
    "data": {"synthetic": SYNTHETIC},
    "local": {"epochs": 1},
    "run": {"rounds": 3, "checkpoint_every": 1, "device": "cpu"},
    "evaluation": {"controls": False, "local_only": False},
}


def one_after_the_other(cells: list[Prepared]) -> Iterator[tuple[str, dict[str, Any]]]:
    """In this process, without an interruption."""
    for cell in cells:
        cell.lay_out("reference")
        carry_out(Runs(PreparedRun.open(cell.directory)))
        yield str(cell.name), results(cell.directory.path)


def small(methods: list[str], seeds: int = 1, **options: Any) -> list[Any]:
    return cells_of({}, {**OPTIONS, **options}, Axes(methods, seeds=seeds), origin="here")
