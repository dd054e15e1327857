"""How far local training can take a row: what a server may hold an upload against without knowing any history."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedem_flwr.engine.epochs import LocalSettings
from fedem_flwr.engine.optimizer import BETA_1, BETA_2, Update

# A step of Adam moves a coordinate by η m / √v, with m = Σ w_i g_i and v = Σ u_i g_i² over the gradients so far. By
# Cauchy and Schwarz, m² ≤ v Σ w_i² / u_i; that sum is largest after many steps, where it is (1 − β₁)² / (1 − β₂) times
# a geometric series. In practice a step is about η.
_STEP = math.sqrt((1 - BETA_1) ** 2 / (1 - BETA_2) / (1 - BETA_1**2 / BETA_2))
_ROUNDING = 1.01


def reach(
    updates: Sequence[Update], name: str, width: int, local: LocalSettings, items: int, *, decoys: float = 0.0
) -> float:
    """The furthest that one round takes a row (width,) of a part, for a user with so many training items.

    Args:
        updates: of a batch. decoys: negatives for each positive beside the fresh ones.

    Returns:
        A norm; inf where other updates than Adam's move the part.
    """
    samples = items * (1 + local.negatives) + math.ceil(items * decoys)
    steps, total = local.epochs * (math.ceil(samples / local.batch_size) if local.batch_size else 1), 0.0
    for update in updates:
        if name in update.rates:
            total += update.rates[name] * (_STEP if update.kind(name) == "adam" else math.inf)
    return _ROUNDING * total * math.sqrt(width) * steps if total and steps else 0.0


def longest(values: np.ndarray) -> float:
    """The largest norm along the last axis."""
    squares = np.einsum("...i,...i->...", values, values, dtype=np.float64)
    return float(np.sqrt(squares.max(initial=0.0)))
