"""Data sets in blocks of users: the same rows and splits as at once, in bounded memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blocks_of_rows import FEWEST, InBlocks, grouped, in_a_folder, interactions, protocols, same
from hypothesis import assume, given
from hypothesis import strategies as st

from fedem_flwr.data import Interactions, SyntheticConfig, SyntheticSource, synthetic_interactions
from fedem_flwr.data.sorting import first_of_each, stable_order
from fedem_flwr.errors import InputError
from fedem_flwr.protocol import Protocol, Split, draw_negatives, make_split, split_to
from fedem_flwr.protocol.files import appended, stored_type
from fedem_flwr.randomness import keyed_bits, label_bits


def at_once(data: Interactions, protocol: Protocol, seed: int, minimum: int) -> dict[str, Any] | None:
    """The slow twin: whole-array steps, each as the protocol words it; None where no split is possible."""
    rows = np.arange(data.rows) if data.rating is None else np.flatnonzero(data.rating > 0)
    if protocol == "strict":
        if data.time is not None:
            rows = rows[np.argsort(data.time[rows], kind="stable")]
        rows = np.sort(rows[np.unique(data.user[rows] * data.items + data.item[rows], return_index=True)[1]])
    counts = np.bincount(data.user[rows], minlength=data.users)
    kept = data.take(rows[counts[data.user[rows]] >= minimum])
    if not kept.rows or kept.items < 2:
        return None
    time: np.ndarray = kept.item if kept.time is None else kept.time
    drawn = np.arange(kept.rows)
    if protocol == "strict":
        time = np.zeros(kept.rows) if kept.time is None else kept.time
        labels = (label_bits(ids)[torch.from_numpy(codes)] for ids, codes in
                  ((kept.user_ids, kept.user), (kept.item_ids, kept.item)))  # fmt: skip
        drawn = keyed_bits(seed, "split/held-out", *labels).numpy()
    item = kept.item[np.lexsort((drawn, time, kept.user))]
    ends = np.cumsum(np.bincount(kept.user))
    pairs = np.unique(kept.user * kept.items + kept.item)
    offsets = np.searchsorted(pairs // kept.items, np.arange(kept.users + 1))
    return {
        "interactions": kept.rows,
        "train_offsets": np.append(0, ends - 2 * np.arange(1, kept.users + 1)),
        "train_items": np.delete(item, np.append(ends - 1, ends - 2)),
        "validation": item[ends - 2],
        "test": item[ends - 1],
        "negatives": draw_negatives(offsets, pairs % kept.items, kept.items, seed=seed),
        "user_ids": kept.user_ids,
        "item_ids": kept.item_ids,
    }


@in_a_folder
@given(interactions, protocols, st.integers(0, 3), st.integers(3, 5))
def test_a_split_equals_its_slow_twin_in_memory_and_on_disk(
    tmp_path: Path, data: Interactions, protocol: Protocol, seed: int, minimum: int
) -> None:
    expected = at_once(data, protocol, seed, minimum)
    if expected is None:
        with pytest.raises(InputError):
            make_split(data, protocol, seed=seed, min_interactions=minimum)
        return
    split = make_split(data, protocol, seed=seed, min_interactions=minimum)
    for name, values in expected.items():
        np.testing.assert_array_equal(getattr(split, name), values, err_msg=name)
    for name in ("train_offsets", "train_items", "validation", "test", "negatives"):
        assert getattr(split, name).dtype == np.int64, name
    assert same(split, split_to(tmp_path / "split", data, protocol, seed=seed, min_interactions=minimum))


@in_a_folder
@given(interactions, protocols, st.integers(1, 4))
def test_blocks_make_no_difference(tmp_path: Path, data: Interactions, protocol: Protocol, block_users: int) -> None:
    data = grouped(data)
    assume(at_once(data, protocol, 1, FEWEST) is not None)
    whole = make_split(data, protocol, seed=1, min_interactions=FEWEST)
    blocks = InBlocks(data, block_users)
    assert same(whole, make_split(blocks, protocol, seed=1, min_interactions=FEWEST))
    assert same(whole, split_to(tmp_path / "split", blocks, protocol, seed=1, min_interactions=FEWEST))


@pytest.mark.parametrize("protocol", ["paper", "strict"])
@pytest.mark.parametrize("block_users", [1, 77, 5000])
def test_the_synthetic_source_splits_as_its_interactions_do(
    tmp_path: Path, protocol: Protocol, block_users: int
) -> None:
    config = SyntheticConfig(users=300, items=1500)
    seen: list[tuple[int, int]] = []

    def watch(done: int, total: int) -> None:
        seen.append((done, total))

    source = SyntheticSource(config, 2, block_users)
    split = split_to(tmp_path / "split", source, protocol, seed=2, min_interactions=20, on_progress=watch)
    assert 0 < split.users < config.users
    assert same(split, make_split(synthetic_interactions(config, 2), protocol, seed=2, min_interactions=20))
    assert seen == sorted(seen), "never backwards"
    assert seen[-1] == (config.users, config.users)
    assert {total for _, total in seen} == {config.users}


def test_what_is_on_disk_is_small_mapped_and_alone(tmp_path: Path) -> None:
    split = split_to(tmp_path / "deep" / "split", SyntheticSource(SyntheticConfig(), 0), "strict", seed=0)
    for name in ("train_items", "negatives"):
        assert getattr(split, name).dtype == np.int32
        assert isinstance(getattr(split, name), np.memmap)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["split"], "nothing temporary is left"
    in_memory = make_split(synthetic_interactions(SyntheticConfig(), 0), "strict", seed=0)
    in_memory.save(tmp_path / "saved")
    files = sorted(path.name for path in (tmp_path / "saved").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "deep" / "split").iterdir())
    for name in files:
        if name not in ("user_ids.npy", "item_ids.npy"):  # there, labels may be as wide as the catalogue's widest
            assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "deep" / "split" / name).read_bytes()
    users = np.array([5, 3])
    assert all(np.array_equal(a, b) for a, b in zip(split.forbidden(users), in_memory.forbidden(users), strict=True))


def test_a_split_written_with_wide_integers_is_read(tmp_path: Path) -> None:
    split = make_split(SyntheticSource(SyntheticConfig(), 0), "paper", seed=0)
    split.save(tmp_path / "split")
    for name in ("train_items", "negatives"):
        np.save(tmp_path / "split" / f"{name}.npy", getattr(split, name))
    loaded = Split.load(tmp_path / "split")
    assert loaded.negatives.dtype == np.int64
    assert same(split, loaded)


def test_a_source_that_breaks_leaves_the_earlier_split(tmp_path: Path) -> None:
    data = synthetic_interactions(SyntheticConfig(users=40), 0)
    first = split_to(tmp_path / "split", data, "strict", seed=0)
    with pytest.raises(OSError, match="no space"):
        split_to(tmp_path / "split", InBlocks(data, 10, fails_at=30), "strict", seed=1)
    with pytest.raises(InputError, match="no user has"):
        split_to(tmp_path / "split", data, "strict", seed=1, min_interactions=10**6)
    assert same(first, Split.load(tmp_path / "split"))
    assert len(list(tmp_path.iterdir())) == 1


def traced_peak(folder: Path, users: int) -> int:
    source = SyntheticSource(SyntheticConfig(users=users, items=500, mean_interactions=50), 0, block_users=250)
    tracemalloc.start()
    split_to(folder, source, "strict", seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_is_a_few_numbers_a_user(tmp_path: Path) -> None:
    few, many = 2000, 12000
    traced_peak(tmp_path / "first", few)  # imports
    growth = (traced_peak(tmp_path / "many", many) - traced_peak(tmp_path / "few", few)) / (many - few)
    assert growth < 250, "a user's rows alone would be 400 bytes and the negatives 800"


def test_appended_rows_make_an_ordinary_file(tmp_path: Path) -> None:
    with appended(tmp_path / "a.npy", np.dtype(np.int32), (3,)) as append:
        for start in range(0, 40_000, 8_000):
            append(np.arange(3 * start, 3 * (start + 8_000), dtype=np.int64).reshape(-1, 3))
    expected = np.arange(120_000, dtype=np.int32).reshape(-1, 3)
    np.save(tmp_path / "b.npy", expected)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    assert stored_type(2**31 - 1) == np.int32
    assert stored_type(2**31) == np.int64


@given(st.lists(st.integers(0, 20), max_size=60), st.sampled_from([21, 2**40, 2**62]))
def test_sorting_equals_numpys(values: list[int], bound: int) -> None:
    keys = np.array(values, np.int64) * (bound // 21)
    np.testing.assert_array_equal(stable_order(keys, bound), np.argsort(keys, kind="stable"))
    np.testing.assert_array_equal(first_of_each(keys, bound), np.sort(np.unique(keys, return_index=True)[1]))
