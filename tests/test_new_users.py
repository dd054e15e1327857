"""New users are held out by key, and a shuffled order changes nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from blocks_of_rows import interactions, same
from hypothesis import assume, given
from hypothesis import strategies as st

from fedem_flwr.data import (
    Interactions,
    Source,
    SyntheticConfig,
    SyntheticSource,
    gather,
    hold_out_users,
    with_known_items,
)
from fedem_flwr.errors import InputError
from fedem_flwr.protocol import Split, make_split, shuffle_order, split_to


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


# --- shuffled order


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
