"""TrainingItems read in blocks: every view of them is that of a slow Python twin."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedem_flwr.engine import history as module
from fedem_flwr.engine.history import History

ITEMS = 9
Lists = list[list[int]]
LISTS = st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=12), max_size=8)
LONGEST = st.none() | st.integers(1, 14)


def history_of(lists: Lists, newest: list[int] | None = None, dtype: type[np.integer] = np.int64) -> History:
    offsets = np.cumsum([0, *(len(items) for items in lists)]).astype(np.int64)
    values = np.array([item for items in lists for item in items], dtype)
    last = None if newest is None else np.array(newest, np.int64)
    return History(np.arange(100, 100 + len(lists)), ITEMS, offsets, values, last)


def lists_of(history: History) -> Lists:
    return [history.values[a:b].tolist() for a, b in zip(history.offsets, history.offsets[1:], strict=False)]


def assert_padded(history: History, lists: Lists, who: list[int], longest: int | None) -> None:
    """Against lists that are cut and filled up one by one."""
    cut = [lists[u] if longest is None else lists[u][-longest:] for u in who]
    width = max((len(items) for items in cut), default=0)
    items, counts = history.padded(np.array(who, np.int64), longest)
    assert items.tolist() == [[ITEMS] * (width - len(row)) + row for row in cut] or (not who and items.numel() == 0)
    assert counts.tolist() == [len(row) for row in cut]
    assert str(items.dtype) == str(counts.dtype) == "torch.int64" and items.shape == (len(who), width)


@given(LISTS, LONGEST, st.data())
def test_padded_is_right_aligned_and_keeps_the_newest(lists: Lists, longest: int | None, data: st.DataObject) -> None:
    who = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=6) if lists else st.just([]))
    assert_padded(history_of(lists), lists, who, longest)
    assert history_of(lists).counts().tolist() == [len(items) for items in lists]


@given(LISTS, LONGEST, st.data())
def test_the_newest_item_stands_last(lists: Lists, longest: int | None, data: st.DataObject) -> None:
    newest = data.draw(st.lists(st.integers(0, ITEMS - 1), min_size=len(lists), max_size=len(lists)))
    plain = history_of(lists)
    later = plain.with_newest(np.array(newest, np.int64))
    longer = [[*items, last] for items, last in zip(lists, newest, strict=True)]
    assert_padded(later, longer, list(range(len(lists)))[::-1], longest)
    assert later.counts().tolist() == [len(items) for items in longer]
    assert plain.newest is None and lists_of(plain) == lists, "the history itself is as it was"
    assert later.items == ITEMS and later.users.tolist() == plain.users.tolist()


@given(LISTS)
def test_distinct_keeps_each_item_where_it_stood_last(lists: Lists) -> None:
    def once(items: list[int]) -> list[int]:
        return [item for place, item in enumerate(items) if item not in items[place + 1 :]]

    history = history_of(lists, [0] * len(lists))
    distinct = history.distinct()
    assert lists_of(distinct) == [once(items) for items in lists]
    assert distinct.users is history.users and distinct.newest is history.newest and distinct.items == ITEMS
    assert lists_of(distinct.distinct()) == lists_of(distinct)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LISTS, LONGEST, st.integers(1, 4), st.integers(1, 60), st.booleans(), st.data())
def test_blocks_cover_everybody_once_within_the_budget(
    monkeypatch: pytest.MonkeyPatch,
    lists: Lists,
    longest: int | None,
    width: int,
    budget: int,
    later: bool,
    data: st.DataObject,
) -> None:
    monkeypatch.setattr(module, "BLOCK_FLOATS", budget)
    history = history_of(lists, [3] * len(lists) if later else None)
    chosen = data.draw(st.permutations(range(len(lists))))
    who = np.array(chosen[: data.draw(st.integers(0, len(lists)))], np.int64)
    blocks = history.blocks(who, width, longest)
    assert sorted(np.concatenate(blocks).tolist() if blocks else []) == sorted(who.tolist())
    whole = [np.maximum(1, history.padded(block, longest)[1].numpy()) for block in blocks]  # lengths, once cut
    for lengths in whole:
        assert len(lengths) == 1 or len(lengths) * lengths.max() * width <= budget
    for lengths, following in itertools.pairwise(whole):
        assert lengths.max() <= following.min(), "ascending, so that little is padded"
        assert (len(lengths) + 1) * following.min() * width > budget, "no smaller than needed"


def test_the_default_budget_takes_small_cohorts_whole() -> None:
    history = history_of([[1, 2], [], [3]])
    assert [sorted(block.tolist()) for block in history.blocks(np.arange(3), 64)] == [[0, 1, 2]]
    assert history.blocks(np.arange(0), 64) == []


@pytest.mark.parametrize("newest", [None, [7, 8, 0]])
def test_mapped_from_disk(tmp_path: Path, newest: list[int] | None) -> None:
    """A saved split holds int32; nothing is written into it, and what comes out is in memory."""
    lists = [[5, 1, 2], [], [4, 4, 0, 1]]
    plain = history_of(lists, newest, np.int32)
    np.save(tmp_path / "values.npy", plain.values)
    values = np.load(tmp_path / "values.npy", mmap_mode="r")
    mapped = History(plain.users, ITEMS, plain.offsets, values, plain.newest)
    longer = lists if newest is None else [[*items, last] for items, last in zip(lists, newest, strict=True)]
    for longest in (None, 1, 2, 9):
        assert_padded(mapped, longer, [2, 0, 1], longest)
    assert lists_of(mapped.distinct()) == [[5, 1, 2], [], [4, 0, 1]]
    assert not isinstance(mapped.distinct().values.base, np.memmap)
    assert np.load(tmp_path / "values.npy").tolist() == plain.values.tolist()


def test_nobody_and_nothing() -> None:
    for lists in ([], [[], []]):
        history = history_of(lists)
        items, counts = history.padded(np.arange(len(lists)))
        assert items.shape == (len(lists), 0) and counts.tolist() == [0] * len(lists)
        assert lists_of(history.distinct()) == lists
    fed = history_of([[], []], [4, 6])
    assert fed.padded(np.arange(2))[0].tolist() == [[4], [6]]
