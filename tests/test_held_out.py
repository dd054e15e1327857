"""What elastic merging holds out of histories to fit ρ: it stays out of everything else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from elastic_world import BEFORE_FIT, METHODS, random_history, rows_of, small
from hypothesis import given
from hypothesis import strategies as st
from worlds import WatchedGrid, largest_difference, prepare

from fedem_flwr.engine.held_out import HeldOut, hold_out, take, without
from fedem_flwr.engine.samples import TrainingItems
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.inprocess import task_identity
from fedem_flwr.runtime.prepared import PreparedRun

LISTS = st.lists(st.lists(st.integers(0, 29), max_size=9, unique=True), min_size=1, max_size=6)


@given(LISTS, st.integers(1, 4), st.booleans())
def test_a_history_is_cut_in_two(lists: list[list[int]], count: int, by_time: bool) -> None:
    held = hold_out(random_history(lists, 30), count, 3, by_time=by_time)
    for row, rest, out in zip(lists, rows_of(held.rest), held.items.tolist(), strict=True):
        real = [item for item in out if item < 30]
        assert len(real) == min(count, len(row) // 2) and sorted(rest + real) == sorted(row)
        assert rest == [item for item in row if item in rest], "the order stays"
        assert not by_time or real == row[::-1][: len(real)], "the newest, newest first"


@given(LISTS, st.integers(1, 3))
def test_without_times_a_new_item_holds_out_at_most_itself(lists: list[list[int]], count: int) -> None:
    before = hold_out(random_history(lists, 31), count, 3, by_time=False)
    grown = take(random_history(lists, 31, [30] * len(lists)), np.arange(len(lists)))
    after = hold_out(grown, count, 3, by_time=False)
    for old, new, row in zip(before.items.tolist(), after.items.tolist(), lists, strict=True):
        if min(count, len(row) // 2) == min(count, (len(row) + 1) // 2):
            assert set(new) - {30} <= set(old)


def test_users_are_taken_in_order() -> None:
    history = random_history([[1, 2], [], [3, 4, 5]], 9, [6, 7, 8])
    some = take(history, np.array([2, 0]))
    assert rows_of(some) == [[3, 4, 5, 8], [1, 2, 6]] and some.users.tolist() == [7, 5] and some.newest is None


def test_a_held_out_item_may_be_drawn_as_a_negative() -> None:
    flat = [torch.tensor(x) for x in ([0, 3, 5], [4, 1, 2, 0, 3], [0, 3, 5], [1, 2, 4, 0, 3])]
    held = HeldOut(random_history([[4, 1], [0]], 6), np.array([[2], [3]]))
    cut = without(TrainingItems(torch.arange(2), 6, *flat), held)
    assert cut.positive_items.tolist() == [4, 1, 0] and cut.positive_offsets.tolist() == [0, 2, 3]
    assert cut.forbidden_items.tolist() == [1, 4, 0] and cut.forbidden_offsets.tolist() == [0, 2, 3]


@pytest.mark.parametrize("method", METHODS)
def test_held_out_items_enter_no_sum_before_rho_is_fitted(method: str, tmp_path: Path) -> None:
    """Two worlds that differ in nothing but the held-out items: what goes up differs when these are looked at."""
    config = small(method, "all", group_tables={"hold_out": 1})
    one = prepare(tmp_path / "one", config)
    split, items = one.split, np.array(one.split.train_items)
    rng = np.random.default_rng(0)
    for user, last in enumerate(split.train_offsets[1:] - 1):
        known = {*items[split.train_offsets[user] : last + 1], split.validation[user], split.test[user]}
        items[last] = rng.choice([item for item in range(split.items) if item not in known])
    other = PreparedRun.create(RunDirectory(tmp_path / "other").create(), config, replace(split, train_items=items))
    uploads = []
    for run in (one, other):
        with task_identity():
            grid = WatchedGrid(run)
            run.server(lambda _: None)(grid)
        uploads.append({crossing.round: crossing.arrays for crossing in grid.up if crossing.kind == "train"})
    differences = [largest_difference(uploads[0][str(r)], uploads[1][str(r)]) for r in range(1, BEFORE_FIT + 1)]
    assert differences == [0.0] * BEFORE_FIT
    assert largest_difference(uploads[0][str(BEFORE_FIT + 1)], uploads[1][str(BEFORE_FIT + 1)]) > 0
