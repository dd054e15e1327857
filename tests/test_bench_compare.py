"""Whether a program got slower: no false alarms beyond the stated rate, and a planted slowdown is found."""

from __future__ import annotations

import pytest
from benches import MACHINE, document_of, growth_of, measured, row_of
from hypothesis import given, settings
from hypothesis import strategies as st

from fedem_flwr.bench.compare import LEVEL, Compared, compared, refuse_other
from fedem_flwr.errors import InputError

NOISES = ("little", "much", "tails", "two ways")
seeds = st.integers(0, 10**6)


def slow_rows(found: Compared) -> set[str]:
    return {each.name for each in found.slower}


@pytest.mark.parametrize("noise", NOISES)
def test_equal_programs_are_called_slower_no_more_often_than_is_said(noise: str) -> None:
    """In 60 comparisons of all rows, with fixed draws."""
    alarms = sum(bool(compared(measured(seed, noise), measured(10**6 + seed, noise)).slower) for seed in range(60))
    assert alarms <= 2 * 60 * LEVEL


@settings(max_examples=25)
@given(seed=seeds, busy=st.sampled_from([1.0, 3.0]))
def test_twice_as_slow_is_found_and_nothing_else_said_to_be(seed: int, busy: float) -> None:
    """Also while all of the machine is three times as slow."""
    found = compared(measured(seed, "little"), measured(seed + 1, "little", slow=2.0, busy=busy))
    assert "row/0" in slow_rows(found)
    assert {each.by for each in found.slower if each.name == "row/0"} >= {"ratio", "cpu ratio"}


@settings(max_examples=25)
@given(seed=seeds)
def test_twice_as_fast_is_not_slower(seed: int) -> None:
    found = compared(measured(seed, "little", slow=2.0), measured(seed + 1, "little"))
    assert "row/0" not in slow_rows(found)
    assert any(each.name == "row/0" and each.word == "faster" for each in found.verdicts)


@settings(max_examples=25)
@given(seed=seeds, noise=st.sampled_from(NOISES))
def test_a_measurement_is_as_fast_as_itself(seed: int, noise: str) -> None:
    one = measured(seed, noise)
    assert {each.word for each in compared(one, one).verdicts} == {"same"}


def test_what_slows_both_sides_is_found_by_the_yardstick() -> None:
    """Shared code that got slower leaves the ratio as it was."""
    one, ten = [1.0 + 0.01 * at for at in range(7)], [10.0 + 0.1 * at for at in range(7)]
    twice, twenty = [2 * each for each in one], [2 * each for each in ten]
    old, new = (document_of([row_of("a", *sides, one)]) for sides in ((one, ten), (twice, twenty)))
    found = compared(old, new)
    assert [(each.by, each.word) for each in found.verdicts] == [
        ("ratio", "same"),
        ("cpu ratio", "same"),
        ("seconds", "slower"),
    ]
    elsewhere = new.model_copy(update={"machine": MACHINE.model_copy(update={"processor": "another"})})
    found = compared(old, elsewhere)
    assert not found.slower and "seconds" not in {each.by for each in found.verdicts}
    assert "another machine" in found.remarks[0]


@pytest.mark.parametrize("load", [None, 1.5])
def test_a_busy_machines_seconds_are_not_compared(load: float | None) -> None:
    """Others bend the seconds of ours and of the yardstick in ways of their own; on two cores."""
    old, new = measured(0, "little"), measured(1, "little")
    busy = new.model_copy(update={"machine": MACHINE.model_copy(update={"load": load})})
    for pair in ((old, busy), (busy, old)):
        found = compared(*pair)
        assert "seconds" not in {each.by for each in found.verdicts} and "the machine was busy" in found.remarks[0]
    assert "seconds" in {each.by for each in compared(old, new).verdicts}


def test_small_changes_are_the_same_however_sure() -> None:
    a, b = [1.0 + 0.0001 * at for at in range(7)], [1.03 + 0.0001 * at for at in range(7)]
    old, new = (document_of([row_of("a", ours, [1.0] * 7)]) for ours in (a, b))
    assert not compared(old, new).slower


def test_a_larger_exponent_is_slower() -> None:
    old = document_of([growth_of("g", (1, 2, 4), [1 + 0.01 * at for at in range(7)])])
    new = document_of([growth_of("g", (1, 2, 4), [2 + 0.01 * at for at in range(7)])])
    assert slow_rows(compared(old, new)) == {"g"} and not compared(new, old).slower


def test_more_bytes_are_more() -> None:
    old, new = (document_of([row_of("wire", [1.0] * 7, [1.0] * 7, size=size)]) for size in (1000, 1001))
    assert [(each.by, each.before, each.now) for each in compared(old, new).slower] == [("bytes", 1000, 1001)]
    assert not compared(new, old).slower


def test_too_few_turns_are_not_judged() -> None:
    found = compared(measured(0, "little", turns=3), measured(1, "little", turns=3, slow=5.0))
    assert {each.word for each in found.verdicts} == {"not judged"}
    assert "3 and 3 turns are too few for 25 tests" in found.verdicts[0].why


def test_what_cannot_be_compared_is_refused_or_said() -> None:
    old = measured(0, "little")
    with pytest.raises(InputError, match=r"had 2 threads a side, and this one 1: measure with --threads 2"):
        refuse_other(old, True, 1)
    with pytest.raises(InputError, match=r"was made with --quick, this one is without"):
        refuse_other(old, False, 2)
    with pytest.raises(InputError, match="no benchmark in common"):
        compared(old, document_of([row_of("other", [1.0], [1.0])]))
    other_size = document_of([row_of("row/0", [1.0] * 7, [1.0] * 7, setting="large"), *old.rows[1:3]])
    remarks = "\n".join(compared(old, other_size).remarks)
    assert "row/0: other sizes (small; now large), not compared" in remarks
    assert "only in the older measurement: row/3, row/4" in remarks
