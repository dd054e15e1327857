"""What a stock Flower strategy remembers from round to round, for checkpoints: momenta and the like.

Flower's strategies offer no way of saving themselves. What those of Flower 1.41 and 1.42 keep are attributes that hold
arrays by name (`m_t`, `v_t` of FedAdam) or in a list (`momentum_vector` of FedAvgM); the model itself is handed to them
anew in every round.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from flwr.serverapp.strategy import Strategy

_PREFIX = "strategy:"


def memory_of(strategy: Strategy) -> dict[str, np.ndarray]:
    """The arrays of a strategy's attributes, named `strategy:ATTRIBUTE:KEY`; in lists the key is a number."""
    out: dict[str, np.ndarray] = {}
    for attribute, value in vars(strategy).items():
        entries = dict(enumerate(value)) if isinstance(value, list) else value
        if type(entries) is dict and entries and all(isinstance(array, np.ndarray) for array in entries.values()):
            out |= {f"{_PREFIX}{attribute}:{key}": array for key, array in entries.items()}
    return out


def give_memory(strategy: Strategy, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Undo `memory_of`; returns the arrays that are not the strategy's: the model."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        if name.startswith(_PREFIX):
            attribute, _, key = name.removeprefix(_PREFIX).partition(":")
            found.setdefault(attribute, {})[key] = np.array(array)
    for attribute, entries in found.items():
        numbered = all(key.isdecimal() for key in entries)
        value = [entries[key] for key in sorted(entries, key=int)] if numbered else entries
        setattr(strategy, attribute, value)
    return {name: array for name, array in arrays.items() if not name.startswith(_PREFIX)}
