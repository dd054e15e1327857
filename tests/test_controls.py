"""The controls: known answers, a dense twin of EASE, published figures, and the cache."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedem_flwr.data import Interactions, load_dataset
from fedem_flwr.errors import InputError
from fedem_flwr.evaluation import METRICS, cached_controls, compute_controls, headline
from fedem_flwr.evaluation import controls as module
from fedem_flwr.protocol.splits import Protocol, Split, make_split


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


def test_every_control_has_the_summary_form() -> None:
    controls = compute_controls(checkerboard())
    assert list(controls) == ["random", "popularity", "ease"]
    for result in controls.values():
        for form in (result, result["validation"]):
            assert set(form) - {"validation"} == {*METRICS, "sampled99", "full"}
            assert set(form["sampled99"]) == set(form["full"]) == set(METRICS)


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
    result = module.popularity_control(split)
    assert result["sampled99"]["mrr"] == pytest.approx((1 / 2 + 1 / 2) / 2)


@pytest.mark.parametrize("users", [25, 45, 90])
def test_both_ways_to_solve_ease_equal_the_dense_formula(users: int) -> None:
    split = checkerboard(users=users, items=40 if users == 25 else 60)
    matrix = split.train_csr().astype(np.float64)
    dense = matrix.toarray()
    inverse = np.linalg.inv(dense.T @ dense + 3.0 * np.eye(split.items))
    expected = dense @ (np.eye(split.items) - inverse / np.diag(inverse))
    some = np.array([7, 0, 3])
    for scorer in (module._ease_by_items(matrix, 3.0), module._ease_by_users(matrix, 3.0)):
        np.testing.assert_allclose(scorer(some).numpy(), expected[some], atol=1e-12)


def test_results_do_not_depend_on_the_block_of_users(monkeypatch: pytest.MonkeyPatch) -> None:
    split = checkerboard()
    whole = compute_controls(split)
    monkeypatch.setattr(module, "_CELLS", 7 * split.items)
    in_blocks = compute_controls(split)
    for name in ("random", "popularity"):
        assert in_blocks[name] == whole[name]
    assert in_blocks["ease"]["mrr"] == pytest.approx(whole["ease"]["mrr"], abs=0.01)


@pytest.mark.parametrize("ridge", [0.0, -1.0, math.nan])
def test_a_ridge_that_is_not_positive_is_an_input_error(ridge: float) -> None:
    with pytest.raises(InputError, match="ease_lambda"):
        compute_controls(checkerboard(), ease_lambda=ridge)


def test_ease_is_left_out_where_its_tables_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EASE_LIMIT", 30)
    assert list(compute_controls(checkerboard())) == ["random", "popularity"]


# --- the cache ----------------------------------------------------------------------------------------------


def count_computations(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    computed: list[float] = []

    def counted(split: Split, ease_lambda: float = 300.0) -> dict[str, dict[str, Any]]:
        computed.append(ease_lambda)
        return compute_controls(split, ease_lambda)

    monkeypatch.setattr(module, "compute_controls", counted)
    return computed


def test_the_cache_answers_the_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed, split = count_computations(monkeypatch), checkerboard()
    first = cached_controls(split, tmp_path / "cache")
    split.save(tmp_path / "split")
    assert cached_controls(Split.load(tmp_path / "split"), tmp_path / "cache") == first
    assert computed == [300.0] and len(list((tmp_path / "cache").iterdir())) == 1


def test_another_setting_or_split_is_another_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed, split = count_computations(monkeypatch), checkerboard()
    negatives = split.negatives.copy()
    negatives[0, 0] = -1
    cached_controls(split, tmp_path)
    cached_controls(split, tmp_path, ease_lambda=100.0)
    cached_controls(replace(split, negatives=negatives), tmp_path)
    cached_controls(replace(split, protocol="paper"), tmp_path)
    assert len(computed) == len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("damage", ["cut", "empty", "a digit", "a list", "not text"])
def test_a_damaged_entry_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    computed, split = count_computations(monkeypatch), checkerboard()
    first = cached_controls(split, tmp_path)
    (entry,) = tmp_path.iterdir()
    content = entry.read_bytes()
    changed = json.loads(content)
    changed["controls"]["random"]["mrr"] += 0.125
    damaged = {
        "cut": content[: len(content) // 2],
        "empty": b"",
        "a digit": json.dumps(changed).encode(),
        "a list": b"[1, 2]",
        "not text": b"\xff\xfe\x00",
    }
    entry.write_bytes(damaged[damage])
    assert cached_controls(split, tmp_path) == first
    assert len(computed) == 2 and json.loads(entry.read_bytes()) == json.loads(content)


# --- figures on the real data sets --------------------------------------------------------------------------


@pytest.mark.data
def test_figures_on_ml_100k_strict(data_dir: Path) -> None:
    controls = compute_controls(make_split(load_dataset("ml-100k", data_dir), "strict", seed=0))
    expected = {
        "random": ("sampled99", 0.10, 0.045),
        "popularity": ("sampled99", 0.404, 0.221),
        "ease": ("sampled99", 0.645, 0.378),
    }
    for name, (way, hit_rate, gain) in expected.items():
        assert controls[name][way]["hr@10"] == pytest.approx(hit_rate, abs=0.02), name
        assert controls[name][way]["ndcg@10"] == pytest.approx(gain, abs=0.02), name
    popularity = controls["popularity"]
    assert popularity["hr@10"] == pytest.approx(0.082, abs=0.002), "the whole catalogue has no sampling error"
    assert popularity["ndcg@10"] == pytest.approx(0.044, abs=0.002)


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
