"""How the controls' settings are chosen: against brute force over the grid."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from control_worlds import NAMES, WAYS, dense_ease, drifting
from numpy.typing import NDArray

from fedem_flwr.evaluation import compute_controls, evaluate_scores, linear, linear_controls, tuning
from fedem_flwr.evaluation import controls as module
from fedem_flwr.protocol.split import Split


def validation_gain(split: Split, scores: NDArray[Any], way: str) -> float:
    everyone = np.arange(split.users)
    found = evaluate_scores(split, everyone, torch.from_numpy(scores.astype(np.float32)), which="validation")
    return found[way].means()["ndcg@10"]


def test_settings_are_those_of_brute_force_over_the_grid() -> None:
    split = drifting()
    dense = split.train_csr().toarray().astype(np.float64)
    controls = compute_controls(split)
    for way in WAYS:
        plain = {r: validation_gain(split, dense @ dense_ease(dense, r), way) for r in linear_controls.RIDGES}
        assert plain[controls["ease"]["settings"][way]["lambda"]] == max(plain.values())
        assert controls["ease"]["validation"][way]["ndcg@10"] == pytest.approx(max(plain.values()), abs=1e-9)
        recent = {}
        for ridge, half_life in itertools.product(linear_controls.RIDGES, linear_controls.HALF_LIVES):
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
    monkeypatch.setattr(linear_controls, "HALF_LIVES", (float("inf"),))
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
