"""Equal times: under strict data and seed decide, never the order of the file; what is left to chance is said."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from split_rows import FEWEST, Row, interactions_of, labelled, rows_of_a_set, slow_draw, split_or_none

from fedem_flwr.protocol.account import Account
from fedem_flwr.protocol.order import chronological
from fedem_flwr.protocol.split import Split
from fedem_flwr.protocol.splits import account_of, make_split, split_to
from fedem_flwr.randomness import keyed_bits, label_bits
from fedem_flwr.report.account import rows_text, short_text, ties_text

labels = st.lists(st.text(st.characters(exclude_characters="\0"), max_size=5), min_size=1, max_size=6)


@given(rows_of_a_set, st.booleans(), st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_order_of_rows_never_matters_under_strict(
    rows: list[Row], times: bool, seed: int, order: random.Random
) -> None:
    split = split_or_none(interactions_of(rows, times=times), "strict", seed=seed)
    assume(split is not None)
    assert split is not None
    shuffled = order.sample(rows, len(rows))
    other = make_split(interactions_of(shuffled, times=times), "strict", seed=seed, min_interactions=FEWEST)
    assert labelled(split) == labelled(other)
    assert split.account == other.account


@given(labels, st.integers(0, 9))
def test_a_label_gives_the_same_draw_whatever_stands_beside_it(texts: list[str], seed: int) -> None:
    together = label_bits(np.array([*texts, "x" * 40]))
    alone = [int(label_bits(np.array([text]))[0]) for text in texts]
    assert together[:-1].tolist() == alone
    assert len(set(alone)) == len(set(texts))
    assert int(keyed_bits(seed, "split/held-out", together[0], together[-1])) == slow_draw(seed, texts[0], "x" * 40)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([-1.5, 0, 2, 2**60, 1e300]), st.integers(0, 2)), max_size=20)
)
def test_rows_are_ordered_by_user_time_and_draw(rows: list[tuple[int, float, int]]) -> None:
    user, time, drawn = (np.array([row[i] for row in rows], kind) for i, kind in enumerate((np.int64, float, np.int64)))
    order = chronological(user, 4, time, lambda positions: drawn[positions])
    assert order.tolist() == sorted(range(len(rows)), key=lambda at: (*rows[at], at))
    assert chronological(user, 4, time, None).tolist() == sorted(range(len(rows)), key=lambda at: (*rows[at][:2], at))
    by_draw = chronological(user, 4, None, lambda positions: drawn[positions])
    assert by_draw.tolist() == sorted(range(len(rows)), key=lambda at: (rows[at][0], rows[at][2], at))


def test_a_third_of_three_tied_items_is_held_out_each() -> None:
    rows = [(f"u{u}", f"i{i}", 1.0, float(i > 1)) for u in range(900) for i in range(5)]
    test = make_split(interactions_of(rows), "strict", seed=0, min_interactions=5)
    shares = np.bincount(np.char.replace(test.item_ids[test.test], "i", "").astype(int), minlength=5)
    assert shares[:2].tolist() == [0, 0] and abs(shares[2:] - 300).max() < 65  # 4.5 standard deviations


def test_every_row_is_accounted_for(tmp_path: Path) -> None:
    rows: list[Row] = [(f"u{u}", f"i{i}", 1.0, float(min(i, 7 + u))) for u in range(4) for i in range(10)]
    rows += [("u0", "i0", 1.0, 50.0), ("u1", "i3", 0.0, 50.0), *[("v", f"i{i}", 1.0, 0.0) for i in range(4)]]
    data = interactions_of(rows)
    split = split_to(tmp_path / "split", data, "strict", seed=0, min_interactions=5)
    account = split.account
    assert account is not None and account == Split.load(tmp_path / "split").account
    assert account.rows == len(rows) == account.below_rating + account.repeats + account.of_few + account.kept
    assert (account.below_rating, account.repeats, account.of_few, account.few) == (1, 1, 4, 1)
    assert (account.first_time, account.last_time) == (0.0, 9.0)
    assert (account.tied_test, account.tied_validation) == (2, 2), "of u0 (three items at 7) and u1 (two at 8)"
    assert (account.short, account.chance) == (4, 1.0), "nobody has an item that was not met"
    assert account_of(data, "strict", seed=0, min_interactions=5) == (
        {"users": 4, "items": 10, "interactions": 40},
        account,
    )
    assert rows_text(account) == (
        "46 read, 40 kept (87 %); dropped: 1 (2.2 %) with a rating of 0 or less, 1 (2.2 %) as repeats, "
        "4 (8.7 %) of 1 users with fewer than 5"
    )
    assert ties_text(account, "strict", 4).startswith(
        "the test item of 2 (50 %) and the validation item of 2 (50 %) of 4"
    )
    assert "order of the file" in ties_text(account, "paper", 4)
    assert "HR@10 = 1.000, not 0.100" in short_text(account, 4)
    assert Account.of_json(account.as_json()) == account
    assert split.part(0, 2).account is None, "a node's part says nothing of the others' rows"


def test_a_rating_counts_from_where_it_is_said_to() -> None:
    rows = [("u", item, rating, float(t)) for t, (item, rating) in enumerate(zip("abcdef", range(-2, 4), strict=True))]
    for least, kept in ((None, "def"), (2.0, ""), (-1.0, "bcdef"), (1.0, "def")):
        split = split_or_none(interactions_of(rows), "strict", seed=0, min_rating=least)
        assert (labelled(split)["u"] if split is not None else []) == list(kept), least


def test_users_with_few_unseen_items_are_counted() -> None:
    rows = [(f"u{u}", f"i{i}", 1.0, float(i)) for u in range(2) for i in range(10 if u else 115)]
    for protocol in ("strict", "paper"):
        split = make_split(interactions_of(rows), protocol, seed=0)  # type: ignore[arg-type]
        assert split.account is not None and split.account.short == 1
        assert account_of(interactions_of(rows), protocol, seed=0)[1] in (None, split.account)  # type: ignore[arg-type]
        assert split.account.chance == (1.0 + 0.1) / 2, "one user has no unseen item, the other 105"
