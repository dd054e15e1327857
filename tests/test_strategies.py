"""The server's side: what it refuses, what a refusal changes, and Flower's own strategies with our client."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from tampering import ABSENT, BAD, EACH, FAULTS, Named, spoiled, with_fault
from worlds import ITEMS, USERS, carry_out, carry_out_watched, config_of, figures, largest_difference, node_of

from fedem_flwr.errors import FedemError
from fedem_flwr.experiment.outcome import summarise
from fedem_flwr.report.selection import partial_text
from fedem_flwr.runtime.inputs import build_strategy


@pytest.fixture(scope="module")
def absent(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Runs in which nothing is heard of one node in rounds 2 and 3."""
    folder = tmp_path_factory.mktemp("absent")
    return {name: with_fault(folder / name, name, lambda r, m: [], BAD) for name in ("fedem", "fedmf", "fedmf-sr")}


def assert_as_if_absent(run: Any, absent: Any, reason: str) -> None:
    """The two rounds' faults are named, the node is left out, and all else is as if it had been silent."""
    failures = run.outcome.failures
    assert [(f["round"], f["node"]) for f in failures] == [(2, "node of users 20–29"), (3, "node of users 20–29")]
    assert all(re.search(reason, f["reason"]) and "\n" not in f["reason"] for f in failures), failures
    assert largest_difference(run.server, absent.server) == 0
    assert largest_difference(run.nodes, absent.nodes) == 0
    assert [figures(line) for line in run.lines] == [figures(line) for line in absent.lines]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("method", ["fedem", "fedmf"])
def test_a_bad_upload_is_as_good_as_none(method: str, fault: str, absent: dict[str, Any], tmp_path: Path) -> None:
    tamper, reason = FAULTS[fault]
    assert_as_if_absent(with_fault(tmp_path / "run", method, tamper, BAD), absent[method], reason)


def test_silence_is_counted_and_changes_the_result(absent: dict[str, Any], tmp_path: Path) -> None:
    for method, run in absent.items():
        assert_as_if_absent(run, run, ABSENT)
        whole = carry_out(tmp_path / method, config_of(method, run={"users_per_node": EACH}))
        apart = [name for name in whole.server if np.shape(whole.server[name]) != np.shape(run.server[name])]
        assert apart or largest_difference(whole.server, run.server) > 1e-3
        assert [line["round"] for line in run.lines] == [1, 2, 3], "the run goes on"


def others_tables(arrays: Named) -> Named:
    return arrays | {"users": arrays["users"] - EACH}


@pytest.mark.parametrize(
    ("method", "change", "reason"),
    [
        ("fedem", others_tables, "holds tables of other users"),
        ("fedem", lambda a: a | {"users": a["users"][::-1].copy()}, "holds tables of other users"),
        ("fedem", lambda a: a | {"users": a["users"].astype(np.int32)}, "'users' has type int32, not int64"),
        ("fedem", lambda a: {n: x[:-1] for n, x in a.items()}, r"'users' has shape \(9,\), not \(10,\)"),
        ("fedmf", lambda a: a | {"items-weight": -a["items-weight"]}, "'items-weight' are not whole .* 0 and 10"),
        ("fedmf", lambda a: a | {"items-weight": 0 * a["items-weight"]}, "'items' has values that nobody is behind"),
        ("fedmf-sr", lambda a: a | {"items-weight": -a["items-weight"]}, r"'items-weight' is -\d+, not between 0 and"),
        ("fedmf-sr", lambda a: a | {"items-weight": 9 * a["items-weight"]}, r"'items-weight' is \d+, not between 0"),
        ("fedmf-sr", lambda a: a | {"items": a["items"] * np.float32(1e9)}, "'items' has a mean of norm"),
    ],
)
def test_what_only_one_kind_of_upload_can_get_wrong(
    method: str, change: Any, reason: str, absent: dict[str, Any], tmp_path: Path
) -> None:
    run = with_fault(tmp_path / "run", method, spoiled(change), BAD)
    assert_as_if_absent(run, absent[method], reason)


@pytest.mark.parametrize("method", ["fedem", "fedmf"])
def test_a_second_reply_is_counted_and_changes_nothing(method: str, tmp_path: Path) -> None:
    run = with_fault(tmp_path / "twice", method, lambda r, m: [r, r], BAD)
    plain = with_fault(tmp_path / "plain", method, lambda r, m: [r], BAD)
    assert [f["round"] for f in run.outcome.failures] == [2, 3] and plain.outcome.failures == []
    assert all("a second one" in f["reason"] for f in run.outcome.failures)
    assert largest_difference(run.server, plain.server) == 0
    assert [figures(line) for line in run.lines] == [figures(line) for line in plain.lines]


@pytest.mark.parametrize("fault", ["nan", "error", "junk"])
def test_nobody_left_is_one_line(fault: str, tmp_path: Path) -> None:
    tamper, reason = FAULTS[fault]
    with pytest.raises(FedemError, match=f"no usable reply in round 2: .*{reason}") as raised:
        with_fault(tmp_path / "run", "fedem", tamper, 0, 1, 2, 3)
    assert "\n" not in str(raised.value)


def test_a_node_that_is_lost_for_good_does_not_stop_a_run(tmp_path: Path) -> None:
    """It answers nothing, not even who lives there; the others are the whole federation."""
    config = config_of("fedmf", run={"users_per_node": EACH})
    run, _ = carry_out_watched(tmp_path / "run", config, lambda r, m: [] if node_of(r) == BAD else [r])
    assert [line["participants"] for line in run.lines] == [USERS - EACH] * 3
    assert [f["reason"] for f in run.outcome.failures] == [ABSENT]
    with pytest.raises(FedemError, match=f"no node answered: {ABSENT}"):
        carry_out_watched(tmp_path / "none", config, lambda r, m: [])
    with pytest.raises(FedemError, match="no usable reply in round 1: "):
        carry_out_watched(tmp_path / "mute", config, lambda r, m: [] if m.metadata.message_type == "train" else [r])


@pytest.mark.parametrize(
    "change",
    [
        lambda a: {"users": a["users"]},
        lambda a: a | {"samples": a["samples"][1:]},
        lambda a: a | {"samples": -a["samples"]},
        lambda a: a | {"users": a["users"] - 1000},
        lambda a: a | {"users": a["users"] + 10**12},
        lambda a: a | {"users": a["users"] + USERS},
        lambda a: {"users": np.array([999_999_999]), "samples": np.array([10])},
        lambda a: a | {"samples": a["samples"] + 2**40},
        lambda a: a | {"users": a["users"][::-1].copy()},
        lambda a: a | {"users": a["users"].astype(np.float32)},
    ],
)
def test_a_false_introduction_is_refused(change: Any, tmp_path: Path) -> None:
    def tamper(reply: Message, message: Message) -> list[Message]:
        introduction = message.metadata.message_type == "query" and node_of(reply) == BAD
        return spoiled(change)(reply, message) if introduction else [reply]

    run, _ = carry_out_watched(tmp_path / "run", config_of("fedmf", run={"users_per_node": EACH, "rounds": 1}), tamper)
    (failure,) = run.outcome.failures
    assert "which users it hosts" in failure["reason"] and run.lines[0]["participants"] == USERS - EACH
    assert run.lines[0]["evaluated_users"] == USERS - EACH


def test_a_line_says_on_how_many_users_it_was_evaluated(absent: dict[str, Any]) -> None:
    """A node that is silent in rounds 2 and 3 does not evaluate the models of rounds 1 and 2."""
    for run in absent.values():
        assert [line["evaluated_users"] for line in run.lines] == [USERS - EACH, USERS - EACH, USERS]
        summary = summarise(run.run, run.lines, run.outcome, {}, None, [])
        assert {best["round"] for best in summary["metrics"].values()} == {3}, "the others do not compare"
        note = partial_text(run.lines, USERS)
        assert "2 of 3 rounds (1, 2)" in note and "30 at least, of 40" in note


def test_a_user_without_samples_cannot_be_claimed_twice(tmp_path: Path) -> None:
    """Else a second node would be sent the tables of another's users."""

    def tamper(reply: Message, message: Message) -> list[Message]:
        if message.metadata.message_type != "query":
            return [reply]
        nothing = spoiled(lambda a: {"users": np.arange(EACH), "samples": np.zeros(EACH, dtype=np.int64)})
        return nothing(reply, message) if node_of(reply) < 2 else [reply]

    done, _ = carry_out_watched(tmp_path / "run", config_of("fedmf", run={"users_per_node": EACH}), tamper)
    assert "claims users that the node of users 0" in done.outcome.failures[0]["reason"]


def test_shares_of_users_are_counted_exactly() -> None:
    """0.29 * 100 is 28.999999999999996 in floating point."""
    strategy: Any = build_strategy(config_of("fedmf"), ITEMS)
    drawn = [len(strategy.draw("test", np.arange(100), percent / 100, 1)) for percent in range(1, 101)]
    assert drawn == list(range(1, 101))
    strategy.samples = np.ones(7, dtype=np.int64)
    assert strategy.participants(1) is strategy.participants(1), "drawn once a round"


def test_two_nodes_cannot_claim_the_same_users(tmp_path: Path) -> None:
    claim = spoiled(lambda a: a | {"users": a["users"] - EACH} if a["users"][0] == BAD * EACH else a)
    tamper = lambda r, m: claim(r, m) if m.metadata.message_type == "query" else [r]  # noqa: E731
    done, _ = carry_out_watched(tmp_path / "run", config_of("fedmf", run={"users_per_node": EACH}), tamper)
    (refused,) = done.outcome.failures
    assert refused["round"] == 0 and "refused" in refused["reason"], "the second is left out, the run goes on"
    assert all(line["evaluated_users"] == USERS - EACH for line in done.lines)


def test_the_norm_limit_does_not_depend_on_a_cohorts_size(tmp_path: Path) -> None:
    """FedMF uploads sums: those of many users are large although each user's rows are not."""
    runs = {each: {"users_per_node": each, "rounds": 1} for each in (0, 1)}
    for each, run in runs.items():
        done = carry_out(tmp_path / str(each), config_of("fedmf", aggregate={"max_norm": 80.0}, run=run))
        assert done.outcome.failures == []
    with pytest.raises(FedemError, match="'items' has a mean of norm"):
        carry_out(tmp_path / "low", config_of("fedmf", aggregate={"max_norm": 1.0}, run=runs[0]))


def test_one_round_of_fedmf_by_hand(tmp_path: Path) -> None:
    """The new table is the mean of each row over the users that trained it; rows nobody trained stay."""
    run, grid = carry_out_watched(tmp_path / "run", config_of("fedmf", run={"users_per_node": EACH, "rounds": 1}))
    uploads = [c.arrays for c in grid.up if c.kind == "train"]
    start = next(c.arrays["items"] for c in grid.down if c.kind == "train")
    total, count = (sum(u[name].astype(np.float64) for u in uploads) for name in ("items", "items-weight"))
    for item in range(ITEMS):
        expected = total[item] / count[item] if count[item] else start[item]
        np.testing.assert_allclose(run.server["items"][item], expected, atol=1e-6)
