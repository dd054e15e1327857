"""The search for the published FedEM: its walk with figures that are given, its readings, and the merge of round 1."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from worlds import carry_out, config_of, figures, largest_difference

from benchmarks.fedem_published import AXES, HR, Search, report, said
from fedem_flwr.config import Tree
from fedem_flwr.contract.finding import method_of


class Given(Search):
    """Trains nothing: a cell is as far off as its settings say."""

    trained = 0

    def _train(self, data: str, tree: Tree) -> dict[str, Any]:
        self.trained += 1
        off = 0.3
        off -= 0.1 * (tree.get("model", {}).get("init_std") == 0.1)
        off -= 0.05 * (tree.get("merge", {}).get("rho") == 0.7)
        off -= 0.02 * (tree.get("merge", {}).get("epochs") == 3) + 0.02 * ("strategy" in tree["method"])
        return {"hr": HR[data][tree["method"]["name"]] - off, "ndcg": 0.0, "round": 1}


def search(folder: Path, **more: Any) -> Given:
    return Given(folder, ("ml-100k", "filmtrust"), 100, more.get("ends", float("inf")))


def test_the_walk_finds_what_is_nearest_and_goes_on_where_it_was(tmp_path: Path) -> None:
    """Axes that help are kept, whatever order they come in; a second search trains nothing again."""
    first = search(tmp_path)
    best, nearest = first.go()
    changed = {name: value for name, value in best.items() if value != next(iter(dict(_values(name))))}
    assert changed.keys() == {"evaluated", "initial deviation", "ρ of SM", "epochs of Eq. 11"}
    assert nearest == pytest.approx(0.3 - 0.1 - 0.02 - (0.05 + 2 * 0.02) / 5)
    again = search(tmp_path)
    assert again.go() == (best, nearest) and again.trained == 0 < first.trained < len(first.distances) * 10
    text = report(again, best, nearest)
    assert f"Nearest: {said(best)}" in text and f"{len(again.distances)} combinations" in text
    assert text.count("≥ ") > 0, "some were given up"


def _values(name: str) -> Mapping[str, Tree]:
    return next(axis.values for axis in AXES if axis.name == name)


def test_a_cell_is_trained_once_for_all_settings_that_it_does_not_look_at(tmp_path: Path) -> None:
    found = search(tmp_path)
    presets = {axis.name: next(iter(axis.values)) for axis in AXES}
    found.cell("ml-100k", "fedsim", presets)
    found.cell("ml-100k", "fedsim", {**presets, "ρ of SM": "0.1", "epochs of Eq. 11": "30"})
    assert found.trained == 1 and len((tmp_path / "cells.jsonl").read_text().splitlines()) == 1
    found.cell("ml-100k", "fedsim", {**presets, "initial deviation": "0.01"})
    assert found.trained == 2 and all(
        "hr" in json.loads(x) for x in (tmp_path / "cells.jsonl").read_text().splitlines()
    )


def test_a_spent_budget_ends_it(tmp_path: Path) -> None:
    found = search(tmp_path, ends=0.0)
    assert found.go()[1] == float("inf") and found.trained == 0


def test_own_tables_are_scored_before_the_server_has_seen_them(tmp_path: Path) -> None:
    """FedMF so: it trains the same, and another table is looked at."""
    kind = {"method": {"name": "fedmf-sr", "strategy": "benchmarks.fedem_published:FedMFAlone"}}
    plain, alone = (carry_out(tmp_path / str(at), config_of("fedmf-sr", **more)) for at, more in enumerate(({}, kind)))
    assert largest_difference(plain.server, alone.server) < 1e-5
    assert [figures(line) for line in plain.lines] != [figures(line) for line in alone.lines]


def test_two_random_tables_are_merged_in_round_1(tmp_path: Path) -> None:
    """With steps of no size, and ρ = ¼: ¾ of the common table and ¼ of the second."""
    local = {"lr_user": 1e-12, "lr_item": 1e-12}
    merge = {"mode": "static", "rho": 0.25}
    method = {"name": "fedem", "options": {"first_merge": True}}
    config = config_of("fedem", method=method, merge=merge, local=local, run={"rounds": 1})
    done = carry_out(tmp_path, config)
    part = method_of(config, done.run.facts.items).parts()["items"]
    first, second = (part.initial(name, done.run.facts.items, 0) for name in ("items", "first-merge"))
    assert float((torch.from_numpy(done.nodes["items"]) - (0.75 * first + 0.25 * second)).abs().max()) < 1e-5
