"""Metric sums decide which round is served: a node's must be asked for, whole, and possible for the users it hosts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import WatchedGrid, config_of, crossing, prepare

from fedem_flwr.runtime.inprocess import task_identity
from strategies.declared import Behind, Declared, grid, ranking
from strategies.roster import NodeRoster

HOSTED = Behind(users=10, interactions=200, examples=2000.0, items=60)
ASKED = Declared.of(evaluated=True, groups=2, own=["of-my-own"]).with_grids({"fold-in": range(5)})


def whole(block: Any, users: float, others: float = 0.0) -> dict[str, float]:
    """A block of metrics."""
    return dict.fromkeys(block.names, others) | {f"{block.prefix}users": users}


ALL = whole(ranking(), 10.0, 3.0)


@pytest.mark.parametrize("method", ["fedem", "fedials-order"])
def test_what_honest_nodes_report_is_asked_for_and_possible(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every metric of a whole run, groups of users and grids of settings included; one more user would not be."""
    seen: list[tuple[Declared, Behind, dict[str, Any]]] = []
    plain = NodeRoster._valid

    def spy(strategy: Any, round_: int, replies: Any) -> Any:
        for reply, metrics in plain(strategy, round_, replies):
            node = reply.metadata.src_node_id
            seen.append((strategy._declared, strategy._behind(node), dict(metrics)))
            assert metrics == crossing(reply, 0).metrics, "nothing is dropped"
            yield reply, metrics

    monkeypatch.setattr(NodeRoster, "_valid", spy)
    settings = {"run": {"users_per_node": 10, "rounds": 6}, "order": {"rounds": 2}}
    run = prepare(tmp_path / "run", config_of(method, **settings))
    with task_identity():
        outcome = run.server(lambda _: None)(WatchedGrid(run))
    assert outcome.failures == [] and not any("nobody had asked" in line for line in outcome.caveats)
    bounded = {name for *_, told in seen for name in told if "@" in name or name.rpartition("/")[2] == "users"}
    assert {"users", "validation/full/ndcg@10", "group-0/users", "group-0/test/full/hr@10"} <= bounded
    assert (method == "fedem") != ("fold-in/users" in bounded)
    for declared, behind, told in seen:
        for name in bounded & told.keys():
            assert "cannot be" in declared.problem({**told, name: behind.users + 1.0}, behind), name
            assert "cannot be" in declared.problem({**told, name: -1.0}, behind), name


@pytest.mark.parametrize(
    ("metrics", "right"),
    [
        (ALL, True),
        ({**ALL, "users": 11.0}, False),
        ({**ALL, "users": 2.0}, False),
        ({**ALL, "users": 9.5}, False),
        ({**ALL, "nonfinite": 21.0}, False),
        ({"users": 10.0, "validation/full/ndcg@10": 10.0}, False),
        (whole(ranking("group-1/", grouped=True), 2.0, 1.0), False),
        ({**ALL, **whole(ranking("group-1/", grouped=True), 2.0, 1.0)}, True),
        ({**ALL, **{f"group-{g}/{n}": v for g in (0, 1) for n, v in ALL.items()}}, False),
        (
            {
                **ALL,
                **whole(ranking("group-0/", grouped=True), 6.0, 1.0),
                **whole(ranking("group-1/", grouped=True), 5.0, 1.0),
            },
            False,
        ),
        ({**ALL, **whole(ranking("group-1/", grouped=True), 2.0, 1.0), "group-1/interactions": 201.0}, False),
        (whole(grid("fold-in", range(5)), 10.0, 9.5), True),
        (whole(grid("fold-in", range(5)), 10.0, 10.5), False),
        ({"fold-in/users": 1.0}, False),
        ({"rho/count": 1.0}, False),
        ({"withheld": 10.0}, True),
        ({"withheld": 11.0}, False),
        ({"withheld": 1.5}, False),
        ({"metrics-withheld": 11.0}, False),
        ({"num-examples": -1.0}, False),
        ({"num-examples": 2001.0}, False),
        ({"loss-total": -1e9, "num-examples": 1000.0, "of-my-own": 1e17}, True),
        ({"loss-total": -1e9}, False),
        ({"loss-total": math.nan}, False),
        ({"of-my-own": 1e300}, False),
        ({}, False),
    ],
)
def test_bounds(metrics: dict[str, float], right: bool) -> None:
    found, dropped = ASKED.read(metrics)
    assert dropped == 0 and (ASKED.problem(found, HOSTED) == "") == right


def test_what_was_not_asked_for_is_dropped_and_counted() -> None:
    later = Declared.of(evaluated=False)
    assert later.read({**ALL, "num-examples": 4}) == ({"num-examples": 4.0}, len(ALL))
    assert later.read({"num-examples": [4], "loss-total": "x"}) == ({}, 2), "lists and words are no sums"


def test_a_number_that_no_float_holds_is_refused() -> None:
    for huge in (10**400, -(10**400)):
        found, _ = ASKED.read({"loss-total": huge})
        assert math.isinf(found["loss-total"]) and ASKED.problem(found, HOSTED) == "a metric that is not finite"


NAMES = [name for block in (*ASKED.blocks, ranking("group-7/")) for name in block.names][::7]


@given(st.dictionaries(st.sampled_from([*NAMES, "withheld", "loss-total", "x"]), st.floats() | st.integers()))
def test_what_passes_adds_no_more_than_the_nodes_users(metrics: dict[str, float]) -> None:
    found, dropped = ASKED.read({**ALL, **metrics})
    assert dropped == len([name for name in metrics if name == "x" or name.startswith("group-7/")])
    if ASKED.problem(found, HOSTED) == "":
        assert all(math.isfinite(value) for value in found.values())
        assert all(0 <= found[name] <= 10 + 1e-6 for block in ASKED.blocks[:2] for name in block.names if name in found)
