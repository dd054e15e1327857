"""Data sets in blocks of users: the same rows and splits as at once, in bounded memory; new users; shuffled order."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from fedem_flwr.data import (
    Interactions,
    Source,
    SyntheticConfig,
    SyntheticSource,
    gather,
    hold_out_users,
    load_dataset,
    open_source,
    synthetic_interactions,
    with_known_items,
)
from fedem_flwr.data.interactions import first_appearance
from fedem_flwr.data.sorting import first_of_each, stable_order
from fedem_flwr.data.synthetic import _OVERSAMPLING, _PASSES, _activity, _cumulative_tastes
from fedem_flwr.errors import InputError
from fedem_flwr.protocol import Protocol, Split, draw_negatives, make_split, shuffle_order, split_to
from fedem_flwr.protocol.files import appended, stored_type
from fedem_flwr.randomness import keyed_bits, keyed_integers, keyed_uniform

FEWEST = 3  # fewest rows a user that still leave one to train on
protocols = st.sampled_from(["paper", "strict"])
in_a_folder = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def interactions_of(rows: list[tuple[int, int, float, float]], *, times: bool, ratings: bool) -> Interactions:
    user, user_ids = first_appearance(np.array([f"u{row[0]}" for row in rows]))
    item, item_ids = first_appearance(np.array([f"i{row[1]}" for row in rows]))
    rating = np.array([row[2] for row in rows]) if ratings else None
    return Interactions(
        "made-up", user, item, rating, np.array([row[3] for row in rows]) if times else None, user_ids, item_ids
    )


interactions = st.builds(
    interactions_of,
    st.lists(
        st.tuples(
            st.integers(0, 5), st.integers(0, 12), st.sampled_from([0.0, 1.0, 4.5]), st.integers(0, 4).map(float)
        ),
        min_size=10,
        max_size=90,
    ),
    times=st.booleans(),
    ratings=st.booleans(),
)


@dataclass(frozen=True, eq=False)
class InBlocks:
    """Interactions whose users' rows lie together, a few users a block."""

    whole: Interactions
    block_users: int
    fails_at: int = -1

    name = "made-up"

    @property
    def users(self) -> int:
        return self.whole.users

    @property
    def items(self) -> int:
        return self.whole.items

    @property
    def item_ids(self) -> np.ndarray:
        return self.whole.item_ids

    def blocks(self) -> Iterator[Interactions]:
        for first in range(0, self.users, self.block_users):
            if first == self.fails_at:
                raise OSError("no space left")
            last = min(first + self.block_users, self.users)
            rows = (self.whole.user >= first) & (self.whole.user < last)
            part = replace(self.whole.take(rows), item=self.whole.item[rows], item_ids=self.whole.item_ids)
            assert np.array_equal(part.user_ids, self.whole.user_ids[first:last])
            yield part


def grouped(whole: Interactions) -> Interactions:
    return whole.take(np.argsort(whole.user, kind="stable"))


def same(a: Split, b: Split) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


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
    key: np.ndarray = kept.item
    if kept.time is not None:
        key = kept.time
    elif protocol == "strict":
        key = keyed_bits(seed, "split/held-out", torch.from_numpy(kept.user), torch.from_numpy(kept.item)).numpy()
    item = kept.item[np.lexsort((key, kept.user))]
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


# --- splits in blocks --------------------------------------------------------------------------------------


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


# --- the generator -----------------------------------------------------------------------------------------


def slow_history(config: SyntheticConfig, seed: int, user: int, count: int, cumulative: np.ndarray) -> list[int]:
    """The generator's slow twin: one user's items, oldest first, one draw at a time."""

    def uniform(purpose: str, position: int) -> float:
        return float(keyed_uniform(seed, f"synthetic/{purpose}", user, position))

    found: dict[int, float] = {}
    position = 0
    for attempt in range(_PASSES + 1):
        missing = count - len(found)
        catalogue = keyed_bits(seed, "synthetic/shuffle", user, torch.arange(config.items)).argsort().tolist()
        for step in range(int(np.ceil(missing * _OVERSAMPLING)) if attempt < _PASSES else config.items * (missing > 0)):
            moment, share = uniform("moment", position), uniform("source", position)
            if attempt == _PASSES:
                item = catalogue[step]
            else:
                own, drifted = (share - config.noise) / (1 - config.noise), config.drift * moment
                left = (own - drifted) / (1 - drifted)
                slot = 3 if own < drifted else (0 if left < 0.6 else 1 if left < 0.85 else 2)
                cluster = int(keyed_integers(config.clusters, seed, "synthetic/taste", user, slot))
                row = config.clusters if share < config.noise else cluster
                place = int(np.searchsorted(cumulative, row + uniform("draw", position), side="right"))
                item = min(place - row * config.items, config.items - 1)
            position += 1
            if len(found) < count:
                found.setdefault(item, moment)
    return sorted(found, key=lambda item: int(found[item] * 2**32))


@settings(max_examples=8, deadline=None)
@given(st.integers(36, 80), st.sampled_from([0.0, 12.0]), st.integers(0, 2**31), st.integers(1, 5))
@example(36, 500.0, 1, 2)  # tastes too narrow: the catalogue completes the rows
def test_the_generator_equals_its_slow_twin(items: int, sharpness: float, seed: int, block_users: int) -> None:
    config = SyntheticConfig(users=5, items=items, sharpness=sharpness, mean_interactions=13)
    data = synthetic_interactions(config, seed, block_users=block_users)
    counts, cumulative = _activity(config, seed), _cumulative_tastes(config, seed)
    for user in range(config.users):
        labels = data.item_ids[data.item[data.user == user]].astype(int).tolist()
        assert labels == slow_history(config, seed, user, int(counts[user]), cumulative)


def test_a_source_is_opened_without_its_rows() -> None:
    source = open_source("synthetic", seed=3, synthetic=SyntheticConfig(users=10**6, items=10**4))
    assert isinstance(source, SyntheticSource)
    assert (source.name, source.users, source.items) == ("synthetic", 10**6, 10**4)
    first = next(source.blocks())
    assert first.users == source.block_users
    assert first.user_ids[:2].tolist() == ["0", "1"]
    small = SyntheticConfig(users=50)
    data = load_dataset("synthetic", seed=3, synthetic=small)
    assert np.array_equal(data.item, gather(open_source("synthetic", seed=3, synthetic=small)).item)


# --- new users ---------------------------------------------------------------------------------------------


def triples(source: Source) -> list[tuple[str, str, float]]:
    rows = gather(source)
    time = np.zeros(rows.rows) if rows.time is None else rows.time
    return list(zip(rows.user_ids[rows.user].tolist(), rows.item_ids[rows.item].tolist(), time.tolist(), strict=True))


@given(interactions, st.sampled_from([0.0, 0.3, 0.5]), st.integers(0, 3))
def test_new_users_are_a_keyed_share_and_no_row_is_lost(data: Interactions, fraction: float, seed: int) -> None:
    assume(fraction == 0 or 0 < round(fraction * data.users) < data.users)
    train, new = hold_out_users(data, fraction, seed)
    assert new.users == round(fraction * data.users)
    assert train.users + new.users == data.users
    new_labels = set(gather(new).user_ids.tolist())
    assert new_labels == set(data.user_ids[new.chosen].tolist())
    rows = triples(data)
    assert triples(new) == [row for row in rows if row[0] in new_labels]
    assert triples(train) == [row for row in rows if row[0] not in new_labels]
    again = hold_out_users(data, fraction, seed)[1]
    assert np.array_equal(new.chosen, again.chosen)


def test_who_is_new_depends_on_the_seed_and_not_on_blocks(tmp_path: Path) -> None:
    config = SyntheticConfig(users=400)
    pure = [hold_out_users(SyntheticSource(config, 0, block), 0.25, seed=5) for block in (7, 400)]
    assert triples(pure[0][1]) == triples(pure[1][1])
    other = hold_out_users(SyntheticSource(config, 0), 0.25, seed=6)[1]
    assert 0.15 < (other.chosen & pure[0][1].chosen).sum() / 100 < 0.35
    split = split_to(tmp_path / "split", pure[0][0], "strict", seed=0)
    assert same(split, make_split(gather(pure[1][0]), "strict", seed=0))
    assert split.users == 300


@pytest.mark.parametrize(("fraction", "message"), [(1.0, "below 1"), (-0.1, "at least 0"), (0.01, "nobody new")])
def test_a_share_that_cannot_be_is_refused(fraction: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        hold_out_users(SyntheticSource(SyntheticConfig(users=20), 0), fraction, seed=0)


def test_everybody_new_is_refused() -> None:
    with pytest.raises(InputError, match="nobody to train on"):
        hold_out_users(SyntheticSource(SyntheticConfig(users=3), 0), 0.9, seed=0)


@given(interactions, st.lists(st.integers(0, 14), unique=True, min_size=1))
def test_known_items_keep_the_given_numbers(data: Interactions, catalogue: list[int]) -> None:
    labels = np.array([f"i{number}" for number in catalogue])
    known = with_known_items(data, labels)
    expected = [row for row in triples(data) if row[1] in set(labels.tolist())]
    rows = known.interactions
    assert np.array_equal(rows.item_ids, labels)
    assert list(rows.user_ids[rows.user]) == [row[0] for row in expected]
    assert list(labels[rows.item]) == [row[1] for row in expected]
    assert known.dropped_rows == data.rows - len(expected)
    assert known.dropped_items == len(set(data.item_ids.tolist()) - set(labels.tolist()))
    assert known.dropped_users == data.users - len({row[0] for row in expected})
    if len(rows.user):
        assert rows.user.max() == rows.users - 1


def test_new_users_get_a_split_in_the_numbering_of_the_trained_items() -> None:
    train, new = hold_out_users(SyntheticSource(SyntheticConfig(users=120, items=900), 0), 0.25, seed=0)
    split = make_split(train, "strict", seed=0)
    known = with_known_items(new, split.item_ids)
    assert known.dropped_items > 0, "a small data set has items that only the new users met"
    theirs = make_split(known.interactions, "strict", seed=0, keep_items=True)
    assert theirs.items == split.items
    assert np.array_equal(theirs.item_ids, split.item_ids)
    assert not set(theirs.user_ids.tolist()) & set(split.user_ids.tolist())
    history = [row[1] for row in triples(new) if row[0] == theirs.user_ids[4] and row[1] in set(split.item_ids)]
    mine = theirs.train_items[theirs.train_offsets[4] : theirs.train_offsets[5]]
    assert split.item_ids[[*mine, theirs.validation[4], theirs.test[4]]].tolist() == history


# --- shuffled order ----------------------------------------------------------------------------------------


def test_shuffled_order_changes_nothing_else(tmp_path: Path) -> None:
    split = make_split(SyntheticSource(SyntheticConfig(users=500), 0), "paper", seed=0)
    shuffled = shuffle_order(split, 1)
    for name in vars(split):
        assert name == "train_items" or np.array_equal(getattr(split, name), getattr(shuffled, name)), name
    assert np.mean(split.train_items == shuffled.train_items) < 0.1
    for user in range(split.users):
        rows = slice(split.train_offsets[user], split.train_offsets[user + 1])
        assert sorted(split.train_items[rows]) == sorted(shuffled.train_items[rows])
    split.save(tmp_path / "split")
    assert same(shuffled, shuffle_order(Split.load(tmp_path / "split"), 1))
    assert not same(shuffled, shuffle_order(split, 2))


def test_every_order_of_a_history_is_as_likely() -> None:
    users = 6000
    data = Interactions(
        "three rows",
        np.repeat(np.arange(users), 5),
        np.tile(np.arange(5), users),
        None,
        np.tile(np.arange(5.0), users),
        np.arange(users).astype(str),
        np.arange(5).astype(str),
    )
    shuffled = shuffle_order(make_split(data, "strict", seed=0, min_interactions=5), 0)
    orders, counts = np.unique(shuffled.train_items.reshape(users, 3), axis=0, return_counts=True)
    assert len(orders) == 6
    assert np.abs(counts - users / 6).max() < 5 * np.sqrt(users / 6)
