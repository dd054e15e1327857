"""Cells: a method learns what is there to be learnt, counts honestly, and serves what it has learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import carry_out

from conformance.methods import LEARNING, Subject
from conformance.runs import Runs
from fedem_flwr.config import Config, merge_trees
from fedem_flwr.contract.serving import serves_newcomers
from fedem_flwr.errors import InputError
from fedem_flwr.experiment.controls import local_only, trains_alone
from fedem_flwr.serving.recommender import Recommender

TASTES: dict[str, Any] = {
    "model": {"dim": 4, "init_std": 0.1},
    "local": {"epochs": 1, "batch_size": 256, "lr_user": 0.02, "lr_item": 0.02},
    "merge": {"bias": 3.0, "lr": 0.001, "epochs": 1},  # an adapter that learns slowly, as it unlearns to listen
    "order": {"rounds": 2, "map": 0, "weight": 0.5},
    "group_tables": {"clustering": 2, "rounds": 2, "groups": 2},
    "run": {"rounds": 30, "checkpoint_every": 1000},
    "evaluation": {"every": 1000},
}
USERS, ITEMS, MISSING = 40, 50, 6  # items of a taste, and how many of them a user has not met
FOUND, AT_CHANCE = 0.95, 0.4  # HR@10 among 48 items


def tastes(subject: Subject, runs: Runs) -> None:
    """Two groups of users with disjoint items: what a user has not met is found with the others' help, and only so."""
    config = tastes_config(subject, runs)
    whole = carry_out(runs.path(), config)
    reached = whole.lines[-1]["test"]["sampled99"]["hr@10"]
    if trains_alone(config):
        alone = local_only(whole.run.split, config, lambda _: None)["sampled99"]["hr@10"]
        assert alone <= AT_CHANCE, f"HR@10 {alone:.2f} without the others: something leaks"
    assert reached >= FOUND, f"HR@10 {reached:.2f}"


def tastes_config(subject: Subject, runs: Runs) -> Config:
    """A run of the method over the world of two tastes."""
    data = {"data": {"dataset": str(tastes_file(runs))}}
    return subject.config(**merge_trees(TASTES, LEARNING.get(subject.base, {}), data))


def tastes_file(runs: Runs) -> Path:
    """Even users like even items, odd ones odd; made once."""
    if "tastes" not in runs.shared:
        rng, path = np.random.default_rng(0), runs.folder / "tastes.csv"
        lists = [2 * rng.permutation(ITEMS)[MISSING:] + user % 2 for user in range(USERS)]
        rows = [f"{user},{item},1,{at}" for user, items in enumerate(lists) for at, item in enumerate(items)]
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        runs.shared["tastes"] = path
    found: Path = runs.shared["tastes"]
    return found


def misses(subject: Subject, runs: Runs) -> None:
    """A model of numbers that are none hits nothing, and its users are counted; or it is refused in one line."""
    whole = runs.whole(subject, 0)
    client = whole.client()
    last = whole.rounds[-1]
    cohort = client.host.cohort(0, last)
    for values in cohort.state.values():
        values.fill_(float("nan"))
    client.host.keep(0, last, cohort, durable=False, keep_from=[0])
    arrays, config = whole.message(client, "evaluate", last)
    arrays = [np.full_like(values, np.nan) if values.dtype.kind == "f" else values for values in arrays]
    try:
        sums = client.evaluate(arrays, config)[2]
    except FloatingPointError as error:
        assert "\n" not in str(error)
        return
    assert sums["nonfinite"] == 2 * sums["users"] > 0, "of both held-out items"
    for name, value in sums.items():
        if name.rpartition("/")[2][:3] in ("hr@", "ndc", "mrr"):
            assert value == 0, f"{name} = {value}"


def served(subject: Subject, runs: Runs) -> None:
    """Recommendations for a user of the run; for any history where the method can, else one line says it cannot."""
    whole = runs.whole(subject, 0)
    split, client = whole.done.run.split, whole.client()
    recommender = Recommender.load(whole.done.run.directory.path)
    for code in (0, split.users - 1):
        found = recommender.recommend_user(str(split.user_ids[code]), top=5)
        known = {str(split.item_ids[item]) for item in split.train_items[split.train_offsets[code] :][:3]}
        assert len({one.item for one in found}) == 5 and not known & {one.item for one in found}
        assert np.isfinite([one.score for one in found]).all()
        assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    history = [str(item) for item in split.item_ids[:3]]
    arrays, config = whole.message(client, "evaluate", whole.rounds[-1])
    if client.components(arrays, config) or serves_newcomers(client.method):
        assert len(recommender.recommend(history, top=5)) == 5
        return
    with pytest.raises(InputError, match="keeps a trained table") as refusal:
        recommender.recommend(history)
    assert "\n" not in str(refusal.value)
