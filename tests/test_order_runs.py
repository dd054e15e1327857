"""Runs of fedials-order: partitions, server steps, the choice of weights, refusals and resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from crashes import resumed_after
from tampering import EACH, assert_refused_and_as_if_silent, put
from worlds import USERS, Crossing, carry_out, carry_out_watched, config_of, figures, largest_difference

from fedem_flwr.aggregation.adam import ServerAdam, cosine_rate
from fedem_flwr.config import Config
from fedem_flwr.engine.history import History
from fedem_flwr.engine.ials import FoldIn, FoldInScores, Objective, Recency
from fedem_flwr.engine.order import OrderScores
from fedem_flwr.errors import InputError
from fedem_flwr.evaluation.ranking import evaluate_scores
from fedem_flwr.methods.fedials_order import order_task
from fedem_flwr.models.encoder import unit_rows
from fedem_flwr.runtime.inputs import build_strategy

ORDER: dict[str, Any] = {
    "rounds": 6,
    "participants": 1.0,
    "layers": 1,
    "heads": 2,
    "window": 6,
    "negatives": 8,
    "lr": 0.01,
    "map": 0,
}


def settings(order: dict[str, Any] | None = None, **sections: Any) -> Config:
    """Two rounds of the table and six of order."""
    base: dict[str, Any] = {"model": {"dim": 8}, "evaluation": {"every": 1}}
    run = {"rounds": 8} | sections.pop("run", {})
    return config_of("fedials-order", **(base | sections | {"run": run, "order": ORDER | (order or {})}))


def train(crossings: list[Crossing], round_: int) -> list[Crossing]:
    return [c for c in crossings if c.kind == "train" and c.round == str(round_)]


# ---- partitions


@pytest.mark.parametrize("entries", [0, 9])
def test_results_do_not_depend_on_users_a_node(entries: int, tmp_path: Path) -> None:
    """Dropout included. Adam divides by the size of a gradient, so rounding shows more than in the table."""
    more = {"map": entries, "dropout": 0.3}
    whole = carry_out(tmp_path / "n", settings(more))
    parts = carry_out(tmp_path / "7", settings(more, run={"users_per_node": 7}))
    assert parts.run.nodes == 6 and parts.outcome.failures == whole.outcome.failures == []
    assert np.abs(whole.server["table"] - parts.server["table"]).max() < 1e-5
    assert largest_difference(whole.server, parts.server) < 1e-3
    for line, twin in zip(whole.lines, parts.lines, strict=True):
        assert line["participants"] == twin["participants"] == USERS
        assert (
            line["train_loss"] == pytest.approx(twin["train_loss"], abs=1e-4)
            or line["train_loss"] is twin["train_loss"] is None
        )
        for which in ("validation", "test"):
            assert line[which]["full"] == pytest.approx(twin[which]["full"], abs=0.5 / USERS)  # a rank may tip over


# ---- the server


@pytest.mark.parametrize("fine_tune", [True, False])
def test_the_server_steps_with_the_mean_gradient_of_a_position(fine_tune: bool, tmp_path: Path) -> None:
    config = settings({"participants": 0.5, "fine_tune": fine_tune}, run={"users_per_node": EACH})
    run, grid = carry_out_watched(tmp_path / "run", config)
    table = next(c.arrays["table"] for c in train(grid.down, 3))
    weights = ServerAdam.start(order_task(config).encoder.initial(config.run.seed))
    rows = ServerAdam.start(unit_rows(torch.from_numpy(table)))
    for step in range(1, 7):
        down = train(grid.down, 2 + step)[0].arrays
        np.testing.assert_allclose(down["weights"], weights.value, atol=1e-6)
        np.testing.assert_allclose(down["rows"], rows.value, atol=1e-6)
        assert sum(len(c.arrays["participants"]) for c in train(grid.down, 2 + step)) == USERS // 2
        uploads = [c.arrays for c in train(grid.up, 2 + step)]
        positions = sum(int(a["positions"][0]) for a in uploads)
        total = np.zeros(table.shape)
        for arrays in uploads:
            total[arrays["items"]] += arrays["rows"]
        rate = cosine_rate(0.01, step, 6)
        of_weights = np.sum([a["weights"].astype(np.float64) for a in uploads], axis=0)
        weights = weights.step(torch.from_numpy(of_weights / positions).float(), rate)
        if fine_tune:
            rows = rows.step(torch.from_numpy(total / positions).float(), rate)
    np.testing.assert_allclose(run.server["weights"], weights.value, atol=1e-6)
    np.testing.assert_allclose(run.server["rows"], rows.value, atol=1e-6)
    assert np.abs(run.server["weights"] - order_task(config).encoder.initial(0).numpy()).max() > 0.01
    assert not run.server["rows-first"].any() or fine_tune


def test_the_table_is_that_of_fedials(tmp_path: Path) -> None:
    order = carry_out(tmp_path / "order", settings())
    base = {"model": {"dim": 8}, "run": {"rounds": 2}, "evaluation": {"every": 1}}
    ials = config_of("fedials-order").ials.model_dump(exclude_none=True)
    table = carry_out(tmp_path / "table", config_of("fedials", **base, ials=ials))
    np.testing.assert_array_equal(order.server["table"], table.server["table"])
    assert order.lines[0]["test"] == table.lines[0]["test"]


# ---- choices


def test_the_weight_is_the_best_of_the_grid_on_validation(tmp_path: Path) -> None:
    config = settings({"weights": [0.0, 0.5, 2.0, 7.0], "weight": 1.5, "tune": True}, evaluation={"every": 5})
    run, grid = carry_out_watched(tmp_path / "run", config)
    split = run.run.split
    down = {r: train(grid.down, r)[0] for r in range(1, 9)}
    assert [r for r, c in down.items() if c.config["tune-order"]] == [6], "with the model of round 5"
    named = {name: torch.from_numpy(down[6].arrays[name].copy()) for name in ("table", "rows", "weights")}
    history = History(np.arange(split.users), split.items, split.train_offsets, split.train_items)
    fold_in = FoldIn(named["table"], Objective(config.ials.weight, config.ials.ridge))
    recency = Recency.of(float(down[6].config["half_life"]), float(down[6].config["ridge"]))
    alone = [
        FoldInScores(fold_in, recency).scores(history, history.users)[0],
        OrderScores(order_task(config).encoder, named["weights"], named["rows"]).scores(history, history.users)[0],
    ]
    standard = [(x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True) for x in alone]
    means = []
    for weight in config.order.weights:
        scores = standard[0] + weight * standard[1]
        means.append(evaluate_scores(split, history.users, scores, which="validation")["full"].means()["ndcg@10"])
    mixing: Any = run.outcome.diagnostics["mixing"]
    assert [row["ndcg@10"] for row in mixing["rows"]] == pytest.approx(means, abs=1e-6)
    best = config.order.weights[int(np.argmax(means))]
    assert mixing["chosen"]["order_weight"] == best and mixing["round"] == 5 and len(set(means)) > 2
    used = {r: c.config["order_weight"] for r, c in down.items()}
    assert used == {1: 0.0, 2: 0.0, 3: 0.0, 4: 1.5, 5: 1.5, 6: 1.5, 7: best, 8: best}, "0 before it learnt"


def test_the_fold_in_is_chosen_even_after_a_single_round_of_the_table(tmp_path: Path) -> None:
    run = carry_out(tmp_path / "run", settings(run={"rounds": 7}))
    tuning: Any = run.outcome.diagnostics["tuning"]
    assert tuning is not None and tuning["round"] == 1 and len(tuning["rows"]) == 18


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"order": {"rounds": 8}}, r"order.rounds = 8 .*run.rounds = 8"),
        ({"order": {"rounds": 1, "map": 4}}, r"order.rounds = 1 .*the map"),
        ({"order": {"heads": 3}}, r"order.heads = 3 does not divide model.dim = 8"),
    ],
)
def test_settings_that_do_not_fit_are_refused(sections: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason) as refused:
        build_strategy(settings(**sections), 60)
    assert "\n" not in str(refused.value)


# ---- uploads that are refused

FAULTS = [
    (put("rows", 3, float("nan")), "'rows' is not finite"),
    (put("weights", 3, float("inf")), "'weights' is not finite"),
    (put("items", -1, 60), "'items' are not ascending item codes below 60"),
    (lambda a: a | {"items": a["items"][::-1].copy()}, "'items' are not ascending"),
    (lambda a: a | {"rows": a["rows"][1:]}, r"'rows' has \d+ rows for \d+ items"),
    (lambda a: a | {"items": np.array(3, np.int32)}, r"'items' has shape \(\)"),
    (lambda a: a | {"weights": a["weights"][1:]}, "'weights' has shape"),
    (put("positions", 0, -1), "'positions' has an entry below 0"),
    (put("positions", 0, 61), "'positions' is 61, not between 0 and 60"),
    (lambda a: a | {"positions": a["positions"].astype(np.float32)}, "'positions' has type float32, not int64"),
    (put("weights", 0, 1e9), "'weights' has an entry of 1e.09"),
    (put("rows", 0, -1e20), "'rows' has an entry of 1e.20"),
    (lambda a: {name: x for name, x in a.items() if name != "positions"}, "the upload lacks 'positions'"),
]


def test_bad_uploads_are_named_and_left_out(tmp_path: Path) -> None:
    rounds = {"rounds": len(FAULTS) + 2, "users_per_node": EACH}
    config = settings({"rounds": len(FAULTS)}, run=rounds, evaluation={"every": 4})
    assert_refused_and_as_if_silent(tmp_path, config, FAULTS, 3)


PAIR_FAULTS = [
    (put("pair-gram", 0, float("nan")), "'pair-gram' is not finite"),
    (put("pair-cross", 0, -1), "'pair-cross' has an entry below 0"),
    (put("pair-gram", 0, 1.1e7), "'pair-gram' has an entry of"),
    (put("pairs", -1, 3600), "'pairs' are not ascending item codes below 3600"),
    (lambda a: a | {"pairs": a["pairs"][::-1].copy()}, "'pairs' are not ascending"),
    (lambda a: a | {"pair-gram": a["pair-gram"][1:]}, r"'pair-gram' has \d+ rows for \d+ items"),
    (lambda a: a | {"pairs": np.array(3)}, r"'pairs' has shape \(\)"),
]


@pytest.mark.parametrize("fault", PAIR_FAULTS, ids=lambda fault: fault[1][:25])
def test_bad_pairs_are_named_and_left_out(fault: Any, tmp_path: Path) -> None:
    config = settings({"rounds": 2, "map": 5}, run={"rounds": 3, "users_per_node": EACH}, evaluation={"every": 5})
    faults = [fault, (put("positions", 0, -1), "'positions' has an entry below 0")]
    assert_refused_and_as_if_silent(tmp_path, config, faults, 2)


# ---- resuming


@pytest.mark.parametrize("entries", [0, 9])
def test_killed_and_resumed_is_as_if_it_had_not_been(entries: int, tmp_path: Path) -> None:
    run = {"users_per_node": 20, "checkpoint_every": 2}
    few = {"half_lives": [0.0, 5.0], "ridges": [1.0]}
    config = settings({"participants": 0.4, "map": entries, "weights": [0.0, 1.0, 3.0]}, run=run, fold_in=few)
    whole = carry_out(tmp_path / "whole", config)
    assert whole.outcome.diagnostics["mixing"] is not None
    for last in (3, 7):
        resumed = resumed_after(tmp_path / str(last), config, last)
        assert largest_difference(whole.server, resumed.server) == 0
        assert [figures(line) for line in resumed.lines] == [figures(line) for line in whole.lines]
        assert resumed.outcome.diagnostics == whole.outcome.diagnostics, "what was chosen survives"
        assert resumed.outcome.served_round == whole.outcome.served_round
