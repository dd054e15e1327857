"""Worlds whose answer is known: what order and recency find there, and that they find nothing where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import done

from fedem_flwr.config import Config, merge_trees, resolve
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.protocol.split import Split
from fedem_flwr.protocol.variants import shuffle_order
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.report.selection import reported_line
from fedem_flwr.runtime.inputs import load_interactions, split_of
from fedem_flwr.runtime.prepared import PreparedRun

ALWAYS: dict[str, Any] = {
    "run": {"threads": 1, "device": "cpu", "checkpoint_every": 1000},
    "evaluation": {"every": 1000},
}


def written(path: Path, lists: list[np.ndarray]) -> Path:
    rows = [f"{user},{item},1,{moment}" for user, items in enumerate(lists) for moment, item in enumerate(items)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def config_of(data: Path, method: str, **sections: Any) -> Config:
    return resolve({}, merge_trees(ALWAYS, {"data": {"dataset": str(data)}, "method": {"name": method}}, sections))


def shuffled(split: Split) -> Split:
    control = shuffle_order(split, 1)
    assert (control.train_items != split.train_items).any()
    return control


def figures_of(path: Path, config: Config, split: Split) -> tuple[dict[str, Any], dict[str, Any]]:
    """Test figures of the round that is reported, and of the last one."""
    run = PreparedRun.create(RunDirectory(path).create(), config, split)
    lines = done(run, carry_out_rounds(run, lambda _: None)).lines
    return reported_line(lines, "strict")["test"], lines[-1]["test"]


# ---- item i + 1 follows item i

RING, USERS = 100, 150


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users listen to six runs of four neighbours on a ring, from random places: the last item ends the last run."""
    rng = np.random.default_rng(0)
    lists = []
    for _ in range(USERS):
        starts = rng.choice(RING // 4, 6, replace=False) * 4 + rng.integers(4)
        lists.append(((starts[:, None] + np.arange(4)) % RING).ravel())
    return written(tmp_path_factory.mktemp("ring") / "ring.csv", lists)


TABLE: dict[str, Any] = {"model": {"dim": 16}, "fold_in": {"half_life": 0.0, "tune": False}}  # without recency
ORDER: dict[str, Any] = {
    "order": {"rounds": 60, "participants": 1.0, "layers": 1, "heads": 2, "window": 8, "negatives": 0, "lr": 0.02}
    | {"dropout": 0.0, "map": 0},
    "run": {"rounds": 66},
}


def test_order_is_found_where_there_is_one_and_only_there(ring: Path, tmp_path: Path) -> None:
    """The leak control: with each history in a random order the same method finds nothing beyond the table."""
    alone = config_of(ring, "fedials", **TABLE, run={"rounds": 6})
    order = config_of(ring, "fedials-order", **TABLE, **ORDER)
    split = split_of(order, load_interactions(order))
    hr: dict[str, float] = {}
    for name, each in (("as it was", split), ("shuffled", shuffled(split))):
        for method, config in (("fedials", alone), ("order", order)):
            found, last = figures_of(tmp_path / name / method, config, each)
            hr[f"{name}, {method}"], hr[f"{name}, {method}, last"] = found["hr@10"], last["hr@10"]
    print(hr)
    assert hr["as it was, order"] >= 0.9
    assert hr["as it was, fedials"] <= 0.5
    assert hr["shuffled, fedials"] == pytest.approx(hr["as it was, fedials"], abs=0.01), "the table knows no order"
    noise = 2 * (0.25 / USERS) ** 0.5  # two standard errors, at most
    assert abs(hr["shuffled, order"] - hr["shuffled, fedials"]) <= noise
    assert hr["shuffled, order, last"] <= hr["shuffled, fedials"] + noise, "nor with the encoder in the score"
    assert hr["as it was, order, last"] >= 0.9


# ---- the newest items matter


@pytest.fixture(scope="module")
def changing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tastes of 20 items each: everybody has 12 items of one, and then 10 of the other."""
    rng, lists = np.random.default_rng(0), []
    for user in range(100):
        first, then = rng.permutation(20)[:12], rng.permutation(20)[:10]
        lists.append(np.concatenate([2 * first + user % 2, 2 * then + 1 - user % 2]))
    # half as many again know one taste only, so that there are two
    lists += [2 * rng.permutation(20)[:14] + user % 2 for user in range(50)]
    return written(tmp_path_factory.mktemp("changing") / "changing.csv", lists)


def test_recency_is_worth_something_where_tastes_change_and_only_there(changing: Path, tmp_path: Path) -> None:
    config = config_of(changing, "fedials", model={"dim": 4}, run={"rounds": 8})
    plain = config.changed("fold_in", half_life=0.0, half_lives=[0.0])  # the ridge is chosen all the same
    split = split_of(config, load_interactions(config))
    hr: dict[str, float] = {}
    for name, each in (("as it was", split), ("shuffled", shuffled(split))):
        for method, settings in (("recency", config), ("plain", plain)):
            hr[f"{name}, {method}"] = figures_of(tmp_path / name / method, settings, each)[0]["hr@10"]
    print(hr)
    assert hr["as it was, recency"] >= hr["as it was, plain"] + 0.2
    noise = 2 * (0.25 / split.users) ** 0.5
    assert abs(hr["shuffled, recency"] - hr["shuffled, plain"]) <= noise


# ---- two tastes


def test_two_tastes_are_found(tmp_path: Path) -> None:
    """Even users like even items, odd ones odd; each has all but 8 of its group's."""
    rng = np.random.default_rng(0)
    data = written(tmp_path / "tastes.csv", [2 * rng.permutation(120)[8:] + user % 2 for user in range(80)])
    config = config_of(data, "fedials")
    found, _ = figures_of(tmp_path / "run", config, split_of(config, load_interactions(config)))
    assert found["sampled99"]["hr@10"] >= 0.98 and found["full"]["hr@10"] >= 0.98
