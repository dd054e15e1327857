"""Rounds that too few contribute to: nothing is made of them, and repeated they give what they would have given."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from federated import Ended, Fate, FederatedGrid, carry_out_over, config_for
from flwr.app import ArrayRecord, ConfigRecord, Message
from hypothesis import given, settings
from hypothesis import strategies as st
from introduced import KEY
from worlds import ITEMS, USERS, carry_out_watched, config_of, figures, largest_difference, node_of

from fedem_flwr.errors import FedemError
from fedem_flwr.messages.admission import TooFewContributions
from fedem_flwr.network.introduction import NetworkWelcome
from fedem_flwr.protocol.shards import Federation, write_shards
from fedem_flwr.runtime import loop
from fedem_flwr.runtime.inprocess import RUN_ID, task_identity
from fedem_flwr.runtime.inputs import build_strategy, load_interactions, split_of

pytestmark = pytest.mark.usefixtures("hurry")

METHODS = ("fedem", "fedmf", "fedials", "fedmf-elastic")
NODES, EACH, BAD = 4, 10, 2


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, config = tmp_path_factory.mktemp("shards"), config_of("fedmf")
    write_shards(split_of(config, load_interactions(config)), NODES, out)
    return out


@pytest.fixture(scope="module")
def calm(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Undisturbed runs."""
    return {
        method: carry_out_over(FederatedGrid(shards, tmp_path_factory.mktemp(method), NODES), config_for(method))
        for method in METHODS
    }


def assert_same(one: Ended, other: Ended) -> None:
    """Tables, private states and figures, to the last bit."""
    assert largest_difference(one.server, other.server) == 0
    assert one.nodes.keys() == other.nodes.keys()
    for disk, state in one.nodes.items():
        assert largest_difference(state, other.nodes[disk]) == 0
    assert [figures(line) for line in one.lines] == [figures(line) for line in other.lines]


fates = st.dictionaries(
    st.tuples(st.integers(1, 6), st.integers(1, 2), st.integers(0, NODES - 1)),  # round, attempt, node
    st.sampled_from(["lost", "mute", "error", "nan"]),
    min_size=1,
    max_size=6,
)


def test_nodes_with_shards_do_what_nodes_with_the_whole_do(calm: dict[str, Ended], tmp_path: Path) -> None:
    for method, run in calm.items():
        whole, _ = carry_out_watched(tmp_path / method, config_for(method))
        assert largest_difference(run.server, whole.server) == 0 and run.outcome.failures == []
        states = {name: np.concatenate([run.nodes[disk][name] for disk in sorted(run.nodes)]) for name in whole.nodes}
        assert largest_difference(states, whole.nodes) == 0
        assert [figures(line) for line in run.lines] == [figures(line) for line in whole.lines]


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=3, deadline=None)
@given(told=fates, every=st.sampled_from([1, 3, 5]))
def test_a_repeated_round_gives_what_it_would_have_given(
    method: str, shards: Path, calm: dict[str, Ended], told: dict[tuple[int, int, int], str], every: int
) -> None:
    """Whichever nodes' words are lost, before or after the nodes did their work."""
    with TemporaryDirectory() as folder:
        grid = FederatedGrid(shards, Path(folder), NODES, lambda *where: told.get(where, ""))
        run = carry_out_over(grid, config_for(method, quorum=1.0, checkpoint_every=every))
        assert_same(run, calm[method])
        rounds = range(1, len(run.lines) + 1)
        repeated = {round_ for round_ in rounds if any((round_, 1, node) in told for node in range(NODES))}
        happened = [(r, attempt, node) for r, attempt, node in told if r in rounds and (attempt == 1 or r in repeated)]
        expected = sorted((round_, f"{node * EACH}–{node * EACH + 9}") for round_, _, node in happened)
        assert sorted((round_, node) for round_, node, _ in run.losses()) == expected, "each is told"
        assert grid.attempts == Counter(rounds) + Counter(r for r, _ in {(r, attempt) for r, attempt, _ in happened})


@pytest.mark.parametrize("method", METHODS)
def test_without_a_quorum_the_round_goes_on_with_what_came(
    method: str, shards: Path, calm: dict[str, Ended], tmp_path: Path
) -> None:
    """As on the other runtimes; a quorum that is met makes no difference."""
    fate: Fate = lambda round_, attempt, node: "mute" if (round_, node) in {(2, BAD), (3, BAD)} else ""  # noqa: E731

    def tamper(reply: Message, message: Message) -> list[Message]:
        silent = message.metadata.message_type == "train" and fate(int(message.metadata.group_id), 1, node_of(reply))
        return [] if silent else [reply]

    whole, _ = carry_out_watched(tmp_path / "whole", config_for(method), tamper)
    for quorum in (0.0, 0.75):
        (tmp_path / f"{quorum}").mkdir()
        grid = FederatedGrid(shards, tmp_path / f"{quorum}", NODES, fate)
        run = carry_out_over(grid, config_for(method, quorum=quorum))
        assert largest_difference(run.server, whole.server) == 0
        assert [figures(line) for line in run.lines] == [figures(line) for line in whole.lines]
        assert run.losses() == [(round_, "20–29", "no reply within the round's time") for round_ in (2, 3)]
        assert set(grid.attempts.values()) == {1}
        apart = [name for name, values in run.server.items() if values.shape != calm[method].server[name].shape]
        assert apart or largest_difference(run.server, calm[method].server) > 0, "it made a difference"


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_made_of_too_few(method: str, shards: Path, tmp_path: Path) -> None:
    """The strategy's state, and what it sends for the round, are as before."""
    config = config_for(method, quorum=0.76)
    strategy: Any = build_strategy(config, ITEMS)
    fate: Fate = lambda round_, attempt, node: "mute" if round_ == 2 and node == BAD and attempt < 3 else ""  # noqa: E731
    grid: Any = FederatedGrid(shards, tmp_path, NODES, fate)
    federation = Federation.load(shards / "federation")
    strategy.users = USERS

    def copied(arrays: Any) -> Any:
        return {name: np.array(values) for name, values in arrays.items()}

    def attempt(round_: int) -> None:
        record = ConfigRecord({"persist": 0, "keep-from": 0})
        messages = strategy.configure_train(round_, ArrayRecord(), record, grid)
        strategy.aggregate_train(round_, grid.send_and_receive(messages))

    with task_identity():
        strategy.meet(grid, 9.0, NetworkWelcome(RUN_ID, KEY, (), config.to_toml(), federation))
        attempt(1)
        before, sent = copied(strategy.state()), copied(strategy.download(np.arange(USERS)))
        settings_ = strategy.settings(2)
        for _ in range(2):
            with pytest.raises(TooFewContributions, match=r"30 of 40 .* fewer than the quorum of 31"):
                attempt(2)
            assert largest_difference(copied(strategy.state()), before) == 0 and strategy.settings(2) == settings_
            assert largest_difference(copied(strategy.download(np.arange(USERS))), sent) == 0
        attempt(2)
        after = copied(strategy.state())
    assert any(before[name].shape != after[name].shape or (before[name] != after[name]).any() for name in before)


def test_patience_ends(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 0.125)  # seconds, at each look
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: next(clock), sleep=lambda seconds: None))
    grid = FederatedGrid(shards, tmp_path, NODES, lambda round_, a, node: "lost" if round_ == 2 and node == BAD else "")
    with pytest.raises(FedemError) as raised:
        carry_out_over(grid, config_for("fedmf", quorum=1.0, patience=0.4))
    assert grid.attempts[2] == 4 and grid.attempts[3] == 0, "0.125, 0.25, 0.375 and 0.5 s after the first"
    assert "30 of 40 participants contributed to round 2, fewer than the quorum of 40: no reply" in str(raised.value)
    impatient = FederatedGrid(shards, tmp_path / "more", NODES, grid.fate)
    with pytest.raises(FedemError, match="fewer than the quorum"):
        carry_out_over(impatient, config_for("fedmf", quorum=1.0, patience=0.0))
    assert impatient.attempts[2] == 1
    assert impatient.attempts[2] == 1


@pytest.mark.parametrize("quorum", [0.0, 1.0])
def test_a_round_to_which_nobody_contributes_is_repeated_in_any_case(
    quorum: float, shards: Path, calm: dict[str, Ended], tmp_path: Path
) -> None:
    grid = FederatedGrid(shards, tmp_path, NODES, lambda round_, attempt, node: "mute" if attempt < 3 else "")
    run = carry_out_over(grid, config_for("fedem", quorum=quorum))
    assert_same(run, calm["fedem"])
    assert dict(grid.attempts) == dict.fromkeys(range(1, 4), 3)


def test_all_nodes_leave_and_come_back(shards: Path, calm: dict[str, Ended], tmp_path: Path) -> None:
    """A cut network: the rounds go on where they were once it is mended."""

    def cut(grid: FederatedGrid, look: int) -> None:
        if look == 2:
            grid.stop(*range(NODES))
        if look == 4:
            for node in range(NODES):
                grid.start(node)

    run = carry_out_over(FederatedGrid(shards, tmp_path, NODES, before=cut), config_for("fedem"))
    assert_same(run, calm["fedem"])
    assert {reason for _, _, reason in run.losses()} == {"is not connected"} and len(run.losses()) == 2 * NODES


# --- rounds that only some nodes train in


def node_that_trains(config: Any, round_: int) -> int:
    """The node of a round's only participant."""
    strategy: Any = build_strategy(config, ITEMS)
    strategy.samples = np.ones(USERS, dtype=np.int64)
    (user,) = strategy.participants(round_)
    return int(user) // EACH


@pytest.mark.parametrize(("method", "every"), [("fedem", 1), ("fedmf", 1), ("fedials", 1), ("fedials", 9)])
def test_a_round_in_which_every_trainer_failed_stops_the_run(method: str, every: int, tmp_path: Path) -> None:
    """Also where others evaluated, or where nobody else was asked: there is nothing to combine."""
    config = config_for(method, participants=1 / USERS).changed("evaluation", every=every)
    trainer = node_that_trains(config, 2)

    def tamper(reply: Message, message: Message) -> list[Message]:
        training = message.metadata.message_type == "train" and message.metadata.group_id == "2"
        return [] if training and node_of(reply) == trainer else [reply]

    with pytest.raises(TooFewContributions, match=r"no participant of 1 contributed to round 2: no reply within"):
        carry_out_watched(tmp_path / "run", config, tamper)


@pytest.mark.parametrize("method", ["fedem", "fedials"])
def test_a_round_without_its_trainers_is_repeated_over_a_network(method: str, shards: Path, tmp_path: Path) -> None:
    """Whether the reply of the only participant's node is lost, or the node is away for a while."""
    config = config_for(method, participants=1 / USERS)
    trainer = node_that_trains(config, 2)

    def away(grid: FederatedGrid, look: int) -> None:
        if look == 2:
            grid.stop(trainer)
        if look == 4:
            grid.start(trainer)

    def carried_out(name: str, fate: Fate = lambda *where: "", before: Any = lambda *when: None) -> Ended:
        (tmp_path / name).mkdir()
        return carry_out_over(FederatedGrid(shards, tmp_path / name, NODES, fate, before), config)

    calm = carried_out("calm")
    muted = carried_out("muted", lambda r, attempt, node: "mute" if (r, node) == (2, trainer) and attempt < 3 else "")
    missed = carried_out("missed", before=away)
    for run in (muted, missed):
        assert_same(run, calm)
        assert run.grid.attempts == Counter({1: 1, 2: 3, 3: 1}) and [loss[0] for loss in run.losses()] == [2, 2]
