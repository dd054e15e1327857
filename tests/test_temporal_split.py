"""Splits by instants, against a slow twin and against what must never be in them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from split_rows import FEWEST, Row, interactions_of, slow_draw

from fedem_flwr.errors import InputError
from fedem_flwr.evaluation.control_cache import split_hash
from fedem_flwr.protocol.histories import NEW_ITEM, NOT_ASKED
from fedem_flwr.protocol.instants import instants_of
from fedem_flwr.protocol.split import Split
from fedem_flwr.protocol.temporal import SECOND, Stages, Target, stages_of

FIRST, SECOND_INSTANT = 3.0, 5.0


def some_rows(seed: int) -> list[Row]:
    """Rows of a few users and items, some twice, at few different times."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(20, 90))
    columns = rng.integers((6, 12, 4, 9), size=(count, 4)).tolist()
    return [(f"u{user}", f"i{item}", float(rating), float(time)) for user, item, rating, time in columns]


rows_in_time = st.integers(0, 10_000).map(some_rows)
some = settings(max_examples=30)
targets = st.sampled_from(["last", "first"])


def staged(rows: list[Row], target: Target = "last", seed: int = 0) -> Stages | None:
    try:
        return stages_of(
            interactions_of(rows),
            seed=seed,
            min_interactions=FEWEST,
            instants=(FIRST, SECOND_INSTANT),
            target=target,
        )
    except InputError:
        return None


def slow_orders(rows: list[Row], seed: int = 0) -> dict[str, list[tuple[str, float]]]:
    """Items and times of each kept user, oldest first, each item once; equal times in the drawn order."""
    first: dict[tuple[str, str], float] = {}
    for user, item, rating, time in rows:
        if rating > 0:
            first[user, item] = min(time, first.get((user, item), time))
    counts = Counter(user for user, _ in first)
    ordered = sorted(first.items(), key=lambda each: (each[1], slow_draw(seed, *each[0])))
    found: dict[str, list[tuple[str, float]]] = {}
    for (user, item), time in ordered:
        if counts[user] >= FEWEST:
            found.setdefault(user, []).append((item, time))
    return found


def parts_of(split: Split) -> dict[str, tuple[list[str], list[str], str | None]]:
    """Of each user: training items, history and target; "new" stands for an item that the split does not know."""
    assert split.histories is not None
    known, asked = split.histories, split.validation if split.histories.part == "validation" else split.test
    names = [str(item) for item in split.item_ids]
    found = {}
    for user, label in enumerate(split.user_ids):
        trained = split.train_items[split.train_offsets[user] : split.train_offsets[user + 1]]
        history = known.items[known.offsets[user] : known.offsets[user + 1]]
        code = int(asked[user])
        target = None if code == NOT_ASKED else "new" if code == NEW_ITEM else names[code]
        found[str(label)] = ([names[c] for c in trained], [names[c] for c in history], target)
    return found


def slow_stage(
    orders: dict[str, list[tuple[str, float]]], instant: float, until: float, target: Target
) -> dict[str, tuple[list[str], list[str], str | None]]:
    known = {item for order in orders.values() for item, time in order if time < instant}
    found: dict[str, tuple[list[str], list[str], str | None]] = {}
    for user, order in orders.items():
        seen = [(item, time) for item, time in order if time < until]
        if not seen:
            continue
        trained = [item for item, time in seen if time < instant]
        later = [place for place, (_, time) in enumerate(seen) if time >= instant]
        if not later:
            found[user] = (trained, [], None)
            continue
        at = later[-1] if target == "last" else later[0]
        asked = seen[at][0]
        history = [item for item, _ in seen[:at] if item in known]
        found[user] = (trained, history, asked if asked in known else "new")
    return found


@some
@given(rows_in_time, targets, st.integers(0, 2))
def test_equals_the_slow_twin(rows: list[Row], target: Target, seed: int) -> None:
    stages = staged(rows, target, seed)
    assume(stages is not None)
    assert stages is not None
    orders = slow_orders(rows, seed)
    assert parts_of(stages.choose) == slow_stage(orders, FIRST, SECOND_INSTANT, target)
    assert parts_of(stages.test) == slow_stage(orders, SECOND_INSTANT, float("inf"), target)


@some
@given(rows_in_time, targets)
def test_nothing_after_the_instant_is_trained_and_nothing_of_the_test_is_chosen_with(
    rows: list[Row], target: Target
) -> None:
    stages = staged(rows, target)
    assume(stages is not None)
    assert stages is not None
    for split, instant, until in ((stages.choose, FIRST, SECOND_INSTANT), (stages.test, SECOND_INSTANT, np.inf)):
        before = {(user, item) for user, item, rating, time in rows if rating > 0 and time < instant}
        there = {(user, item) for user, item, rating, time in rows if rating > 0 and time < until}
        assert {str(item) for item in split.item_ids} <= {item for _, item in before}, "known items"
        for user, (trained, history, asked) in parts_of(split).items():
            assert {(user, item) for item in trained} <= before
            assert {(user, item) for item in history} <= there
            assert asked is None or asked == "new" or (user, asked) in there
            assert asked not in history and len(set(history)) == len(history)
            if asked is not None:
                assert history[: len(trained)] == trained, "what was trained is on the device, too"


@some
@given(rows_in_time, targets)
def test_negatives_are_known_items_that_are_neither_history_nor_target(rows: list[Row], target: Target) -> None:
    stages = staged(rows, target)
    assume(stages is not None)
    assert stages is not None
    for split in (stages.choose, stages.test):
        names = [str(item) for item in split.item_ids]
        for negatives, (_, history, asked) in zip(split.negatives, parts_of(split).values(), strict=True):
            drawn = {names[code] for code in negatives if code >= 0}
            free = set(names) - set(history) - {asked}
            assert drawn == (set() if asked is None else free), "fewer than 99 items: all of them"


@some
@given(rows_in_time, rows_in_time, targets)
def test_what_comes_after_a_stage_changes_nothing_in_it(rows: list[Row], later: list[Row], target: Target) -> None:
    """Two futures, the same users: the split that chooses is the same, to the byte, but for the data's account."""
    past = [row for row in rows if row[3] < SECOND_INSTANT]
    kept = [(f"u{user}", f"i{item}", 1.0, 0.0) for user in range(6) for item in range(FEWEST)]  # nobody is filtered
    futures = [[(u, i, r, t + SECOND_INSTANT) for u, i, r, t in each] for each in ([("u0", "i3", 1.0, 0.0)], later)]
    one, other = (staged([*kept, *past, *future], target) for future in futures)
    assume(one is not None and other is not None)
    assert one is not None and other is not None
    assert split_hash(one.choose) == split_hash(other.choose)


def test_markers_after_the_instant_are_nowhere() -> None:
    """Items and users that begin after an instant are in none of its arrays: labels, training, negatives, counts."""
    rng = np.random.default_rng(0)
    rows = [(f"u{u}", f"i{i}", 1.0, float(t)) for u in range(30) for t, i in enumerate(rng.permutation(40)[:8])]
    between = [(f"u{u}", f"between{u}", 1.0, 9.0) for u in range(30)]
    after = [(f"late{u}", f"{kind}{i}", 1.0, 20.0) for u in range(10) for i in range(4) for kind in ("i", "after")]
    found = stages_of(interactions_of([*rows, *between, *after]), seed=0, min_interactions=3, instants=(6.0, 12.0))
    for split, unknown in ((found.choose, ("between", "after")), (found.test, ("after",))):
        assert not [item for item in split.item_ids if str(item).startswith(unknown)]
        assert split.negatives.max() < split.items and split.histories is not None
        assert split.histories.recent.sum() <= len(split.train_items)
        assert split.histories.items.max() < split.items and split.train_items.max() < split.items
    assert not [user for user in found.choose.user_ids if str(user).startswith("late")]
    late = [at for at, user in enumerate(found.test.user_ids) if str(user).startswith("late")]
    assert len(late) == 10 and not found.test.trained_on(np.array(late)).any(), "newcomers: asked, never trained on"


def test_a_share_of_users_is_the_earliest_time_that_so_many_are_behind() -> None:
    last = np.array([4.0, 1.0, 3.0, 2.0, 8.0, 7.0, 6.0, 5.0])
    assert instants_of((0.5, 0.75), last) == (5.0, 7.0)
    assert instants_of((2.5, "6"), last) == (2.5, 6.0)
    days = 1.2e9 + 86_400.0 * last
    assert instants_of(("2008-01-12", 0.9), days)[0] == 1.2000960e9


@pytest.mark.parametrize(
    ("wanted", "said"),
    [((0.75, 0.5), "is not before"), (("soon", 0.5), "is no date"), (("2008-01-01", 0.5), "is a date, and the data's")],
)
def test_instants_that_will_not_do_are_refused(wanted: tuple[float | str, float | str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        instants_of(wanted, np.arange(8.0))


def test_data_without_times_is_refused_in_a_line() -> None:
    rows = [("u", f"i{i}", 1.0, 0.0) for i in range(12)]
    with pytest.raises(InputError, match=r"cuts by time, and 'made-up' has no times: use --protocol strict") as caught:
        stages_of(interactions_of(rows, times=False), seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("instants", "said"),
    [((50.0, 60.0), "nobody .* from the instant"), ((-1.0, 2.0), "no row .* is before the instant")],
)
def test_instants_outside_the_data_are_refused(instants: tuple[float, float], said: str) -> None:
    rows = [(f"u{u}", f"i{i}", 1.0, float(i)) for u in range(3) for i in range(12)]
    with pytest.raises(InputError, match=said):
        stages_of(interactions_of(rows), seed=0, instants=instants)


def test_both_splits_come_back_from_their_folder_and_in_parts(tmp_path) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(1)
    rows = [(f"u{u}", f"i{i}", 1.0, float(t)) for u in range(9) for t, i in enumerate(rng.permutation(20)[:10])]
    found = stages_of(interactions_of(rows), seed=2, min_interactions=3, instants=(4.0, 7.0))
    first = found.save(tmp_path / "split")
    second = Split.load(tmp_path / "split" / SECOND)
    for made, loaded in ((found.choose, first), (found.test, second)):
        assert split_hash(made) == split_hash(loaded)
        loaded.check(tmp_path)
    part = second.part(3, 7)
    part.save(tmp_path / "part")
    again = Split.load(tmp_path / "part")
    assert parts_of(again) == dict(list(parts_of(found.test).items())[3:7])
    assert again.asked(again.codes) is not None
    damaged = replace(found.test, test=found.test.test + 100)
    with pytest.raises(InputError, match="damaged split"):
        damaged.check(tmp_path)
