"""auto: tables side by side are each what they would be alone, the best one stays, and what is served is the best."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from worlds import Done, carry_out, config_of

from fedem_flwr.aggregation.newton import Newton, newton_step
from fedem_flwr.config import Config, merge_trees, resolve
from fedem_flwr.engine.history import History
from fedem_flwr.engine.ials import FoldIn, FoldInScores, Objective, Recency, table_sums
from fedem_flwr.errors import InputError
from fedem_flwr.evaluation.controls import popularity_control
from fedem_flwr.evaluation.ranking import evaluate_scores
from fedem_flwr.experiment.plan import plan
from fedem_flwr.methods.tasks.search_tables import TRIED, stages_of
from fedem_flwr.methods.tasks.serving_mixtures import mixture_weights, mixtures
from fedem_flwr.protocol.split import Split
from fedem_flwr.report.search import families_of, search_of, search_text
from fedem_flwr.runtime.inputs import adapted

WEIGHTS, RIDGES, AGES = [0.3, 0.05], [0.01, 0.1], [0.0, 4.0]
GRID: dict[str, Any] = {"weights": WEIGHTS, "ridges": RIDGES, "half_lives": AGES}
SEARCH: dict[str, Any] = {**GRID, "rounds": 6, "learn": 2, "refine": False}
BASE: dict[str, Any] = {"model": {"dim": 8}, "order": {"rounds": 0}, "evaluation": {"every": 1}, "run": {"rounds": 6}}


def auto(**sections: Any) -> Config:
    return config_of("auto", **merge_trees(BASE, {"search": SEARCH}, sections))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A run: four tables for three rounds, two for two, one for one."""
    return carry_out(tmp_path_factory.mktemp("auto") / "run", auto())


def alone(folder: Path, weight: float, ridge: float, rounds: int) -> Done:
    ials = {"weight": weight, "ridge": ridge}
    sections = merge_trees(BASE, {"ials": ials, "run": {"rounds": rounds}})
    return carry_out(folder, config_of("fedials", **sections))


def validation(split: Split, table: np.ndarray, objective: Objective, age: float) -> float:
    history = History(np.arange(split.users), split.items, split.train_offsets, split.train_items)
    scores = FoldInScores(FoldIn(torch.from_numpy(table).float(), objective), Recency.of(age, 1.0))
    everybody = np.arange(split.users)
    found, _ = scores.scores(history, everybody)
    return evaluate_scores(split, everybody, found, which="validation")["full"].means()["ndcg@10"]


# ---- the search


def test_each_table_is_what_it_would_be_alone_and_the_best_stay(found: Done, tmp_path: Path) -> None:
    tried = [dict(zip(TRIED, row, strict=True)) for row in found.server["tried"].tolist()]
    assert [row["stage"] for row in tried] == [1, 1, 1, 1, 2, 2]
    for at, row in enumerate(tried):
        weight, ridge, learnt = row["weight"], row["ridge"], 2 if row["stage"] == 1 else 4
        table = alone(tmp_path / str(at), weight, ridge, learnt).server["table"]
        split, objective = found.run.split, Objective(weight, ridge)
        values = [validation(split, table, objective, age) for age in AGES]
        assert row["ndcg@10"] == pytest.approx(max(values), abs=1e-6)
        assert row["half_life"] == AGES[int(np.argmax(values))]
    for stage, kept in ((1, 2), (2, 1)):
        own = sorted((row for row in tried if row["stage"] == stage), key=lambda row: -row["ndcg@10"])
        assert all(row["kept"] for row in own[:kept]) and not any(row["kept"] for row in own[kept:])
    best = max((row for row in tried if row["stage"] == 2), key=lambda row: row["ndcg@10"])
    assert found.server["candidates"].tolist() == [[best["weight"], best["ridge"]]]


def test_the_table_that_is_left_is_that_of_fedials_with_its_settings(found: Done, tmp_path: Path) -> None:
    ((weight, ridge),) = found.server["candidates"].tolist()
    twin = alone(tmp_path / "twin", weight, ridge, 6)
    np.testing.assert_allclose(found.server["table"], twin.server["table"], atol=1e-6)
    np.testing.assert_allclose(found.server["popularity"], np.log1p(twin.server["counts"]))


def test_tables_near_the_best_go_on_from_it(tmp_path: Path) -> None:
    run = carry_out(tmp_path / "run", auto(search={"refine": True}))
    tried = [dict(zip(TRIED, row, strict=True)) for row in run.server["tried"].tolist()]
    best = max(tried[:4], key=lambda row: row["ndcg@10"])
    split, everybody = run.run.split, np.arange(run.run.split.users)
    table = torch.from_numpy(alone(tmp_path / "best", best["weight"], best["ridge"], 3).server["table"])
    history = History(everybody, split.items, split.train_offsets, split.train_items)
    asked = [(best["weight"], best["ridge"] / 3**0.5), (best["weight"], best["ridge"] * 3**0.5)]
    assert [(row["weight"], row["ridge"]) for row in tried[6:]] == asked, "two of four have room"
    for row, (weight, ridge) in zip(tried[6:], asked, strict=True):
        objective, kappa = Objective(weight, ridge), run.run.config.ials.kappa
        sums = table_sums(table.float(), history, everybody, objective)
        own = (sums.gradient.float().double(), sums.counts, sums.gram.float().double())
        step = newton_step(table, *own, split.users, Newton(weight, ridge, kappa, 1.0))
        values = [validation(split, step.numpy(), objective, age) for age in AGES]
        assert row["ndcg@10"] == pytest.approx(max(values), abs=1e-6)
    assert search_of(run.lines, run.outcome.diagnostics)["tables"] == 6, "settings, however often they were compared"


def test_half_a_step_of_what_is_searched() -> None:
    def near(**search: Any) -> list[tuple[float, float]]:
        return resolve({}, {"search": search}).search.near(3.0, 0.03)

    half = 3**0.5
    assert near() == [(3, 0.03 / half), (3, 0.03 * half), (3 / half, 0.03), (3 * half, 0.03)]
    assert near(weights=[0.3]) == near()[:2] and near(ridges=[0.3]) == near()[2:]
    assert near(weights=[0.3], ridges=[0.1]) == near(refine=False) == []


def test_where_nobody_measures_the_first_tables_stay(tmp_path: Path) -> None:
    """As where all nodes hold their metrics back."""
    from fedem_flwr.contract import Gathered
    from fedem_flwr.contract.finding import method_of

    method = method_of(auto(), 60)
    task, state = method.schedule.phases[0].task, method.start()
    sums = {"rows": torch.zeros(60, 32), "counts": torch.ones(60), "gram": torch.eye(8).repeat(4, 1, 1)}
    gathered = Gathered(3, 3, {k: v.double() for k, v in sums.items()}, {}, np.empty(0), 40, 40, np.ones(40))
    first = task.fold(state, gathered)["candidates"].tolist()
    assert first == [[0.3, 0.01], [0.3, 0.1]]
    measured = replace(gathered, measured={"search-1": [0.1, 0.2, 0.1, 0.1, 0.3, 0.1, 0.2, 0.2]})
    assert task.fold(state, measured)["candidates"].tolist() == [[0.05, 0.01], [0.3, 0.01]]
    method = method_of(auto(search={"refine": True}), 60)
    folded = method.schedule.phases[0].task.fold(state, measured)
    assert folded["candidates"].tolist()[:2] == [[0.05, 0.01], [0.3, 0.01]]
    parts = folded["table"].split(8, dim=1)
    assert len(parts) == 4 and torch.equal(parts[2], parts[0]) and torch.equal(parts[3], parts[0])


@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 6), st.integers(0, 4))
def test_stages_fill_the_rounds_and_end_with_one_table(tables: int, rounds: int, learn: int, near: int) -> None:
    stages = stages_of(tables, rounds, learn, near)
    assert sum(stage.rounds for stage in stages) == rounds
    assert [stage.first for stage in stages] == list(np.cumsum([1, *(stage.rounds for stage in stages)])[:-1])
    sizes = [stage.tables for stage in stages]
    assert sizes == sorted(sizes, reverse=True) and stages[-1].kept == 1
    assert [stage.kept + stage.near for stage in stages[:-1]] == sizes[1:]
    assert all(stage.near <= near for stage in stages) and all(stage.kept >= 1 for stage in stages)
    for stage in stages:
        assert stage.searches == (stage.tables > 1) and (not stage.searches or stage.first <= stage.compared)
    if len(stages) > 2:
        assert stages[0].near == min(near, tables - stages[0].kept)
    if tables > 1 and rounds > learn:
        assert stages[0].tables == tables


# ---- what is given, and what follows from the data


def test_what_is_given_is_not_searched() -> None:
    config = resolve({"ials": {"weight": 0.7}}, {"method": {"name": "auto"}})
    assert config.search.weights == [0.7] and len(config.search.ridges) > 1
    both = resolve({"ials": {"weight": 0.7, "ridge": 0.02}}, {"method": {"name": "auto"}})
    assert both.search.grid() == [(0.7, 0.02)]
    assert (
        resolve({}, {"search": {"budget": 2}}).search.grid()
        == config.search.model_copy(
            update={"weights": [0.3], "ridges": resolve({}, {}).search.ridges, "budget": 2}
        ).grid()
    )


@pytest.mark.parametrize(
    ("tree", "against", "words"),
    [
        (
            {"method": {"name": "fedmf"}, "search": {"budget": 4}},
            [],
            "search.budget .* of fedmf: add --method auto, or",
        ),
        (
            {"data": {"dataset": "ml-100k"}, "search": {"rounds": 4}},
            [],
            "ml-100k comes with .* search.presets=false, or",
        ),
        ({"method": {"name": "fedmf"}, "search": {"order": False}}, ["fedials"], "search.order is of the search"),
        ({"method": {"name": "fedmf"}, "search": {"budget": 4}}, ["auto"], ""),
        ({"data": {"dataset": "ml-100k"}, "search": {"presets": False, "budget": 4}}, [], ""),
        ({"data": {"dataset": "ml-100k"}, "method": {"name": "auto"}, "search": {"budget": 4}}, [], ""),
        ({"data": {"dataset": "ml-100k"}, "search": {"presets": True}}, [], ""),
        ({"method": {"name": "fedmf"}, "search": {"presets": False}}, [], ""),
    ],
)
def test_a_search_that_nobody_makes_is_refused(tree: Any, against: list[str], words: str) -> None:
    if not words:
        plan({}, tree, [{"name": name} for name in against], origin="options")
        return
    with pytest.raises(InputError, match=words) as caught:
        plan({}, tree, [{"name": name} for name in against], origin="options")
    assert "\n" not in str(caught.value)


def test_presets_of_data_sets_can_be_switched_off() -> None:
    known, off = {"data": {"dataset": "ml-100k"}}, {"search": {"presets": False}}
    assert resolve({}, known).method.name == "fedials-order"
    plain = resolve({}, merge_trees(known, off))
    own = resolve({}, merge_trees({"data": {"dataset": "mine.csv"}}, off))
    assert plain.method.name == "auto" and plain == own.changed("data", dataset="ml-100k")


def test_rounds_follow_the_number_of_users(found: Done) -> None:
    facts, config = found.run.split, resolve({}, {"method": {"name": "auto"}})
    small = adapted(config, facts, frozenset())
    assert (small.order.rounds, small.run.rounds, small.order.participants) == (150, 162, 1.0)
    large = adapted(config, replace(facts, users=6040, items=3706), frozenset())
    assert (large.order.rounds, large.run.rounds) == (1416, 1428) and large.order.map == 256
    assert adapted(config, replace(facts, items=20_000), frozenset()).order.map == 64
    few = replace(facts, items=8_000, interactions=20_000)
    for name in ("auto", "fedials-order"):
        named = resolve({}, {"method": {"name": name}})
        assert adapted(named, few, frozenset()).order.map_sparse
        assert not adapted(named, few, frozenset({"order.map_sparse"})).order.map_sparse
        for other in (replace(few, items=5_000), replace(few, interactions=500_000)):
            assert not adapted(named, other, frozenset()).order.map_sparse
    many = replace(facts, items=26_000, interactions=20_000_000)  # too many pairs of items
    assert adapted(config, many, frozenset()).order.map == 0
    for name in ("auto", "fedials-order"):
        asked = resolve({}, {"method": {"name": name}, "order": {"map": 256}})
        with pytest.raises(InputError, match=r"can have 676,000,000 pairs, whose sums take 16 GB .* order\.map=0"):
            adapted(asked, many, frozenset({"order.map"}))
    without = adapted(config, replace(facts, has_times=False), frozenset())
    assert (without.order.rounds, without.run.rounds, without.search.half_lives) == (0, 12, [0.0])
    given = resolve({}, {"method": {"name": "auto"}, "run": {"rounds": 40}, "order": {"participants": 0.5}})
    kept = adapted(given, facts, frozenset({"run.rounds", "order.participants"}))
    assert (kept.run.rounds, kept.order.participants) == (40, 0.5)


# ---- what is served


def test_where_nothing_beats_popularity_popularity_is_served(tmp_path: Path) -> None:
    """Users who draw by popularity alone; their table learns to rank them a little worse."""
    rng, weights = np.random.default_rng(1), np.arange(1, 81.0) ** -1.2
    lists = [rng.choice(80, 12, replace=False, p=weights / weights.sum()) for _ in range(150)]
    path = tmp_path / "popular.csv"
    path.write_text("\n".join(f"{u},{i},1,{t}" for u, items in enumerate(lists) for t, i in enumerate(items)))
    more = {"data": {"dataset": str(path)}, "search": {"weights": [3.0], "ridges": [1e-4]}, "model": {"dim": 16}}
    run = carry_out(tmp_path / "run", auto(**more))
    told = run.outcome.diagnostics
    families = families_of(told["mixing"])
    assert next(iter(families)) == "popularity"
    summary = {"method": "auto", "search": search_of(run.lines, told)}
    assert "nothing beats popularity here" in search_text(summary)
    control, _ = popularity_control(run.run.split)
    assert run.lines[-1]["test"]["full"]["ndcg@10"] == pytest.approx(control["ndcg@10"], abs=1e-9)


def test_the_choice_and_its_margin_are_said(found: Done) -> None:
    section = search_of(found.lines, found.outcome.diagnostics)
    assert section is not None and section["rounds"] == 5 and section["tables"] == 4
    assert section["bytes_up"] == pytest.approx(sum(line["bytes_up"] for line in found.lines[:5]))
    (first, value), (second, other), *_ = section["families"].items()
    text = search_text({"method": "auto", "search": section})
    assert f"auto chose {first}: validation NDCG@10 {value:.4f} ({second} {other:.4f}" in text
    assert f"margin {value - other:+.4f}" in text and "of 4 in 5 rounds" in text


def test_mixtures_hold_each_kind() -> None:
    rows = mixtures([{"order_weight": 0.0, "map_weight": 0.0}, {"order_weight": 2.0, "map_weight": 0.5}])
    assert families_of({"rows": [{**row, "ndcg@10": at} for at, row in enumerate(rows)]}).keys() == {
        "fedials",
        "fedials-order",
        "popularity",
    }
    assert all(row.keys() == rows[0].keys() for row in rows)
    assert mixture_weights(rows, [1, 2], 4) == {1: [1.0, 2.0, 0.5, 0.0], 2: [0.0, 0.0, 0.0, 1.0]}
    assert mixture_weights(rows, [0], 2) == {0: [1.0, 0.0]}, "where there is no order"
