"""Numbers that batches move, with their gradients and moments."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fedem_flwr.engine.fused.compiled import inner
from fedem_flwr.engine.fused.functions import fill

_f: Any = np.float32


class Moving(NamedTuple):
    """Numbers that a batch moves, whole vectors of them; gradients are 0 between batches."""

    values: np.ndarray
    first: np.ndarray
    second: np.ndarray
    gradient: np.ndarray


def moving(size: int) -> Moving:
    """Room for so many."""
    values, first, second, gradient = (np.zeros(size, np.float32) for _ in range(4))
    return Moving(values, first, second, gradient)


@inner
def begin(part: Moving, count: int) -> None:
    """Fresh moments of the first so many."""
    fill(part.first, count, _f(0))
    fill(part.second, count, _f(0))


@inner
def begin_vector(part: Moving, values: np.ndarray) -> None:
    """Take values in; what fills the last vector up is 0."""
    for c in range(len(part.values)):
        part.values[c] = values[c] if c < len(values) else _f(0)
    begin(part, len(part.values))


@inner
def end_vector(part: Moving, values: np.ndarray) -> None:
    """Hand them back."""
    for c in range(len(values)):
        values[c] = part.values[c]
