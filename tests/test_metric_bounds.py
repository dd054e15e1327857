"""Metric sums decide which round is served: a node's must be possible for the users that it hosts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import WatchedGrid, config_of, crossing, prepare

from fedem_flwr.messages.wire import plain_numbers
from fedem_flwr.runtime.inprocess import task_identity
from strategies.uploads import metrics_problem

HOSTED = 10


@pytest.mark.parametrize("method", ["fedem", "fedmf", "fedials", "fedials-order"])
def test_what_honest_nodes_report_is_possible(method: str, tmp_path: Path) -> None:
    """Every metric of a whole run, groups of users and grids of settings included; one more user would not be."""
    seen: list[dict[str, Any]] = []

    def note(reply: Any, message: Any) -> list[Any]:
        seen.append(crossing(reply, 0).metrics)
        return [reply]

    settings = {"run": {"users_per_node": HOSTED, "rounds": 6}, "order": {"rounds": 2}}
    run = prepare(tmp_path / "run", config_of(method, **settings))
    with task_identity():
        run.server(lambda _: None)(WatchedGrid(run, note))
    told = [metrics for metrics in seen if metrics]
    assert told and all(metrics_problem(metrics, HOSTED) == "" for metrics in told)
    bounded = {name for metrics in told for name in metrics if "@" in name or name.rpartition("/")[2] == "users"}
    assert {"users", "validation/full/ndcg@10", "group-0/users", "group-0/test/full/hr@10"} <= bounded
    for metrics in told:
        for name in bounded & metrics.keys():
            assert "cannot be" in metrics_problem({**metrics, name: HOSTED + 1.0}, HOSTED), name
            assert "cannot be" in metrics_problem({**metrics, name: -1.0}, HOSTED), name


@pytest.mark.parametrize(
    ("metrics", "right"),
    [
        ({"users": 10.0, "validation/full/ndcg@10": 10.0}, True),
        ({"users": 4.0, "validation/full/ndcg@10": 4.5}, False),
        ({"users": 4.5}, False),
        ({"group-1/users": 2.0, "group-1/test/full/mrr": 2.1, "users": 10.0}, False),
        ({"fold-in/users": 10.0, "fold-in/003": 10.5}, False),
        ({"fold-in/users": 10.0, "fold-in/003": 9.5}, True),
        ({"withheld": 10.0}, True),
        ({"withheld": 11.0}, False),
        ({"withheld": 1.5}, False),
        ({"num-examples": -1.0}, False),
        ({"rho/count": 5.0, "rho/total": 6.0}, False),
        ({"loss-total": -1e12, "of-my-own": 1e17}, True),
        ({"nonfinite": 1e300, "users": 5.0}, False),
        ({"loss-total": -1e300}, False),
        ({"loss-total": math.nan}, False),
        ({}, False),
    ],
)
def test_bounds(metrics: dict[str, float], right: bool) -> None:
    assert (metrics_problem(metrics, HOSTED) == "") == right


def test_a_number_that_no_float_holds_is_refused() -> None:
    assert math.isinf(plain_numbers({"x": 10**400, "y": 1})["x"])  # type: ignore[arg-type]
    assert metrics_problem(plain_numbers({"x": -(10**400)}), HOSTED) == "a metric that is not finite"  # type: ignore[arg-type]


@given(st.dictionaries(st.sampled_from(["users", "validation/full/hr@10", "fold-in/001", "x"]), st.floats()))
def test_what_passes_adds_no_more_than_the_nodes_users(metrics: dict[str, float]) -> None:
    if metrics_problem(metrics, HOSTED) == "":
        assert all(math.isfinite(value) for value in metrics.values())
        assert all(0 <= value <= HOSTED + 1e-6 for name, value in metrics.items() if name != "x")
