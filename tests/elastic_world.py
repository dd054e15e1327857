"""Runs with elastic merging that go through all their phases in a second, and histories from lists."""

from __future__ import annotations

from typing import Any

import numpy as np
from worlds import config_of

from fedem_flwr.config import Config
from fedem_flwr.engine.history import History

METHODS = ["fedials-elastic", "fedmf-elastic"]
MODES = ["all", "client", "item"]
SMALL: dict[str, Any] = {"groups": 3, "clustering": 3, "rounds": 2, "steps": 2}
TABLE, BEFORE_FIT = 3, 3 + 3 + 2  # rounds of the global table, and of all that comes before ρ is fitted


def small(method: str, merge: str, **sections: Any) -> Config:
    """A run through all phases in a second."""
    rounds = BEFORE_FIT + 1 + (2 if merge == "item" else 0) + 2
    own: dict[str, dict[str, Any]] = {
        "run": {"rounds": rounds},
        "group_tables": {**SMALL, "merge": merge},
        "model": {"dim": 8},
        "evaluation": {"every": 1},
    }
    return config_of(method, **{name: {**own.get(name, {}), **sections.get(name, {})} for name in {*own, *sections}})


def random_history(lists: list[list[int]], items: int, newest: list[int] | None = None) -> History:
    values = np.array([item for row in lists for item in row], np.int64)
    offsets = np.append(0, np.cumsum([len(row) for row in lists]))
    late = None if newest is None else np.array(newest)
    return History(np.arange(len(lists)) + 5, items, offsets, values, late)


def rows_of(history: History) -> list[list[int]]:
    return [part.tolist() for part in np.split(np.asarray(history.values), history.offsets[1:-1])]
