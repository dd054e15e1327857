"""What a finished run serves, looked at once more: against brute force over the whole split."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from worlds import USERS, Done, carry_out, config_of, prepare

from fedem_flwr.config import Config
from fedem_flwr.errors import InputError
from fedem_flwr.evaluation.lists import list_diagnostics, served, top_items
from fedem_flwr.evaluation.ranking import evaluate_scores
from fedem_flwr.experiment.controls import controls_of, per_user
from fedem_flwr.protocol.split import Split
from fedem_flwr.runtime.inputs import load_interactions, split_of
from fedem_flwr.runtime.prepared import PreparedRun
from fedem_flwr.serving.served import ServedModel, look_at, with_served

ORDER = {"rounds": 3, "participants": 1.0, "layers": 1, "heads": 2, "window": 6, "negatives": 8, "lr": 0.01, "map": 5}
SETTINGS: dict[str, dict[str, Any]] = {
    "fedials": {"model": {"dim": 8}, "run": {"rounds": 5}},
    "fedials-order": {"model": {"dim": 8}, "run": {"rounds": 6}, "order": ORDER},
    "fedmf": {},  # whose clients keep a state
    "all history": {"model": {"dim": 8}, "run": {"rounds": 3}, "evaluation": {"test_history": "all"}},
}


def settings(name: str, folder: Path) -> Config:
    sections = SETTINGS[name]
    run = {"users_per_node": 7} | sections.get("run", {})
    evaluation = {"every": 1, "controls": True, "cache_dir": str(folder)} | sections.get("evaluation", {})
    method = name if name in ("fedials-order", "fedmf") else "fedials"
    return config_of(method, **(sections | {"run": run, "evaluation": evaluation}))


@pytest.fixture(scope="module", params=list(SETTINGS))
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("served")
    return carry_out(folder / "run", settings(request.param, folder / "cache"))


def scores_of(model: ServedModel) -> torch.Tensor:
    """(n, m) test scores of all users, a user at a time."""
    rows = []
    for scorer in model.scorers():
        for place in range(len(scorer.users)):
            rows.append(scorer.scores(torch.tensor([place]), "test")[0])
    return torch.cat(rows)


def lists_of(split: Split, scores: torch.Tensor) -> list[list[int]]:
    """Each user's ten best items that are not in its history."""
    out = []
    for user, row in enumerate(scores.numpy()):
        known = {int(i) for i in split.train_items[split.train_offsets[user] : split.train_offsets[user + 1]]}
        known.add(int(split.validation[user]))
        out.append([i for i in np.argsort(-row, kind="stable").tolist() if i not in known][:10])
    return out


def test_the_served_model_is_the_one_that_was_measured(finished: Done) -> None:
    run = finished.run
    model = ServedModel.open(PreparedRun.open(run.directory))
    best = max(finished.lines, key=lambda line: line["validation"]["ndcg@10"])["round"]
    stateless = run.config.method.name != "fedmf"
    assert model.point.round == finished.outcome.served_round == (best if stateless else 3)
    line = finished.lines[model.point.round - 1]
    found = served(run.split, model.scorers())
    for path, values in found.metrics.items():
        way, metric = path.split("/")
        assert values.shape == (USERS,) and values.dtype == np.float32
        assert values.mean(dtype=np.float64) == pytest.approx(line["test"][way][metric], abs=1e-6), path
    sums = evaluate_scores(run.split, np.arange(USERS), scores_of(model), which="test")
    assert found.metrics["full/ndcg@10"].mean() == pytest.approx(sums["full"].means()["ndcg@10"], abs=1e-6)


def test_grids_say_what_is_served_and_not_what_was_chosen_last(tmp_path: Path) -> None:
    run = carry_out(tmp_path / "run", config_of("fedials", model={"dim": 4}, run={"rounds": 2})).run
    model = ServedModel.open(run)
    shown = with_served({"tuning": {"rows": [], "chosen": {"half_life": -1.0, "ridge": 1.0}}, "mixing": None}, model)
    assert shown["tuning"]["chosen"]["half_life"] == model.strategy.settings(model.point.round)["half_life"] >= 0
    assert shown["mixing"] is None


def test_lists_are_the_best_items_that_a_user_does_not_know(finished: Done) -> None:
    split, model = finished.run.split, ServedModel.open(finished.run)
    scores = scores_of(model)
    expected = lists_of(split, scores)
    assert top_items(split, np.arange(USERS), scores).tolist() == expected
    recommended = served(split, model.scorers()).recommended
    np.testing.assert_array_equal(recommended, np.bincount(np.concatenate(expected), minlength=split.items))
    hits = [int(split.test[user]) in items for user, items in enumerate(expected)]
    assert np.mean(hits) == pytest.approx(served(split, model.scorers()).metrics["full/hr@10"].mean(), abs=1e-6)


def test_diagnostics_are_the_brute_force(finished: Done) -> None:
    split = finished.run.split
    recommended = served(split, ServedModel.open(finished.run).scorers()).recommended
    found = list_diagnostics(split, recommended)
    bought = [int(np.sum(np.asarray(split.train_items) == item)) for item in range(split.items)]
    share = [count / USERS for count in bought]
    assert found["coverage"] == pytest.approx(sum(c > 0 for c in recommended.tolist()) / split.items)
    shown = [share[i] for i, times in enumerate(recommended.tolist()) for _ in range(times)]
    assert len(shown) == 10 * USERS and found["popularity_recommended"] == pytest.approx(np.mean(shown))
    consumed = [share[int(i)] for i in split.train_items]
    assert found["popularity_consumed"] == pytest.approx(np.mean(consumed))
    by_popularity = sorted(range(split.items), key=lambda item: (bought[item], item))
    tenths = [by_popularity[d * split.items // 10 : (d + 1) * split.items // 10] for d in range(10)]  # 60 items
    histogram = found["popularity_histogram"]
    for name, counts in (("recommended", recommended.tolist()), ("consumed", bought)):
        expected = [sum(counts[i] for i in tenth) / sum(counts) for tenth in tenths]
        assert histogram[name] == pytest.approx(expected) and sum(histogram[name]) == pytest.approx(1)
    counts = recommended.tolist()
    apart = sum(abs(a - b) for a in counts for b in counts)
    assert found["gini"] == pytest.approx(apart / (2 * split.items * sum(counts)))
    bits = [-math.log2(max(share[i], 1 / USERS)) for i, times in enumerate(counts) for _ in range(times)]
    assert found["novelty"] == pytest.approx(np.mean(bits))
    tail = set(by_popularity[: split.items * 8 // 10])
    assert found["long_tail"] == pytest.approx(sum(counts[i] for i in tail) / sum(counts))
    assert histogram["consumed"] == sorted(histogram["consumed"]), "from the least popular to the most"
    assert len(histogram["edges"]) == 11 and (histogram["edges"][0], histogram["edges"][-1]) == (min(share), max(share))
    json.dumps(found)


def test_the_comparison_is_with_the_best_control(finished: Done) -> None:
    run = finished.run
    controls = controls_of(run.split, run.config, lambda _: None)
    figures = per_user(run.split, run.config)
    comparison, lists = look_at(ServedModel.open(run), controls, figures)
    assert comparison is not None and lists["coverage"] > 0
    rivals = {name: control["full"]["ndcg@10"] for name, control in controls.items() if name in figures}
    assert rivals[comparison["control"]] == max(rivals.values()) and len(rivals) > 3
    assert (comparison["users"], comparison["round"]) == (USERS, finished.outcome.served_round)
    found = served(run.split, ServedModel.open(run).scorers()).metrics
    both = {"full": comparison["metrics"], "sampled99": comparison["metrics"]["sampled99"]}
    for way, metrics in both.items():
        for metric in ("hr@10", "ndcg@10"):
            interval = metrics[metric]
            ours, theirs = (x[f"{way}/{metric}"].astype(np.float64) for x in (found, figures[comparison["control"]]))
            assert interval["mean"] == pytest.approx(np.mean(ours - theirs), abs=1e-9)
            assert interval["low"] <= interval["mean"] <= interval["high"]
            assert interval["low"] < interval["high"] or not np.ptp(ours - theirs)
    model = ServedModel.open(run)
    assert look_at(model, {}, {})[0] is None and look_at(model, {"local_only": None}, {})[0] is None


# ---- small pieces


@pytest.fixture(scope="module")
def tiny() -> Split:
    config = config_of("fedials")
    return split_of(config, load_interactions(config))


def small(split: Split, users: int, items: int) -> Split:
    """Users that know everything but few items."""
    offsets = np.arange(users + 1) * (items - 5)
    train = np.tile(np.arange(items - 5), users)
    held = {"validation": np.full(users, items - 5), "test": np.full(users, items - 4)}
    return replace(
        split,
        users=users,
        items=items,
        train_offsets=offsets,
        train_items=train,
        negatives=np.full((users, 99), -1),
        **held,
    )


def test_a_small_catalogue_is_not_filled_up_with_what_is_known(tiny: Split) -> None:
    split = small(tiny, 3, 12)

    class Flat:
        users, device, by_part = np.arange(3), torch.device("cpu"), False

        def blocks(self) -> list[torch.Tensor]:
            return [torch.arange(3)]

        def counts(self) -> np.ndarray:
            return np.full(3, 7)

        def scores(self, who: torch.Tensor, part: str) -> tuple[torch.Tensor, None]:
            return torch.arange(12.0).repeat(len(who), 1), None

    recommended = served(split, [Flat()]).recommended
    assert recommended.tolist() == [0] * 8 + [3] * 4, "four items are new to everybody"


def test_nobody_was_recommended_anything(tiny: Split) -> None:
    found = list_diagnostics(tiny, np.zeros(tiny.items, np.int64))
    assert found["coverage"] == found["popularity_recommended"] == found["gini"] == found["novelty"] == 0
    assert found["popularity_histogram"]["recommended"] == [0.0] * 10


def test_scores_that_are_not_finite_are_recommended_last(tiny: Split) -> None:
    scores = torch.rand(USERS, tiny.items, generator=torch.Generator().manual_seed(0))
    scores[:, 7], scores[:, 9] = float("nan"), float("inf")
    found = top_items(tiny, np.arange(USERS), scores)
    assert not (found == 7).any() and not (found == 9).any()


def test_a_run_without_checkpoint_serves_nothing(tmp_path: Path) -> None:
    run = prepare(tmp_path / "run", config_of("fedials", model={"dim": 8}))
    with pytest.raises(InputError, match="no checkpoint yet"):
        ServedModel.open(run)
