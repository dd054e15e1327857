"""What a node remembers of its answers: which sets, how many, of whom, and one process at a time."""

from __future__ import annotations

import fcntl
import threading
from pathlib import Path

import numpy as np
import pytest

from fedem_flwr.nodes import answered
from fedem_flwr.nodes.answered import ANSWERED_FILE, Answered

USERS = 20
HALF, TENTH, OTHERS = np.arange(10), np.arange(2), np.arange(10, 18)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / ANSWERED_FILE


def memory(path: Path, first: int = 0) -> Answered:
    """Of a node that was just started."""
    return Answered(path, first, USERS, 2)


def test_sets_are_far_apart_or_the_same(path: Path) -> None:
    assert memory(path).admits(0, HALF) and memory(path).admits(0, HALF[::-1])
    assert not memory(path).admits(0, HALF[1:]), "the sums differ by one user"
    assert memory(path).admits(0, HALF[2:])
    assert not memory(path).admits(0, HALF[1:]), "by one from both"


def test_kinds_are_not_compared_and_none_is_forgotten_for_another(path: Path) -> None:
    assert memory(path).admits(0, HALF) and memory(path).admits(1, HALF[1:]) and memory(path).admits(2, TENTH)
    assert not memory(path).admits(0, HALF[1:]) and not memory(path).admits(1, HALF)


@pytest.mark.parametrize(("limit", "value"), [("MOST", 2), ("_MOST_BYTES", 2 * 3)])
def test_the_oldest_is_forgotten_where_there_are_too_many(
    limit: str, value: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty users take three bytes."""
    monkeypatch.setattr(answered, limit, value)
    for members in (HALF, TENTH, OTHERS):
        assert memory(path).admits(0, members)
    assert not memory(path).admits(0, OTHERS[1:]) and not memory(path).admits(0, TENTH[1:])
    assert memory(path).admits(0, HALF[1:])


def test_what_was_answered_of_another_shard_is_of_other_users(path: Path) -> None:
    assert memory(path).admits(0, HALF) and memory(path, first=USERS).admits(0, HALF[1:])
    assert memory(path).admits(0, HALF), "which is forgotten with that"


def test_one_process_answers_at_a_time(path: Path) -> None:
    """Else both would find that nothing like theirs has gone up, and the later would forget the earlier one's."""
    assert memory(path).admits(0, TENTH)
    found: list[bool] = []
    with path.with_suffix(".lock").open("r+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        thread = threading.Thread(target=lambda: found.append(memory(path).admits(0, HALF)))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive() and not found
    thread.join(60)
    assert found == [True]
