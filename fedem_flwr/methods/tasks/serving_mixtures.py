"""What `auto` may serve: the fold-in's scores, with those of order beside them, or popularity alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fedem_flwr.contract.tuning import Row

FOLD_IN, POPULAR = "fold_in_weight", "popularity_weight"
ALONE: Row = {FOLD_IN: 1.0, POPULAR: 0.0}


def mixtures(grid: Sequence[Row]) -> list[Row]:
    """The weights that are tried.

    Args:
        grid: of order's parts; where there is no order, one row of zeros.
    """
    return [*({**row, **ALONE} for row in grid), {**dict.fromkeys(grid[0], 0.0), FOLD_IN: 0.0, POPULAR: 1.0}]


def mixture_weights(rows: Sequence[Row], wanted: Iterable[int], parts: int) -> Mapping[int, list[float]]:
    """The weights of a scorer's parts in the rows that are wanted: the fold-in, what there is of order, popularity."""
    names = [*(FOLD_IN, "order_weight", "map_weight")[: parts - 1], POPULAR]
    return {row: [rows[row][name] for name in names] for row in wanted}
