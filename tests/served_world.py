"""A run of fedials whose lists can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from worlds import carry_out, config_of

from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.checkpoint import Checkpoint, Checkpoints, served_checkpoint

DIM, WEIGHT, RIDGE, HALF_LIFE, FACTOR = 8, 0.2, 0.01, 3.0, 2.0
FOLD_IN = {"tune": False, "half_life": HALF_LIFE, "ridge": FACTOR}
IALS = {"weight": WEIGHT, "ridge": RIDGE}


def closed_form_run(folder: Path) -> Path:
    """The directory of a finished run in which every round is evaluated."""
    config = config_of("fedials", model={"dim": DIM}, ials=IALS, fold_in=FOLD_IN, evaluation={"every": 1})
    return carry_out(folder, config).run.directory.path


def checkpoint_of(run: Path) -> tuple[Checkpoints, Checkpoint]:
    store = Checkpoints(RunDirectory(run).checkpoint_dir)
    point = store.load()
    assert point is not None
    return store, point


def table_of(run: Path) -> np.ndarray:
    arrays = served_checkpoint(RunDirectory(run)).arrays
    return arrays["table" if "table" in arrays else "items"].astype(np.float64)


def by_hand(table: np.ndarray, history: Sequence[int]) -> np.ndarray:
    """(m,) scores: the normal equations of the documented objective, one item after the other, in float64."""
    items, dim = table.shape
    system, right, total = WEIGHT * table.T @ table, np.zeros(dim), 0.0
    for newer, item in enumerate(reversed(history)):
        counts = 0.5 ** (newer / HALF_LIFE)
        system = system + counts * np.outer(table[item], table[item])
        right = right + counts * table[item]
        total += counts
    system = system + FACTOR * RIDGE * (total + WEIGHT * items) * np.eye(dim)
    return table @ (np.linalg.inv(system) @ right)


def expected(scores: np.ndarray, items: list[str], seen: Sequence[int], top: int) -> list[tuple[str, float]]:
    ranked = sorted(set(range(len(items))) - set(seen), key=lambda code: -scores[code])
    return [(items[code], float(scores[code])) for code in ranked[:top]]


def same(found: Sequence[tuple[str, float]], wanted: Sequence[tuple[str, float]], tolerance: float = 2e-5) -> None:
    assert [item for item, _ in found] == [item for item, _ in wanted]
    assert [score for _, score in found] == pytest.approx([score for _, score in wanted], abs=tolerance)
