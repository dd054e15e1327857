"""Searching a grid of settings from coarse to fine: every other value first, then the neighbours of the best."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

Row = tuple[Hashable, ...]


def coarse(rows: Sequence[Row]) -> list[int]:
    """Numbers of the rows that a search begins with: of each setting every other value of the grid, and the last."""
    sizes, places = _places(rows)
    kept = [{*range(0, size, 2), size - 1} for size in sizes]
    return [row for row, place in enumerate(places) if all(at in some for at, some in zip(place, kept, strict=True))]


def around(rows: Sequence[Row], best: int) -> list[int]:
    """Numbers of the rows whose settings are those of the best one, or stand next to them in the grid."""
    _, places = _places(rows)
    return [row for row, place in enumerate(places) if np.abs(np.subtract(place, places[best])).max(initial=0) <= 1]


def _places(rows: Sequence[Row]) -> tuple[list[int], list[tuple[int, ...]]]:
    """How many values each setting has, and where each row's stand among them, in the order of the grid."""
    values = [list(dict.fromkeys(column)) for column in zip(*rows, strict=True)]
    places = [tuple(found.index(value) for value, found in zip(row, values, strict=True)) for row in rows]
    return [len(found) for found in values], places
