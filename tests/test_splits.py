"""Splits against a slow twin, the evaluation negatives, and the counts of the real data sets."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedem_flwr.data import Interactions, load_dataset
from fedem_flwr.data.interactions import first_appearance
from fedem_flwr.errors import InputError
from fedem_flwr.protocol.splits import Protocol, Split, draw_negatives, make_split, user_rows

Row = tuple[str, str, float, float]  # user, item, rating, time

PROTOCOLS: tuple[Protocol, ...] = ("paper", "strict")
FEWEST = 3  # fewest rows a user that still leave one to train on

rows_of_a_set = st.lists(
    st.tuples(
        st.sampled_from([f"u{i}" for i in range(4)]),
        st.sampled_from([f"i{i}" for i in range(9)]),
        st.sampled_from([0.0, 1.0, 4.5]),
        st.integers(0, 4).map(float),
    ),
    min_size=8,
    max_size=60,
)


def interactions_of(rows: list[Row], *, times: bool = True, ratings: bool = True) -> Interactions:
    user, user_ids = first_appearance(np.array([row[0] for row in rows]))
    item, item_ids = first_appearance(np.array([row[1] for row in rows]))
    return Interactions(
        name="made-up",
        user=user,
        item=item,
        rating=np.array([row[2] for row in rows]) if ratings else None,
        time=np.array([row[3] for row in rows]) if times else None,
        user_ids=user_ids,
        item_ids=item_ids,
    )


def slow_split(rows: list[Row], protocol: Protocol, minimum: int, times: bool) -> dict[str, list[str]]:
    """Items of each kept user, oldest first, so that [-2] is validation and [-1] is test."""
    kept = [(time, position, user, item) for position, (user, item, rating, time) in enumerate(rows) if rating > 0]
    if protocol == "strict":
        first: dict[tuple[str, str], tuple[float, int, str, str]] = {}
        for row in sorted(kept) if times else kept:
            first.setdefault(row[2:], row)
        kept = sorted(first.values(), key=lambda row: row[1])
    counts = Counter(row[2] for row in kept)
    kept = [row for row in kept if counts[row[2]] >= minimum]
    codes: dict[str, int] = {}
    for row in kept:
        codes.setdefault(row[3], len(codes))
    if not times:
        kept = [(codes[row[3]], *row[1:]) for row in kept]
    histories: dict[str, list[str]] = {row[2]: [] for row in kept}
    for row in sorted(kept, key=lambda row: row[:2]):
        histories[row[2]].append(row[3])
    return histories


def labelled(split: Split) -> dict[str, list[str]]:
    """The same form from a split."""
    histories = {}
    for user, label in enumerate(split.user_ids):
        start, stop = split.train_offsets[user], split.train_offsets[user + 1]
        codes = [*split.train_items[start:stop], split.validation[user], split.test[user]]
        histories[str(label)] = [str(split.item_ids[code]) for code in codes]
    return histories


def same(a: Split, b: Split, *, labels: bool = True) -> bool:
    names = [name for name in vars(a) if labels or name not in ("user_ids", "item_ids")]
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


def split_or_none(*args: Any, **keywords: Any) -> Split | None:
    try:
        return make_split(*args, min_interactions=FEWEST, **keywords)
    except InputError:
        return None


@pytest.fixture
def small() -> Split:
    rng = np.random.default_rng(3)
    rows = [(f"u{u}", f"i{i}", 1.0, float(t)) for t, (u, i) in enumerate(rng.integers(0, (12, 140), (400, 2)))]
    return make_split(interactions_of(rows), "paper", seed=5)


# --- the parts ---------------------------------------------------------------------------------------------


@given(rows_of_a_set, st.sampled_from(PROTOCOLS), st.integers(3, 5))
def test_equals_the_slow_twin(rows: list[Row], protocol: Protocol, minimum: int) -> None:
    expected = slow_split(rows, protocol, minimum, times=True)
    items = {item for history in expected.values() for item in history}
    if len(items) < 2:
        with pytest.raises(InputError):
            make_split(interactions_of(rows), protocol, seed=0, min_interactions=minimum)
        return
    split = make_split(interactions_of(rows), protocol, seed=0, min_interactions=minimum)
    assert labelled(split) == expected
    assert list(labelled(split)) == list(expected), "users are numbered by first appearance"
    assert split.interactions == sum(map(len, expected.values()))
    assert (split.users, split.items, split.has_times) == (len(expected), len(items), True)


@given(rows_of_a_set)
def test_paper_without_times_takes_the_item_code_for_time(rows: list[Row]) -> None:
    split = split_or_none(interactions_of(rows, times=False), "paper", seed=0)
    assume(split is not None)
    assert split is not None and not split.has_times
    assert labelled(split) == slow_split(rows, "paper", FEWEST, times=False)


@given(rows_of_a_set)
def test_strict_without_times_keeps_each_pair_once(rows: list[Row]) -> None:
    split = split_or_none(interactions_of(rows, times=False), "strict", seed=0)
    assume(split is not None)
    assert split is not None and not split.has_times
    expected = slow_split(rows, "strict", FEWEST, times=False)
    assert {user: sorted(items) for user, items in labelled(split).items()} == {
        user: sorted(items) for user, items in expected.items()
    }


def test_strict_without_times_holds_out_at_random() -> None:
    users = 2000
    rows = [(f"u{u}", f"i{i}", 1.0, 0.0) for u in range(users) for i in range(10)]
    split = make_split(interactions_of(rows, times=False), "strict", seed=1)
    for held_out in (split.validation, split.test):
        assert np.abs(np.bincount(held_out, minlength=10) - users / 10).max() < 60  # 4.5 standard deviations
    assert (split.validation != split.test).all()
    other = make_split(interactions_of(rows, times=False), "strict", seed=2)
    assert 0.05 < (split.test == other.test).mean() < 0.15


def test_ties_in_time_keep_the_order_of_the_file() -> None:
    rows = [("u", item, 1.0, 7.0) for item in "dcabe"] + [("u", "z", 1.0, 3.0)]
    assert labelled(make_split(interactions_of(rows), "strict", seed=0, min_interactions=3))["u"] == list("zdcabe")


def test_a_rating_of_zero_is_dropped_and_no_ratings_keep_all() -> None:
    rows = [("u", item, float(item != "b"), float(t)) for t, item in enumerate("abcd")]
    assert labelled(make_split(interactions_of(rows), "paper", seed=0, min_interactions=3))["u"] == list("acd")
    unrated = interactions_of(rows, ratings=False)
    assert labelled(make_split(unrated, "paper", seed=0, min_interactions=3))["u"] == list("abcd")


@given(rows_of_a_set, st.sampled_from(PROTOCOLS), st.booleans())
def test_renaming_labels_changes_only_the_labels(rows: list[Row], protocol: Protocol, times: bool) -> None:
    split = split_or_none(interactions_of(rows, times=times), protocol, seed=4)
    assume(split is not None)
    assert split is not None
    renamed: list[Row] = [(f"user {u[::-1]}", f"{i}{i}", r, t) for u, i, r, t in rows]
    assert same(
        split,
        make_split(interactions_of(renamed, times=times), protocol, seed=4, min_interactions=FEWEST),
        labels=False,
    )


@given(rows_of_a_set, st.sampled_from(PROTOCOLS), st.permutations([f"u{i}" for i in range(4)]))
def test_the_order_of_the_users_blocks_does_not_move_a_timed_item(
    rows: list[Row], protocol: Protocol, order: list[str]
) -> None:
    split = split_or_none(interactions_of(rows), protocol, seed=0)
    assume(split is not None)
    assert split is not None
    blocks = sorted(rows, key=lambda row: order.index(row[0]))  # stable: a user's rows keep their order
    shuffled = make_split(interactions_of(blocks), protocol, seed=0, min_interactions=FEWEST)
    assert labelled(shuffled) == labelled(split)


@pytest.mark.parametrize(
    ("rows", "keywords", "message"),
    [
        (
            [("u", "a", 1.0, 0.0)] * 9,
            {},
            "no user has >= 10 rows in 'made-up'; lower it",
        ),
        ([("u", "a", 0.0, 0.0)] * 20, {}, "no user has >= 10 rows"),
        ([("u", "a", 1.0, 0.0)] * 20, {}, "fewer than 2 items"),
        ([("u", "a", 1.0, 0.0)] * 20, {"min_interactions": 2}, "min_interactions is 2"),
    ],
)
def test_errors_say_how_to_mend(rows: list[Row], keywords: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_split(interactions_of(rows), "paper", seed=0, **keywords)


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(InputError, match="did you mean 'strict'"):
        make_split(interactions_of([("u", "a", 1.0, 0.0)]), "strickt", seed=0)  # type: ignore[arg-type]


# --- CSR views ---------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.data())
def test_user_rows_equals_a_loop(counts: list[int], data: st.DataObject) -> None:
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    users = np.array(data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=6)), np.int64)
    row, flat = user_rows(offsets, users)
    expected = [(r, f) for r, u in enumerate(users) for f in range(offsets[u], offsets[u + 1])]
    assert list(zip(row.tolist(), flat.tolist(), strict=True)) == expected


@given(rows_of_a_set, st.sampled_from(PROTOCOLS))
def test_forbidden_and_train_csr_equal_sets(rows: list[Row], protocol: Protocol) -> None:
    split = split_or_none(interactions_of(rows), protocol, seed=0)
    assume(split is not None)
    assert split is not None
    offsets, items = split.forbidden()
    matrix = split.train_csr()
    assert matrix.shape == (split.users, split.items) and set(matrix.data) <= {1.0}
    for user in range(split.users):
        train = set(split.train_items[split.train_offsets[user] : split.train_offsets[user + 1]].tolist())
        assert matrix[user].indices.tolist() == sorted(train)
        held_out = {int(split.validation[user]), int(split.test[user])} if protocol == "paper" else set()
        assert items[offsets[user] : offsets[user + 1]].tolist() == sorted(train | held_out)


def test_strict_never_forbids_a_held_out_item(small: Split) -> None:
    strict = replace(small, protocol="strict", train_items=np.zeros_like(small.train_items))
    assert strict.forbidden()[1].tolist() == [0] * strict.users


# --- evaluation negatives ----------------------------------------------------------------------------------


def histories(users: int, items: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """CSR of random histories, sorted and unique; their lengths go from none to nearly all items."""
    rng = np.random.default_rng(seed)
    taken = rng.random((users, items)) < rng.choice([0.0, 0.02, 0.3, 0.9, 0.999], (users, 1))
    offsets = np.concatenate([[0], taken.sum(1).cumsum()]).astype(np.int64)
    return offsets, np.nonzero(taken)[1].astype(np.int64)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 30),
    st.sampled_from([2, 98, 99, 100, 150, 1000, 2500]),
    st.integers(0, 5),
    st.integers(1, 40),
)
def test_negatives_are_new_distinct_and_the_same_in_any_chunks(users: int, items: int, seed: int, chunk: int) -> None:
    offsets, taken = histories(users, items, seed)
    negatives = draw_negatives(offsets, taken, items, seed=seed)
    for user in range(users):
        mine = set(taken[offsets[user] : offsets[user + 1]].tolist())
        drawn = negatives[user][negatives[user] >= 0].tolist()
        assert len(drawn) == len(set(drawn)) == min(99, items - len(mine))
        assert not mine & set(drawn) and all(item < items for item in drawn)
        assert (negatives[user][len(drawn) :] == -1).all(), "padding stands at the end"
    assert np.array_equal(draw_negatives(offsets, taken, items, seed=seed, chunk=chunk), negatives)


@pytest.mark.parametrize("items", [300, 1500])  # one for each way to draw
def test_negatives_are_uniform(items: int) -> None:
    users, mine = 4000, np.arange(0, items, 10)
    offsets = np.arange(users + 1) * len(mine)
    negatives = draw_negatives(offsets, np.tile(mine, users), items, seed=0)
    others = np.setdiff1d(np.arange(items), mine)
    share = 99 / len(others)
    for column_slice, expected in (
        (slice(None), share),
        (slice(0, 1), 1 / len(others)),
    ):  # the set; the first drawn
        counts = np.bincount(negatives[:, column_slice].ravel(), minlength=items)[others]
        deviation = (counts - users * expected) / np.sqrt(users * expected * (1 - expected))
        assert np.abs(deviation).max() < 5
        assert 0.8 < deviation.std() < 1.2


def test_negatives_of_a_user_depend_on_seed_and_user_alone() -> None:
    offsets, taken = histories(20, 1500)
    negatives = draw_negatives(offsets, taken, 1500, seed=0)
    fewer = draw_negatives(offsets[:8], taken[: offsets[7]], 1500, seed=0)
    assert np.array_equal(negatives[:7], fewer)
    assert not np.array_equal(negatives, draw_negatives(offsets, taken, 1500, seed=1))


def test_too_many_repeated_draws_fall_back_to_a_shuffle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedem_flwr.protocol.negatives._CANDIDATES", 100)  # more than one repeat is now too many
    negatives = draw_negatives(np.zeros(51, np.int64), np.empty(0, np.int64), 1000, seed=0)
    assert negatives.min() >= 0
    assert all(len(set(row)) == 99 for row in negatives.tolist())


def test_a_split_draws_outside_every_part(small: Split) -> None:
    for label, history in labelled(small).items():
        row = small.negatives[list(small.user_ids).index(label)]
        assert not {str(small.item_ids[code]) for code in row if code >= 0} & set(history)


# --- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mmap", [True, False])
def test_saved_and_loaded_is_the_same(small: Split, tmp_path: Path, mmap: bool) -> None:
    folder = tmp_path / "deep" / "split"
    small.save(folder)
    small.save(folder)  # over an earlier one
    loaded = Split.load(folder, mmap=mmap)
    assert same(small, loaded)
    assert isinstance(loaded.negatives, np.memmap) == mmap
    assert [path.name for path in folder.parent.iterdir()] == ["split"], "nothing temporary is left"
    assert np.array_equal(loaded.forbidden()[1], small.forbidden()[1])


def test_a_save_that_fails_leaves_the_earlier_split(
    small: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.save(tmp_path / "split")

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(np, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        replace(small, seed=99).save(tmp_path / "split")
    assert same(small, Split.load(tmp_path / "split"))
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["split.json", "train_items.npy", "negatives.npy"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "other"])
def test_a_damaged_split_is_an_input_error(small: Split, tmp_path: Path, name: str, damage: str) -> None:
    small.save(tmp_path / "split")
    file = tmp_path / "split" / name
    if damage == "missing":
        file.unlink()
    elif damage == "other":
        file.write_text("{}") if name.endswith("json") else np.save(file, np.zeros(3, np.int64))
    else:
        file.write_bytes(file.read_bytes()[: 0 if damage == "empty" else file.stat().st_size // 2])
    with pytest.raises(InputError, match="delete it and make it again"):
        Split.load(tmp_path / "split")


# --- real data ---------------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize(
    ("dataset", "protocol", "minimum", "shape"),
    [
        ("filmtrust", "paper", 10, (1002, 2042, 33372)),
        ("ml-100k", "paper", 10, (943, 1682, 100000)),
        ("ml-1m", "paper", 10, (6040, 3706, 1000209)),
        ("lastfm-2k", "paper", 5, (1600, 12454, 185650)),
        ("lastfm-2k", "paper", 10, (1269, 12322, 183415)),
        ("filmtrust", "strict", 10, (1002, 2042, 33369)),
        ("lastfm-2k", "strict", 10, (881, 12037, 67284)),
    ],
)
def test_counts_of_the_real_sets(
    data_dir: Path, dataset: str, protocol: Protocol, minimum: int, shape: tuple[int, int, int]
) -> None:
    interactions = load_dataset(dataset, data_dir)
    split = make_split(interactions, protocol, seed=0, min_interactions=minimum)
    assert (split.users, split.items, split.interactions) == shape
    assert split.interactions == len(split.train_items) + 2 * split.users
    assert split.negatives.min() >= 0
    assert split.has_times == (dataset != "filmtrust")


@pytest.mark.data
def test_the_test_item_stands_in_training_where_paper_keeps_duplicates(data_dir: Path) -> None:
    split = make_split(load_dataset("lastfm-2k", data_dir), "paper", seed=0, min_interactions=5)
    train = split.train_csr()
    # Depends on the order of rows with equal times: other sorts of the same file give up to 917 users.
    assert int(train[np.arange(split.users), split.test].sum()) == 805
