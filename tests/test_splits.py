"""Splits against a slow twin."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from split_rows import (
    FEWEST,
    PROTOCOLS,
    Row,
    interactions_of,
    labelled,
    rows_of_a_set,
    same,
    slow_split,
    small_split,
    split_or_none,
)

from fedem_flwr.errors import InputError
from fedem_flwr.protocol.splits import Protocol, make_split, user_rows


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


@given(rows_of_a_set, st.integers(0, 3))
def test_strict_without_times_draws_the_order(rows: list[Row], seed: int) -> None:
    split = split_or_none(interactions_of(rows, times=False), "strict", seed=seed)
    assume(split is not None)
    assert split is not None and not split.has_times
    assert labelled(split) == slow_split(rows, "strict", FEWEST, times=False, seed=seed)


def test_strict_without_times_holds_out_at_random() -> None:
    users = 2000
    rows = [(f"u{u}", f"i{i}", 1.0, 0.0) for u in range(users) for i in range(10)]
    split = make_split(interactions_of(rows, times=False), "strict", seed=1)
    for held_out in (split.validation, split.test):
        assert np.abs(np.bincount(held_out, minlength=10) - users / 10).max() < 60  # 4.5 standard deviations
    assert (split.validation != split.test).all()
    other = make_split(interactions_of(rows, times=False), "strict", seed=2)
    assert 0.05 < (split.test == other.test).mean() < 0.15


def test_ties_in_time_keep_the_order_of_the_file_under_paper() -> None:
    rows = [("u", item, 1.0, 7.0) for item in "dcabe"] + [("u", "z", 1.0, 3.0)]
    assert labelled(make_split(interactions_of(rows), "paper", seed=0, min_interactions=3))["u"] == list("zdcabe")


def test_a_rating_of_zero_is_dropped_and_no_ratings_keep_all() -> None:
    rows = [("u", item, float(item != "b"), float(t)) for t, item in enumerate("abcd")]
    assert labelled(make_split(interactions_of(rows), "paper", seed=0, min_interactions=3))["u"] == list("acd")
    unrated = interactions_of(rows, ratings=False)
    assert labelled(make_split(unrated, "paper", seed=0, min_interactions=3))["u"] == list("abcd")


@given(rows_of_a_set, st.sampled_from(PROTOCOLS), st.booleans())
def test_renaming_labels_changes_only_the_labels(rows: list[Row], protocol: Protocol, times: bool) -> None:
    if protocol == "strict":  # which draws among equal times by the labels: here there are none
        rows, times = [(*row[:3], float(time)) for time, row in enumerate(rows)], True
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
            "no user has >= 10 rows in 'made-up'; the most that one has is 9: lower it .--set data.min_interactions=9",
        ),
        ([("u", "a", 0.0, 0.0)] * 20, {}, "no user has >= 10 rows in 'made-up': all ratings are 0 or less"),
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


# --- CSR views


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


def test_strict_never_forbids_a_held_out_item() -> None:
    small = small_split()
    strict = replace(small, protocol="strict", train_items=np.zeros_like(small.train_items))
    assert strict.forbidden()[1].tolist() == [0] * strict.users
