"""Grids whose replies come in the order of the messages: order, time, messages that are sent again."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from flwr.app import Message, Metadata, RecordDict
from flwr.app.message import make_message
from hypothesis import example, given
from hypothesis import strategies as st

from fedem_flwr.errors import FedemError
from fedem_flwr.runtime import ordered
from fedem_flwr.runtime.ordered import OrderedGrid

NEVER = 10**6
Copy = tuple[
    int, str
]  # seconds until the answer to a message, and what it is: "reply", "gone", or "nowhere" to send to


@dataclass
class Clock:
    """Time that passes only while somebody waits; also the event that ends the waiting."""

    now: float = 0.0
    stops: float = NEVER

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        return self.is_set()

    def is_set(self) -> bool:
        return self.now >= self.stops


@dataclass
class Post(OrderedGrid):
    """Answers as planned: for each message (by its node) what happens to it, and to each further copy of it."""

    plans: list[list[Copy]]
    clock: Clock = field(default_factory=Clock)
    repeats: dict[int, list[int]] = field(default_factory=dict)  # at which times which places are to be repeated
    patience: float = 4.0  # seconds that a message to a node that is gone is sent again
    pushed: list[tuple[float, int, str]] = field(default_factory=list)  # when, place, id
    under_way: dict[str, tuple[float, Message]] = field(default_factory=dict)
    sinces: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.clock)  # type: ignore[arg-type]

    def get_node_ids(self) -> list[int]:
        return list(range(len(self.plans)))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [self.push(message) for message in messages]

    def push(self, message: Message) -> str:
        place = message.metadata.dst_node_id
        copies = sum(at == place for _, at, _ in self.pushed)
        seconds, kind = self.plans[place][min(copies, len(self.plans[place]) - 1)]
        message_id = "" if kind == "nowhere" else f"copy {copies} of {place}"
        self.pushed.append((self.clock.now, place, message_id))
        if message_id:
            outside = Metadata(1, f"to {message_id}", place, 9, message_id, kind, 0.0, 1.0, "train")
            self.under_way[message_id] = self.clock.now + seconds, make_message(outside, RecordDict())
        return message_id

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        asked = list(message_ids)
        assert "" not in asked and len(set(asked)) == len(asked)
        due = [message_id for message_id in asked if self.under_way[message_id][0] <= self.clock.now]
        return [self.under_way[message_id][1] for message_id in due]

    def again_at(self, reply: Message, since: float, now: float) -> float | None:
        if reply.metadata.group_id != "gone":
            return None
        self.sinces.append((since, now))
        return now + 2 if now - since < self.patience else None

    def started_anew(self, nodes: Collection[int]) -> Collection[int]:
        return [node for node in self.repeats.pop(int(self.clock.now), []) if node in nodes]


def received(grid: Post, timeout: float | None = None) -> list[tuple[float, int, str]]:
    """When each reply came out, from whom, and to which copy."""
    sent = [make_message(Metadata(1, "", 9, at, "", "", 0.0, 1.0, "train"), RecordDict()) for at in grid.get_node_ids()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordered, "PULL_INTERVAL", 1.0)
        patch.setattr(ordered, "time", SimpleNamespace(monotonic=grid.clock.monotonic))
        replies = grid.send_and_receive(iter(sent), timeout=timeout)
        return [(grid.clock.now, r.metadata.src_node_id, r.metadata.reply_to_message_id) for r in replies]


delays = st.integers(0, 9) | st.just(NEVER)


@given(st.lists(delays, max_size=6), st.integers(0, 12))
@example([3, 1, 2], 12)
@example([NEVER, 0, 1], 5)
def test_replies_come_in_order_as_soon_as_that_allows(seconds: list[int], timeout: int) -> None:
    grid = Post([[(delay, "reply")] for delay in seconds])
    end = min(max([0, *seconds]), timeout)
    expected = []
    for place, delay in enumerate(seconds):
        before = max(seconds[: place + 1])  # a reply waits for those in front of it, until the end
        if delay <= timeout:  # what is there at the end of the time still counts
            expected.append((min(before, end), place, f"copy 0 of {place}"))
    assert received(grid, timeout) == expected
    assert [place for _, place, _ in grid.pushed] == list(range(len(seconds))), "each is sent once, at once"
    assert all(when == 0 for when, _, _ in grid.pushed)


def test_without_a_time_limit_all_are_waited_for() -> None:
    assert [when for when, _, _ in received(Post([[(500, "reply")], [(1, "reply")]]))] == [500, 500]
    assert received(Post([])) == []


def test_a_message_that_could_not_be_left_is_left_out() -> None:
    """Its id is empty; the others need not wait until the time is over."""
    grid = Post([[(2, "reply")], [(0, "nowhere")], [(1, "reply")]])
    assert received(grid, 50) == [(2, 0, "copy 0 of 0"), (2, 2, "copy 0 of 2")]
    assert received(Post([[(0, "nowhere")]]), 50) == []


def test_the_nodes_stop() -> None:
    grid = Post([[(0, "reply")], [(NEVER, "reply")]], Clock(stops=3))
    with pytest.raises(FedemError, match="the nodes were stopped before all replies had come"):
        received(grid, 50)
    assert grid.clock.now == 3
    done = Post([[(0, "reply")]], Clock(stops=1))
    assert len(received(done, 50)) == 1, "all that was asked for is there"


def test_a_message_to_a_node_that_is_gone_is_sent_again() -> None:
    grid = Post([[(1, "gone"), (0, "gone"), (3, "reply")], [(0, "reply")]])
    assert received(grid, 50) == [(9, 0, "copy 2 of 0"), (9, 1, "copy 0 of 1")]
    assert [(when, place) for when, place, _ in grid.pushed] == [(0, 0), (0, 1), (3, 0), (6, 0)]
    assert grid.sinces == [(1, 1), (1, 4)], "since the first such answer"


def test_a_node_that_stays_away_is_an_error_reply_in_the_end() -> None:
    grid = Post([[(0, "gone")]], patience=4.0)
    ((when, place, copy),) = received(grid, 50)
    assert place == 0 and copy != "copy 0 of 0" and 4 <= when <= 7
    late = Post([[(0, "gone")]], patience=NEVER)
    assert received(late, 9) == [] and late.clock.now == 9, "the round's time ends it, too"


def test_a_copy_that_cannot_be_left_is_tried_until_it_can() -> None:
    grid = Post([[(0, "gone"), (0, "nowhere"), (0, "nowhere"), (1, "reply")]])
    assert [copy for _, _, copy in received(grid, 50)] == ["copy 3 of 0"]
    times = [when for when, _, _ in grid.pushed]
    assert times[1:] == [2, 3, 4], "every interval"


def test_a_node_that_was_started_anew_gets_the_message_again_and_counts_once() -> None:
    slow, quick = [(6, "reply"), (1, "reply")], [(0, "reply")]
    grid = Post([slow, quick, slow], repeats={2: [0, 2]})
    assert received(grid, 50) == [(3, 0, "copy 1 of 0"), (3, 1, "copy 0 of 1"), (3, 2, "copy 1 of 2")]
    both = Post([[(3, "reply"), (1, "reply")], [(9, "reply")]], repeats={2: [0]})  # in the same look
    assert received(both, 50) == [(3, 0, "copy 0 of 0"), (9, 1, "copy 0 of 1")]


plans = st.lists(
    st.lists(st.tuples(delays, st.sampled_from(["reply", "reply", "gone", "nowhere"])), min_size=1, max_size=4),
    min_size=1,
    max_size=4,
)


@given(plans, st.dictionaries(st.integers(0, 12), st.lists(st.integers(0, 3), max_size=3, unique=True), max_size=4))
@example([[(6, "gone"), (1, "reply")], [(9, "reply")]], {2: [0]})  # answered before the first copy's node was missed
@example([[(3, "gone"), (4, "reply")]], {2: [0]})  # the second copy is on its way when the first one's node is missed
@example([[(3, "gone"), (1, "reply")], [(9, "reply")]], {2: [0]})  # both at once
def test_whatever_happens_each_counts_once_and_what_is_answered_is_not_sent(
    plans: list[list[Copy]], repeats: dict[int, list[int]]
) -> None:
    grid = Post(plans, repeats={when: list(places) for when, places in repeats.items()})
    replies = received(grid, 15)
    places = [place for _, place, _ in replies]
    assert places == sorted(set(places))
    answered = {}  # when the first real answer to any copy came
    for message_id, (when, reply) in grid.under_way.items():
        if reply.metadata.group_id == "reply" and when <= 15:
            place = int(message_id.split()[-1])
            answered[place] = min(answered.get(place, NEVER), when)
    assert set(answered) <= set(places)
    for at, (when, place, copy) in enumerate(grid.pushed[len(plans) :], len(plans)):
        assert when <= answered.get(place, NEVER), f"{copy} was sent for nothing"
        on_its_way = [c for _, p, c in grid.pushed[:at] if p == place and c and grid.under_way[c][0] > when]
        asked_for = place in repeats.get(int(when), []) or any(kind == "nowhere" for _, kind in plans[place])
        assert not on_its_way or asked_for
    assert all(int(copy.split()[-1]) == place for _, place, copy in replies)
