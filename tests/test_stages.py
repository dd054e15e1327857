"""Grids that are searched from coarse to fine, and steps that show how far they are."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from control_worlds import checkerboard, drifting
from worlds import carry_out_watched, config_of

from fedem_flwr.evaluation.plain_controls import drawn_ranks, ranks_of_counts
from fedem_flwr.evaluation.ranking import Part, held_out_ranks
from fedem_flwr.evaluation.settings_grid import SettingsGrid
from fedem_flwr.evaluation.stages import around, coarse
from fedem_flwr.evaluation.tuning import searched
from fedem_flwr.report.steps import StepWatch

GRID = [{"h": h, "r": r} for h, r in product((0.0, 3.0, 5.0, 8.0, 12.0, 30.0), (0.5, 1.0, 2.0))]


def answer(grid: SettingsGrid, best: dict[str, float]) -> dict[str, float]:
    """Sums of ten users that are best at some settings, and worse with the distance in the grid."""
    hs = [0.0, 3.0, 5.0, 8.0, 12.0, 30.0]
    sums = {"g/users": 10.0}
    for row in grid.wanted():
        one = GRID[row]
        apart = abs(hs.index(one["h"]) - hs.index(best["h"])) + abs(np.log2(one["r"] / best["r"]))
        sums[f"g/{row:03d}"] = 5.0 - 0.1 * float(apart)
    return sums


@pytest.mark.parametrize("best", GRID)
def test_a_search_in_two_stages_finds_what_the_whole_grid_has(best: dict[str, float]) -> None:
    grid, whole = SettingsGrid("g", GRID, GRID[0], staged=True), SettingsGrid("g", GRID, GRID[0])
    assert whole.wanted() == list(range(18)) and len(grid.wanted()) == 8
    first = answer(grid, best)
    assert grid.take({**first, "loss": 1.0}, 4) == {"loss": 1.0} and grid.refining
    kept = SettingsGrid("g", GRID, GRID[0], staged=True)
    kept.restore(grid.state())  # as from a checkpoint between the stages
    assert kept.wanted() == grid.wanted() and len(kept.wanted()) <= 9
    for one in (grid, kept):
        one.take(answer(one, best), 5)
        assert one.chosen == best and not one.refining and one.round == 5
    whole.take(answer(whole, best), 4)
    assert whole.chosen == best and not whole.refining
    shown = grid.shown()
    assert shown is not None and 8 < len(shown["rows"]) < 18  # type: ignore[arg-type]


def test_coarse_and_around() -> None:
    rows = [tuple(row.values()) for row in GRID]
    assert {rows[at] for at in coarse(rows)} == set(product((0.0, 5.0, 12.0, 30.0), (0.5, 2.0)))
    assert {rows[at] for at in around(rows, rows.index((30.0, 1.0)))} == set(product((12.0, 30.0), (0.5, 1.0, 2.0)))
    gains = searched([(1, 0.0), (2, 0.0), (3, 0.0)], lambda s: {"full": s[0] == 2, "sampled99": s[0] == 3}, staged=True)
    assert list(gains) == [(1, 0.0), (2, 0.0), (3, 0.0)]


def test_a_run_on_a_sample_tries_the_coarse_grid_and_then_its_neighbours(tmp_path: object) -> None:
    config = config_of("fedials", run={"rounds": 5}, evaluation={"sample_users": 12})
    done, grid = carry_out_watched(tmp_path, config)  # type: ignore[arg-type]
    told = {m.config["server-round"]: m.config["tune-fold-in"] for m in grid.down if m.kind == "train"}
    asked = {round_: rows.split(",") for round_, rows in told.items() if rows}
    assert list(asked) == [4, 5] and len(asked[4]) == 8 and 4 <= len(asked[5]) <= 9
    for reply in grid.up:
        if "fold-in/users" in reply.metrics:
            assert reply.metrics["fold-in/users"] == 12
            assert sum(name.startswith("fold-in/") for name in reply.metrics) == 1 + len(asked[int(reply.round)])
    tuning = done.outcome.diagnostics["tuning"]
    assert tuning["round"] == 4 and tuning["chosen"] in config.fold_in.grid()  # type: ignore[index]


@pytest.mark.parametrize("which", ["validation", "test"])
def test_ranks_by_counts_equal_those_by_scores(which: Part) -> None:
    for split in (checkerboard(), drifting()):
        counts = np.bincount(split.train_csr().indices, minlength=split.items)
        users = np.array([3, 0, 5])
        scores = torch.from_numpy(counts.astype(np.float32)).expand(3, -1)
        expected = held_out_ranks(split, users, scores, which=which)
        found = ranks_of_counts(split, users, counts, which)
        assert {way: ranks.tolist() for way, ranks in found.items()} == {w: r.tolist() for w, r in expected.items()}


def test_drawn_ranks_are_uniform_over_the_candidates() -> None:
    split = checkerboard(users=400, items=60)
    users = np.arange(split.users)
    ranks = drawn_ranks(split, users, "test")
    candidates = split.items - 13  # 12 of 14 in training, and the validation item
    assert ranks["full"].min() == 1 and ranks["full"].max() == candidates
    assert abs(float(ranks["full"].double().mean()) - (candidates + 1) / 2) < 3 * candidates / np.sqrt(12 * 400)
    np.testing.assert_array_equal(drawn_ranks(split, users[[7]], "test")["full"], ranks["full"][[7]])


def test_long_steps_say_share_rate_and_time_left_and_short_ones_nothing() -> None:
    now, said = [0.0], list[str]()
    watch = StepWatch(said.append, every=1.0, clock=lambda: now[0])
    for done in range(1, 11):
        now[0] += 0.1
        watch("short", done, 10)
    assert said == []
    for done in range(1, 6):
        now[0] += 1.0
        watch("long", done, 5)
    assert said == ["long: 40%  1.00/s  ETA 0:03", "long: 60%  1.00/s  ETA 0:02", "long: 80%  1.00/s  ETA 0:01", ""]
