"""The controls: known answers, dense slow twins, how settings are chosen, published figures, and the cache."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedem_flwr.config import Config
from fedem_flwr.data import Interactions, load_dataset
from fedem_flwr.errors import InputError
from fedem_flwr.evaluation import METRICS, cached_controls, compute_controls, evaluate_scores, headline, linear, tuning
from fedem_flwr.evaluation import controls as module
from fedem_flwr.evaluation.control_cache import Measured
from fedem_flwr.experiment import controls as runtime
from fedem_flwr.methods.fedmf import FedMF
from fedem_flwr.protocol.split import Protocol, Split
from fedem_flwr.protocol.splits import make_split
from tests.worlds import config_of


def checkerboard(users: int = 40, items: int = 60, seed: int = 0) -> Split:
    """Two taste groups: even users take even items, odd users odd ones."""
    rng = np.random.default_rng(seed)
    taken = [rng.permutation(np.arange(user % 2, items, 2))[:14] for user in range(users)]
    rows = np.concatenate(taken)
    codes, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return make_split(
        Interactions(
            name="checkerboard",
            user=np.repeat(np.arange(users), 14),
            item=np.argsort(order)[inverse].astype(np.int64),
            rating=None,
            time=np.arange(len(rows), dtype=np.float64),
            user_ids=np.array([f"u{user}" for user in range(users)]),
            item_ids=np.array([f"i{code}" for code in codes[order]]),
        ),
        "strict",
        seed=seed,
    )


@pytest.mark.parametrize(("protocol", "first"), [("paper", 0.5), ("strict", 0.25)])
def test_the_headline_is_the_protocols_own(protocol: Protocol, first: float) -> None:
    full, sampled = dict.fromkeys(METRICS, 0.25), dict.fromkeys(METRICS, 0.5)
    result = headline(protocol, full, sampled)
    assert all(result[name] == first for name in METRICS)
    assert result["full"] == full and result["sampled99"] == sampled


NAMES = ("random", "popularity", "item_knn", "ease", "ease_recent")
WAYS = ("full", "sampled99")


def drifting(users: int = 60, items: int = 80, seed: int = 1) -> Split:
    """Users who move on: a user's items are near a place in the catalogue that wanders with time."""
    rng = np.random.default_rng(seed)
    taken = []
    for _ in range(users):
        place, seen = float(rng.integers(items)), []
        while len(seen) < 16:
            place += rng.normal(0, 4)
            item = round(place) % items
            if item not in seen:
                seen.append(item)
        taken.append(seen)
    rows = np.concatenate(taken)
    codes, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return make_split(
        Interactions(
            name="drifting",
            user=np.repeat(np.arange(users), 16),
            item=np.argsort(order)[inverse].astype(np.int64),
            rating=None,
            time=np.arange(len(rows), dtype=np.float64),
            user_ids=np.array([f"u{user}" for user in range(users)]),
            item_ids=np.array([f"i{code}" for code in codes[order]]),
        ),
        "strict",
        seed=seed,
    )


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


def dense_ease(matrix: NDArray[Any], ridge: float) -> NDArray[Any]:
    """B as its paper writes it."""
    inverse = np.linalg.inv(matrix.T @ matrix + ridge * np.eye(matrix.shape[1]))
    return np.eye(matrix.shape[1]) - inverse / np.diag(inverse)


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


def test_ease_is_skipped_where_its_tables_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EASE_LIMIT", 30)
    measured = module.measure_controls(checkerboard())
    assert [name for name in NAMES if "skipped" in measured.results[name]] == ["ease", "ease_recent"]
    assert tuple(measured.per_user) == NAMES[:3]


# --- how settings are chosen --------------------------------------------------------------------------------


def validation_gain(split: Split, scores: NDArray[Any], way: str) -> float:
    everyone = np.arange(split.users)
    found = evaluate_scores(split, everyone, torch.from_numpy(scores.astype(np.float32)), which="validation")
    return found[way].means()["ndcg@10"]


def test_settings_are_those_of_brute_force_over_the_grid() -> None:
    split = drifting()
    dense = split.train_csr().toarray().astype(np.float64)
    controls = compute_controls(split)
    for way in WAYS:
        plain = {r: validation_gain(split, dense @ dense_ease(dense, r), way) for r in module.RIDGES}
        assert plain[controls["ease"]["settings"][way]["lambda"]] == max(plain.values())
        assert controls["ease"]["validation"][way]["ndcg@10"] == pytest.approx(max(plain.values()), abs=1e-9)
        recent = {}
        for ridge, half_life in itertools.product(module.RIDGES, module.HALF_LIVES):
            rows = np.zeros_like(dense)
            for user in range(split.users):
                history = split.train_items[split.train_offsets[user] : split.train_offsets[user + 1]]
                for age, item in enumerate(history[::-1]):
                    rows[user, item] = 0.5 ** (age / half_life)
            recent[ridge, half_life] = validation_gain(split, rows @ dense_ease(dense, ridge), way)
        chosen = controls["ease_recent"]["settings"][way]
        key = (chosen["lambda"], chosen["half_life"] or float("inf"))
        assert recent[key] == pytest.approx(max(recent.values()), abs=1e-9)
        assert max(recent.values()) > max(plain.values()), "here the newest items say most"


def test_a_ridge_that_is_given_is_not_chosen() -> None:
    controls = compute_controls(drifting(), ease_lambda=7.0)
    for name in ("ease", "ease_recent"):
        assert {controls[name]["settings"][way]["lambda"] for way in WAYS} == {7.0}


def test_an_infinite_half_life_is_ease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HALF_LIVES", (float("inf"),))
    measured = module.measure_controls(drifting())
    ease, recent = (dict(measured.results[name]) for name in ("ease", "ease_recent"))
    assert recent.pop("settings")["full"] == {**ease.pop("settings")["full"], "half_life": None}
    assert recent == ease
    for metric, values in measured.per_user["ease"].items():
        np.testing.assert_array_equal(measured.per_user["ease_recent"][metric], values)


@pytest.mark.parametrize("changes", [{"protocol": "paper"}, {"has_times": False}])
def test_recency_is_skipped_where_order_may_not_be_used(changes: dict[str, Any]) -> None:
    measured = module.measure_controls(replace(drifting(), **changes))
    assert list(measured.results["ease_recent"]) == ["skipped"]
    assert "ease_recent" not in measured.per_user and "ndcg@10" in measured.results["ease"]


def test_a_large_world_is_tuned_on_some_users_and_tested_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    split = drifting()
    monkeypatch.setattr(tuning, "TUNING_USERS", 20)
    users = tuning.tuning_users(split)
    assert len(set(users.tolist())) == 20 and (np.diff(users) > 0).all()
    assert module.measure_controls(split).per_user["ease"]["full/hr@10"].shape == (split.users,)


def test_the_validation_item_becomes_history_for_the_test_item_only() -> None:
    split = drifting()
    short, long = compute_controls(split, 50.0), compute_controls(split, 50.0, "all")
    for name in NAMES:
        assert short[name]["validation"] == long[name]["validation"]
        assert (short[name] == long[name]) == (name in ("random", "popularity"))
    settings = long["ease_recent"]["settings"]["full"]
    rows = linear.AgedItems.of(split, validation=True).rows(np.arange(split.users), settings["half_life"] or math.inf)
    scores = linear.Ease(split.train_csr()).model(50.0)(rows)
    expected = evaluate_scores(split, np.arange(split.users), scores, which="test")["full"].means()
    assert long["ease_recent"]["full"] == expected


# --- the cache ----------------------------------------------------------------------------------------------


def count_computations(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    computed: list[tuple[Any, ...]] = []
    compute: Callable[..., Measured] = module.measure_controls

    def counted(*arguments: Any) -> Measured:
        computed.append(arguments[1:])
        return compute(*arguments)

    monkeypatch.setattr(module, "measure_controls", counted)
    return computed


def assert_same(one: Measured, other: Measured) -> None:
    assert one.results == other.results
    assert {name: list(metrics) for name, metrics in one.per_user.items()} == {
        name: list(metrics) for name, metrics in other.per_user.items()
    }
    for name, metrics in one.per_user.items():
        for metric, values in metrics.items():
            np.testing.assert_array_equal(values, other.per_user[name][metric], strict=True)


def test_the_cache_answers_the_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed, split = count_computations(monkeypatch), checkerboard()
    first = module.remembered_controls(split, tmp_path / "cache")
    split.save(tmp_path / "split")
    again = Split.load(tmp_path / "split")
    assert_same(module.remembered_controls(again, tmp_path / "cache"), first)
    assert cached_controls(again, tmp_path / "cache") == first.results
    assert computed == [(None, "training")] and len(list((tmp_path / "cache").iterdir())) == 1
    assert compute_controls(again) == first.results, "a loaded split, whose arrays are narrower, gives the same figures"


def test_another_setting_or_split_is_another_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed, split = count_computations(monkeypatch), checkerboard()
    negatives = split.negatives.copy()
    negatives[0, 0] = -1
    cached_controls(split, tmp_path)
    cached_controls(split, tmp_path, ease_lambda=100.0)
    cached_controls(split, tmp_path, test_history="all")
    cached_controls(replace(split, negatives=negatives), tmp_path)
    cached_controls(replace(split, protocol="paper"), tmp_path)
    assert len(computed) == len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("damage", ["cut", "empty", "a bit", "a list", "gone"])
def test_a_damaged_entry_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    computed, split = count_computations(monkeypatch), checkerboard()
    first = module.remembered_controls(split, tmp_path)
    (entry,) = tmp_path.iterdir()
    content = entry.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    damaged = {"cut": content[: len(content) // 2], "empty": b"", "a bit": bytes(flipped), "a list": b"[1, 2]"}
    if damage == "gone":
        entry.unlink()
    else:
        entry.write_bytes(damaged[damage])
    assert_same(module.remembered_controls(split, tmp_path), first)
    assert len(computed) == 2 and list(tmp_path.iterdir()) == [entry]
    assert_same(module.remembered_controls(split, tmp_path), first)
    assert len(computed) == 2


# --- a run's controls ---------------------------------------------------------------------------------------


def test_a_runs_controls_and_each_users_terms_are_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed, split = count_computations(monkeypatch), checkerboard()
    settings = {"controls": True, "test_history": "all", "cache_dir": str(tmp_path)}
    config = config_of("fedmf", evaluation={**settings, "local_only": False})
    controls = runtime.controls_of(split, config, lambda _: None)
    assert tuple(controls) == (*NAMES, "local_only") and controls["local_only"] is None
    terms = runtime.per_user(split, config)
    assert set(terms) == set(NAMES) and computed == [(None, "all")]
    assert terms["ease"]["full/hr@10"].mean() == pytest.approx(controls["ease"]["full"]["hr@10"])
    assert runtime.per_user(split, config.changed("evaluation", controls=False)) == {}


def test_local_only_is_left_out_where_clients_have_nothing_to_train_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "cached_local_only", lambda *_: {"trained": True})
    own = {"base": "fedmf", "strategy": f"{__name__}:Together"}
    stock = {"strategy": "flwr.FedAvg", "client": f"{__name__}:NothingToTrain"}
    for method, result in (({}, {"trained": True}), (own, None), (stock, None)):
        config = config_of("fedmf", method=method, evaluation={"controls": False, "local_only": True})
        assert runtime.controls_of(checkerboard(), config, lambda _: None) == {"local_only": result}


class Together(FedMF):
    """A method of which a client alone could train nothing."""

    FEDERATED_ONLY = True


class NothingToTrain:
    """A client that keeps no local training."""

    LOCAL_ONLY = False


def test_each_method_has_a_local_only_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its settings are another's: what it trains is in its class."""
    trained, split = [], checkerboard()

    def count(split: Split, config: Config, told: Callable[[int], None]) -> dict[str, Any]:
        trained.append(config.method.strategy)
        return {"ndcg@10": 0.1}

    monkeypatch.setattr(runtime, "local_only", count)
    other = f"{__name__}:Together"
    for strategy in ("fedmf", other, "fedmf", other):
        config = config_of("same", method={"base": "fedmf", "strategy": strategy})
        runtime.cached_local_only(split, config, tmp_path, lambda _: None)
    assert trained == ["fedmf", other]


# --- figures on the real data sets --------------------------------------------------------------------------


@pytest.mark.data
def test_figures_on_ml_100k_strict(data_dir: Path) -> None:
    controls = compute_controls(make_split(load_dataset("ml-100k", data_dir), "strict", seed=0))
    expected = {
        "random": (0.10, 0.045),
        "popularity": (0.404, 0.221),
        "item_knn": (0.590, 0.336),
        "ease": (0.655, 0.381),
        "ease_recent": (0.668, 0.413),
    }
    for name, figures in expected.items():
        sampled = controls[name]["sampled99"]
        assert (sampled["hr@10"], sampled["ndcg@10"]) == pytest.approx(figures, abs=0.02), name
    popularity, recent = controls["popularity"], controls["ease_recent"]
    assert popularity["hr@10"] == pytest.approx(0.082, abs=0.002), "the whole catalogue has no sampling error"
    assert popularity["ndcg@10"] == pytest.approx(0.044, abs=0.002)
    assert (recent["hr@10"], recent["ndcg@10"]) == pytest.approx((0.178, 0.095), abs=0.005)


@pytest.mark.data
@pytest.mark.slow
def test_figures_on_ml_1m_strict(data_dir: Path) -> None:
    split = make_split(load_dataset("ml-1m", data_dir), "strict", seed=0)
    found = module.ease_controls(split)
    for name, full, sampled in (
        ("ease", (0.098, 0.048), (0.701, 0.432)),
        ("ease_recent", (0.187, 0.103), (0.727, 0.504)),
    ):
        result, _ = found[name]
        assert (result["full"]["hr@10"], result["full"]["ndcg@10"]) == pytest.approx(full, abs=0.003), name
        assert (result["sampled99"]["hr@10"], result["sampled99"]["ndcg@10"]) == pytest.approx(sampled, abs=0.01), name


@pytest.mark.data
@pytest.mark.parametrize(
    ("protocol", "popularity", "ease"),
    [("paper", (0.666, 0.530), (0.689, 0.538)), ("strict", (0.907, 0.823), (0.945, 0.871))],
)
def test_figures_on_filmtrust(
    data_dir: Path, protocol: Protocol, popularity: tuple[float, float], ease: tuple[float, float]
) -> None:
    controls = compute_controls(make_split(load_dataset("filmtrust", data_dir), protocol, seed=0))
    for name, figures in (("popularity", popularity), ("ease", ease)):
        sampled = controls[name]["sampled99"]
        assert (sampled["hr@10"], sampled["ndcg@10"]) == pytest.approx(figures, abs=0.02), name
