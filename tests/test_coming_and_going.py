"""Nodes with disks of their own that leave, return and come late; and those that claim what is not theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import cast

import pytest
from federated import Ended, FederatedGrid, carry_out_over, config_for
from flwr.app import Message
from hypothesis import example, given, settings
from hypothesis import strategies as st
from worlds import config_of, largest_difference

from fedem_flwr.errors import FedemError
from fedem_flwr.protocol.shards import write_shards
from fedem_flwr.protocol.split import Split
from fedem_flwr.runtime.inprocess import FIRST_NODE_ID
from fedem_flwr.runtime.inputs import load_interactions, split_of
from strategies import roster

pytestmark = pytest.mark.usefixtures("hurry")

NODES, EACH, BAD, ROUNDS = 4, 10, 2, 4
AWAY, WIPED = "is not connected", "came back without its private state: its users begin anew"
Look = Callable[[FederatedGrid], None]


@pytest.fixture(scope="module")
def whole() -> Split:
    config = config_of("fedmf")
    return split_of(config, load_interactions(config))


@pytest.fixture(scope="module")
def shards(whole: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards")
    write_shards(whole, NODES, out)
    return out


def run_with(shards: Path, folder: Path, looks: dict[int, Look], method: str = "fedem", quorum: float = 0.0) -> Ended:
    """A run in which something happens before some rounds."""
    folder.mkdir(exist_ok=True)
    grid = FederatedGrid(shards, folder, NODES, before=lambda grid, look: looks.get(look, lambda _: None)(grid))
    return carry_out_over(grid, config_for(method, rounds=ROUNDS, quorum=quorum))


def leaves(grid: FederatedGrid) -> None:
    grid.stop(BAD)


def one_after_another(*steps: Look) -> Look:
    def all_of_them(grid: FederatedGrid) -> None:
        for step in steps:
            step(grid)

    return all_of_them


def users_of(node: int) -> str:
    return f"{node * EACH}–{node * EACH + EACH - 1}"


def same(one: Ended, other: Ended) -> bool:
    return largest_difference(one.server, other.server) == 0 and all(
        largest_difference(one.nodes[disk], other.nodes[disk]) == 0 for disk in other.nodes
    )


# --- leaving and returning


def test_a_node_that_returns_goes_on_from_its_state(shards: Path, tmp_path: Path) -> None:
    """It missed round 2; whether it lived on, was started anew or is known by another number makes no difference."""

    def lived_on(grid: FederatedGrid) -> None:
        grid.there[BAD] = "session 3"

    returns: dict[str, Look] = {
        "lived on": lived_on,
        "same number": lambda grid: grid.start(BAD),
        "new number": lambda grid: grid.start(7, BAD),
    }
    runs = {name: run_with(shards, tmp_path / name, {2: leaves, 3: back}) for name, back in returns.items()}
    for name, run in runs.items():
        assert same(run, runs["lived on"]), name
        assert run.losses() == [(2, users_of(BAD), AWAY)]
        assert [line["evaluated_users"] for line in run.lines] == [30, 40, 40, 40]
        assert [line["participants"] for line in run.lines] == [40] * ROUNDS, "it is still one of them"
    assert runs["new number"].grid.greeted == [0, 1, 2, 3, 7]
    calm = run_with(shards, tmp_path / "calm", {})
    assert calm.losses() == [] and not same(runs["lived on"], calm)


@pytest.mark.parametrize("method", ["fedem", "fedials"])
def test_a_node_that_lost_its_disk_says_so(method: str, shards: Path, tmp_path: Path) -> None:
    looks: dict[int, Look] = {3: lambda grid: grid.start(BAD, disk="new disk")}
    run = run_with(shards, tmp_path / "run", looks, method)
    calm = run_with(shards, tmp_path / "calm", {}, method)
    if method == "fedials":  # which keeps nothing
        assert run.losses() == [] and largest_difference(run.server, calm.server) == 0
    else:
        assert run.losses() == [(2, users_of(BAD), WIPED)]
        assert largest_difference(run.nodes["new disk"], calm.nodes[f"node-{BAD}"]) > 0
        assert largest_difference(run.server, calm.server) > 0


def test_a_restart_between_two_rounds_costs_nothing(shards: Path, tmp_path: Path) -> None:
    looks: dict[int, Look] = {
        2: lambda grid: grid.start(BAD),
        4: one_after_another(lambda grid: grid.stop(0), lambda grid: grid.start(5, 0)),
    }
    run, calm = run_with(shards, tmp_path / "run", looks, quorum=1.0), run_with(shards, tmp_path / "calm", {})
    assert same(run, calm) and run.losses() == []
    assert run.grid.greeted == [0, 1, 2, 3, 2, 5], "only who is new is asked"


def test_users_of_nodes_that_are_away_count_for_the_quorum(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(FedemError, match=f"30 of 40 participants .* round 2, .* quorum of 40: {AWAY}"):
        grid = FederatedGrid(shards, tmp_path, NODES, before=lambda grid, look: leaves(grid) if look == 2 else None)
        carry_out_over(grid, config_for("fedmf", quorum=1.0, patience=0.0))
    enough = run_with(shards, tmp_path / "enough", {2: leaves}, "fedmf", quorum=0.75)
    assert enough.losses() == [(round_, users_of(BAD), AWAY) for round_ in range(2, ROUNDS + 1)]
    assert [line["evaluated_users"] for line in enough.lines] == [30] * ROUNDS


def test_a_late_node_is_met_and_not_blamed(shards: Path, tmp_path: Path) -> None:
    """It has no private state, as it was never there."""
    looks: dict[int, Look] = {0: leaves, 3: lambda grid: grid.start(BAD)}
    run = run_with(shards, tmp_path / "run", looks)
    assert run.losses() == []
    assert [line["participants"] for line in run.lines] == [30, 30, 40, 40]
    assert [line["evaluated_users"] for line in run.lines] == [30, 40, 40, 40]


presence = st.lists(st.sets(st.integers(0, NODES - 1), min_size=1), min_size=ROUNDS + 1, max_size=ROUNDS + 1)


@settings(max_examples=8, deadline=None)
@given(presence, st.sampled_from(["fedmf", "fedem"]))
@example([{0}, {1}, {2}, {3}, {0, 1, 2, 3}], "fedmf")
def test_whoever_is_there_takes_part_and_whoever_is_missed_is_named(
    shards: Path, presence: list[set[int]], method: str
) -> None:
    """Who is there in each round, and in the last evaluation."""

    def before(grid: FederatedGrid, look: int) -> None:
        now = presence[max(0, look - 1)]
        grid.stop(*(grid.there.keys() - now))
        for node in now - grid.there.keys():
            grid.start(node)

    with TemporaryDirectory() as folder:
        run = carry_out_over(
            FederatedGrid(shards, Path(folder), NODES, before=before), config_for(method, rounds=ROUNDS)
        )
    known: set[int] = set()
    losses, participants = [], []
    for round_, there in enumerate(presence[:ROUNDS], 1):
        known |= there
        participants.append(EACH * len(known))
        losses += [(round_, users_of(node), AWAY) for node in known - there]
    assert sorted(run.losses()) == sorted(losses)
    assert [line["participants"] for line in run.lines] == participants
    assert [line["evaluated_users"] for line in run.lines] == [EACH * len(there) for there in presence[1:]]


# --- claims


def test_users_of_a_node_that_is_there_are_taken(shards: Path, tmp_path: Path) -> None:
    """The claimant is asked once, and again when it is started anew."""
    run = run_with(
        shards, tmp_path / "run", {2: lambda grid: grid.start(6, BAD, "a copy"), 4: lambda g: g.start(6, BAD)}
    )
    taken = f"claims users that the node of users {users_of(BAD)} hosts: refused"
    assert run.losses() == [(1, users_of(BAD), taken), (3, users_of(BAD), taken)]
    assert run.grid.greeted == [0, 1, 2, 3, 6, 6]
    calm = run_with(shards, tmp_path / "calm", {})
    assert same(run, calm), "and it changes nothing"


def test_who_was_refused_hosts_them_once_the_other_has_left(shards: Path, tmp_path: Path) -> None:
    """A process that was killed is taken for alive for a while, and its successor comes under another number."""
    looks: dict[int, Look] = {2: lambda grid: grid.start(6, BAD), 3: leaves}
    run = run_with(shards, tmp_path / "run", looks, "fedmf")
    taken = f"claims users that the node of users {users_of(BAD)} hosts: refused"
    assert run.losses() == [(1, users_of(BAD), taken)], "said once, and nothing else is missed"
    assert run.grid.greeted == [0, 1, 2, 3, 6] and [line["evaluated_users"] for line in run.lines] == [40] * ROUNDS


def test_a_node_that_does_not_answer_is_not_waited_for_again_and_again(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named once; other nodes go on; once it answers it takes part."""
    clock, waits = SimpleNamespace(now=0.0), []
    monkeypatch.setattr(roster, "time", SimpleNamespace(monotonic=lambda: clock.now))

    class Deaf(FederatedGrid):
        deaf = True

        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
            sent = list(messages)
            if sent and sent[0].metadata.message_type == "query":
                waits.append((len(sent), timeout))
                asked = [one for one in sent if not (self.deaf and one.metadata.dst_node_id == BAD + FIRST_NODE_ID)]
                return super().send_and_receive(asked, timeout=timeout)
            return super().send_and_receive(sent, timeout=timeout)

    def before(grid: FederatedGrid, look: int) -> None:
        clock.now += {3: 31.0, 5: 31.0}.get(look, 0.0)
        cast(Deaf, grid).deaf = look < 4

    grid = Deaf(shards, tmp_path, NODES, before=before)
    run = carry_out_over(grid, config_for("fedmf", rounds=5))
    assert waits == [(NODES, 32.0), (1, 2.0), (1, 2.0)], "all at first, then in passing, and not before every round"
    name = f"node {BAD + FIRST_NODE_ID}"
    assert [loss[1:] for loss in run.losses()] == [(name, "no reply within the round's time")] * 2
    assert [line["participants"] for line in run.lines] == [30, 30, 30, 30, 40]


@pytest.mark.parametrize(("first", "end"), [(25, 35), (22, 28), (15, 35), (20, 29), (21, 30)])
def test_some_users_of_a_node_that_is_away_are_taken_too(
    first: int, end: int, whole: Split, shards: Path, tmp_path: Path
) -> None:
    """Its users come back as they were, or not at all."""
    whole.part(first, end).save(tmp_path / "claim")
    looks: dict[int, Look] = {
        2: one_after_another(leaves, lambda grid: grid.start(6, tmp_path / "claim")),
        4: lambda grid: grid.start(BAD),
    }
    run = run_with(shards, tmp_path / "run", looks, "fedmf")
    refusal = next(reason for _, node, reason in run.losses() if node == f"{first}–{end - 1}")
    assert refusal.startswith("claims users that the node of users ") and refusal.endswith(" hosts: refused")
    rest = [loss for loss in run.losses() if loss[2] != refusal]
    assert rest == [(round_, users_of(BAD), AWAY) for round_ in (2, 3)] and len(run.losses()) == 3
    assert run.grid.greeted == [0, 1, 2, 3, 6, BAD]


def test_whoever_was_replaced_is_too_late(shards: Path, tmp_path: Path) -> None:
    looks: dict[int, Look] = {2: leaves, 3: lambda grid: grid.start(6, BAD), 4: lambda grid: grid.start(BAD)}
    run = run_with(shards, tmp_path / "run", looks, "fedmf")
    taken = f"claims users that the node of users {users_of(BAD)} hosts: refused"
    assert run.losses() == [(2, users_of(BAD), AWAY), (3, users_of(BAD), taken)]
    assert [line["evaluated_users"] for line in run.lines] == [30, 40, 40, 40]


def test_a_node_that_returns_with_others_users(shards: Path, tmp_path: Path) -> None:
    """It is refused under the name of its claim; its own users are missed under theirs."""
    run = run_with(shards, tmp_path / "run", {2: lambda g: g.start(BAD, 1, "x"), 4: lambda g: g.start(BAD)}, "fedmf")
    taken = f"claims users that the node of users {users_of(1)} hosts: refused"
    assert run.losses() == [(1, users_of(1), taken), (2, users_of(BAD), AWAY), (3, users_of(BAD), AWAY)]
