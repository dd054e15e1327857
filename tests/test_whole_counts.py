"""What a server divides by is a whole number of things that were there: no upload makes a table of it infinite."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import ITEMS, carry_out, config_of

from strategies.method import MethodStrategy

Named = dict[str, np.ndarray]
TINY = 1e-38
EACH = 10
SETTINGS: dict[str, Any] = {
    "model": {"dim": 8},
    "local": {"epochs": 1},
    "evaluation": {"every": 100},
    "order": {"rounds": 2, "participants": 1.0, "layers": 1, "heads": 2, "window": 6, "negatives": 5, "map": 4},
    "group_tables": {"merge": "item", "groups": 2, "clustering": 2, "rounds": 1, "steps": 1},
}
ROUNDS = {"fedials-order": 3, "fedials-elastic": 7, "fedmf-elastic": 7}


def tiny(name: str) -> Callable[[Named], Named]:
    """Almost nothing in place of numbers of things."""
    return lambda arrays: arrays | {name: (arrays[name] * np.float64(TINY)).astype(np.float32)}


def times(factor: float, *names: str) -> Callable[[Named], Named]:
    return lambda arrays: arrays | {name: (arrays[name] * factor).astype(arrays[name].dtype) for name in names}


def put(name: str, at: Any, value: float) -> Callable[[Named], Named]:
    def change(arrays: Named) -> Named:
        arrays[name].reshape(-1)[at] = value
        return arrays

    return change


def row_of_nobody(arrays: Named) -> Named:
    arrays["items-weight"][7], arrays["items"][7] = 0, 1.0
    return arrays


def without_diagonal(arrays: Named) -> Named:
    """An item that leads to others, and was never there itself."""
    rows, columns = np.divmod(arrays["pairs"], ITEMS)
    first = rows[arrays["pair-cross"] > 0][0]
    arrays["pair-gram"][(rows == first) & (columns == first)] = 0
    return arrays


def more_than_one_position_gives(arrays: Named) -> Named:
    return put("positions", 0, 1)(put("weights", 0, 3e6)(arrays))


# Method, kind of upload, what is done to a valid one, and what is said of it.
FAULTS: list[tuple[str, str, Callable[[Named], Named], str]] = [
    ("fedmf", "train", tiny("items-weight"), "'items-weight' has type float32, not int32"),
    ("fedmf", "train", row_of_nobody, "'items' has values that nobody is behind"),
    ("fedmf", "train", put("items-weight", 7, EACH + 1), f"'items-weight' are not whole numbers between 0 and {EACH}"),
    ("fedmf-sr", "train", tiny("items-weight"), "'items-weight' has type float32, not int64"),
    ("fedmf-sr", "train", times(2, "items-weight"), r"'items-weight' is \d+, not between 0 and \d+"),
    ("fedials-order", "map", put("pair-gram", slice(None), TINY), "'pair-gram' has sums that are less than a single"),
    ("fedials-order", "map", put("pair-cross", 0, TINY), "'pair-cross' has sums that are less than a single"),
    ("fedials-order", "map", without_diagonal, "'pair-cross' has items that 'pair-gram' does not know"),
    ("fedials-order", "encoder", put("positions", 0, 0), "gradients of no position"),
    ("fedials-order", "encoder", more_than_one_position_gives, r"'weights' has an entry of 3e.06, more than 657"),
    ("fedials-elastic", "groups", tiny("members"), "'members' has type float32, not int32"),
    ("fedials-elastic", "groups", times(0, "members"), "'group-counts' are of more users than their groups have"),
    ("fedials-elastic", "cluster", tiny("members"), "'members' has type float32, not int32"),
    ("fedials-elastic", "curve", tiny("behind"), "'behind' has type float32, not int64"),
    ("fedials-elastic", "curve", put("behind", 0, 2 * EACH + 1), f"'behind' is 21, not between 0 and {2 * EACH}"),
    ("fedials-elastic", "curve", put("behind", 0, 1), "'curve' cannot be of 1 held-out items"),
    ("fedials-elastic", "curve", put("curve", 0, -1), "'curve' cannot be of 20 held-out items"),
    ("fedials-elastic", "theta", tiny("behind"), "'behind' has type float32, not int64"),
    ("fedials-elastic", "theta", put("theta", 0, 3e38), "'theta' cannot be of 20 held-out items"),
    ("fedmf-elastic", "table", tiny("items-weight"), "'items-weight' has type float32, not int32"),
    ("fedmf-elastic", "groups", tiny("group-counts"), "'group-counts' has type float32, not int32"),
    ("fedmf-elastic", "curve", tiny("behind"), "'behind' has type float32, not int64"),
]


def verdicts(method: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """What the strategy says of each fault, tried on the first valid upload of its kind."""
    config = config_of(method, **SETTINGS, run={"rounds": ROUNDS.get(method, 1), "users_per_node": EACH})
    found: dict[int, str] = {}
    honest = MethodStrategy.problem

    def spy(strategy: MethodStrategy, arrays: Named, uploaders: np.ndarray, participants: np.ndarray) -> str:
        for number, (of, upload, change, _) in enumerate(FAULTS):
            if (of, upload) == (method, strategy.upload) and number not in found:
                copies = {name: np.array(values) for name, values in arrays.items()}
                found[number] = honest(strategy, change(copies), uploaders, participants)
        return str(honest(strategy, arrays, uploaders, participants))

    monkeypatch.setattr(MethodStrategy, "problem", spy)
    assert carry_out(path, config).outcome.failures == [], "honest uploads are taken"
    return found


@pytest.mark.parametrize("method", sorted({method for method, *_ in FAULTS}))
def test_what_is_no_number_of_anything_is_refused(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = verdicts(method, tmp_path, monkeypatch)
    assert len(found) == sum(fault[0] == method for fault in FAULTS)
    for number, said in found.items():
        assert re.search(FAULTS[number][3], said), (FAULTS[number][1:], said)
