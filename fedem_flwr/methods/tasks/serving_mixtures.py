"""What `auto` may serve: the fold-in's scores, with those of order or popularity beside them; popularity alone."""

from __future__ import annotations

from collections.abc import Sequence

from fedem_flwr.contract.tuning import Row

FOLD_IN, POPULAR = "fold_in_weight", "popularity_weight"
ALONE: Row = {FOLD_IN: 1.0, POPULAR: 0.0}
_BESIDE = (0.25, 0.5, 1.0)  # weights of popularity beside the fold-in's 1


def mixtures(grid: Sequence[Row]) -> list[Row]:
    """The weights that are tried.

    Args:
        grid: of order's parts; where there is no order, one row of zeros.
    """
    none = dict.fromkeys(grid[0], 0.0)
    with_order = [{FOLD_IN: 1.0, **row, POPULAR: 0.0} for row in grid]
    with_popularity = [{FOLD_IN: 1.0, **none, POPULAR: weight} for weight in _BESIDE]
    return [*with_order, *with_popularity, {FOLD_IN: 0.0, **none, POPULAR: 1.0}]
