"""The controls: known answers and dense slow twins."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from control_worlds import NAMES, WAYS, checkerboard, dense_ease, drifting

from fedem_flwr.errors import InputError
from fedem_flwr.evaluation import METRICS, compute_controls, headline, linear, linear_controls
from fedem_flwr.evaluation import controls as module
from fedem_flwr.evaluation.cost import Cost, Limits
from fedem_flwr.protocol.split import Protocol


@pytest.mark.parametrize(("protocol", "first"), [("paper", 0.5), ("strict", 0.25)])
def test_the_headline_is_the_protocols_own(protocol: Protocol, first: float) -> None:
    full, sampled = dict.fromkeys(METRICS, 0.25), dict.fromkeys(METRICS, 0.5)
    result = headline(protocol, full, sampled)
    assert all(result[name] == first for name in METRICS)
    assert result["full"] == full and result["sampled99"] == sampled


def test_every_control_has_the_summary_form() -> None:
    controls = compute_controls(checkerboard())
    assert tuple(controls) == NAMES
    for name, result in controls.items():
        for form in (result, result["validation"]):
            assert set(form) - {"validation", "settings"} == {*METRICS, *WAYS}
            assert set(form["sampled99"]) == set(form["full"]) == set(METRICS)
        assert set(result.get("settings", {})) == (set() if name in ("random", "popularity") else set(WAYS))
    assert set(controls["item_knn"]["settings"]["full"]) == {"neighbours", "shrinkage"}
    assert set(controls["ease"]["settings"]["full"]) == {"lambda"}
    assert set(controls["ease_recent"]["settings"]["full"]) == {"lambda", "half_life"}


def test_each_users_terms_average_to_the_means() -> None:
    split = drifting()
    measured = module.measure_controls(split)
    assert tuple(measured.per_user) == NAMES
    for name, metrics in measured.per_user.items():
        assert set(metrics) == {f"{way}/{metric}@10" for way in WAYS for metric in ("hr", "ndcg")}
        for metric, values in metrics.items():
            way, short = metric.split("/")
            assert values.dtype == np.float32 and values.shape == (split.users,)
            assert values.mean(dtype=np.float64) == pytest.approx(measured.results[name][way][short], abs=1e-7)


def test_ease_finds_the_two_taste_groups_and_popularity_does_not() -> None:
    controls = compute_controls(checkerboard(), ease_lambda=100.0)
    # 17 items of the user's own group are not excluded at the test, so a target among them is in the first 20.
    assert controls["ease"]["full"]["hr@20"] == 1.0
    assert controls["popularity"]["full"]["hr@20"] < 0.8
    assert abs(controls["random"]["full"]["hr@10"] - 10 / 47) < 0.2


def test_popularity_counts_users_not_rows() -> None:
    split = replace(
        checkerboard(users=2, items=28),
        protocol="paper",
        train_offsets=np.array([0, 5, 6]),
        train_items=np.array([0, 0, 0, 0, 1, 1]),  # item 0 in four rows of one user, item 1 in one row of two
        validation=np.array([2, 2]),
        test=np.array([3, 0]),
        negatives=np.array([[5] + [-1] * 98, [1] + [-1] * 98]),
    )
    result, _ = module.popularity_control(split)
    assert result["sampled99"]["mrr"] == pytest.approx((1 / 2 + 1 / 2) / 2)


@pytest.mark.parametrize("users", [25, 45, 90])
def test_both_ways_to_solve_ease_equal_the_dense_formula(users: int, monkeypatch: pytest.MonkeyPatch) -> None:
    split = checkerboard(users=users, items=40 if users == 25 else 60)
    weights = dense_ease(split.train_csr().toarray().astype(np.float64), 3.0)
    histories, some = linear.AgedItems.of(split, validation=True), np.array([7, 0, 3])
    for half_life, by_users in itertools.product((float("inf"), 2.5), (False, True)):
        monkeypatch.setattr(linear.Ease, "size", staticmethod(lambda n, m, by_users=by_users: 0 if by_users else m))
        rows = histories.rows(some, half_life)
        scores = linear.Ease(split.train_csr()).model(3.0)(rows).numpy()
        np.testing.assert_allclose(scores, rows.toarray() @ weights, atol=1e-5)


def test_a_history_is_weighted_by_the_number_of_newer_items() -> None:
    split = replace(
        checkerboard(users=2, items=28),
        train_offsets=np.array([0, 3, 7]),
        train_items=np.array([4, 2, 9, 1, 5, 1, 0], np.int32),  # item 1 twice: the newer row counts
        validation=np.array([6, 5]),
    )
    for longer, expected in (
        (False, [{4: 0.25, 2: 0.5, 9: 1}, {5: 0.25, 1: 0.5, 0: 1}]),
        (True, [{4: 0.125, 2: 0.25, 9: 0.5, 6: 1}, {1: 0.25, 0: 0.5, 5: 1}]),
    ):
        histories = linear.AgedItems.of(split, validation=longer)
        for user, weights in enumerate(expected):
            row = histories.rows(np.array([user]), 1.0)
            assert dict(zip(row.indices.tolist(), row.data.tolist(), strict=True)) == weights
        assert set(histories.rows(np.arange(2)).data.tolist()) == {1.0}


@pytest.mark.parametrize(("count", "shrinkage"), [(1, 0.0), (5, 0.0), (5, 7.0), (200, 3.0)])
@pytest.mark.parametrize("cells", [2**23, 300])
def test_neighbours_equal_a_dense_slow_twin(
    count: int, shrinkage: float, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "CELLS", cells)
    matrix = drifting().train_csr()
    dense = matrix.toarray()
    items = dense.shape[1]
    table = np.zeros((items, items))
    for item in range(items):
        similarities = np.zeros(items, np.float32)
        for other in range(items):
            both = (dense[:, item] * dense[:, other]).sum()
            if other != item and both:
                norm = np.sqrt(dense[:, item].sum() * dense[:, other].sum(), dtype=np.float32)
                similarities[other] = both / (norm + np.float32(shrinkage))
        nearest = np.argsort(-similarities, kind="stable")[:count]
        table[nearest, item] = similarities[nearest]
    found = linear.Neighbours.of(matrix, max(count, 6), (1.0, shrinkage))[shrinkage]
    for _ in range(2):  # asking twice must not spoil the neighbours
        np.testing.assert_allclose(found.model(count)(matrix).numpy(), dense @ table, atol=1e-5)


def test_results_do_not_depend_on_the_block_of_users(monkeypatch: pytest.MonkeyPatch) -> None:
    split = checkerboard()
    whole = compute_controls(split)
    monkeypatch.setattr(linear, "CELLS", 7 * split.items)
    in_blocks = compute_controls(split)
    for name in ("random", "popularity", "item_knn"):
        assert in_blocks[name] == whole[name]
    assert in_blocks["ease"]["mrr"] == pytest.approx(whole["ease"]["mrr"], abs=0.01)


@pytest.mark.parametrize("ridge", [0.0, -1.0, math.nan])
def test_a_ridge_that_is_not_positive_is_an_input_error(ridge: float) -> None:
    with pytest.raises(InputError, match="ease_lambda"):
        compute_controls(checkerboard(), ease_lambda=ridge)


def test_what_would_take_too_much_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    split = checkerboard()
    neighbours = module.knn_cost  # of so few items they take as much as EASE
    monkeypatch.setattr(module, "knn_cost", lambda _: Cost(0.0, 0.0, "nothing"))
    least = linear_controls.ease_cost(split, None).gigabytes
    measured = module.measure_controls(split, limits=Limits(gigabytes=0.99 * least))
    assert [name for name in NAMES if "skipped" in measured.results[name]] == ["ease", "ease_recent"]
    assert "control_gb" in measured.results["ease"]["skipped"]
    assert tuple(measured.per_user) == NAMES[:3]
    monkeypatch.setattr(module, "knn_cost", neighbours)
    hurried = module.measure_controls(split, limits=Limits(minutes=1e-9)).results
    assert [name for name in NAMES if "skipped" in hurried[name]] == list(NAMES[2:])
    assert "control_minutes" in hurried["item_knn"]["skipped"]
