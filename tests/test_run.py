"""Whole runs in this process: results do not depend on how users are spread over nodes, nor on who else takes part."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from worlds import ITEMS, USERS, Done, carry_out, carry_out_watched, config_of, figures, largest_difference, prepare

from fedem_flwr.contract.training import LocalTraining
from fedem_flwr.experiment import controls
from fedem_flwr.experiment.outcome import summarise
from fedem_flwr.nodes.host import NodeHost
from fedem_flwr.nodes.slices import slice_histories
from fedem_flwr.randomness import keyed_permutation
from fedem_flwr.runtime.prepared import PreparedRun

METHODS = ("fedem", "fedem-released", "fedmf", "fedsim-dm", "fedmf-sr")
TOLERANCE = 1e-4
# A client computes the same bits in any cohort. Only the sums that cohorts upload (fedmf) are rounded as they are cut.


def assert_same_results(one: Any, other: Any, *, exact: bool = False) -> None:
    """Tables and embeddings within the tolerance, or the same bits; metrics equal."""
    for part in ("server", "nodes"):
        first, second = getattr(one, part), getattr(other, part)
        assert largest_difference(first, second) <= (0 if exact else TOLERANCE)
    assert [line["round"] for line in one.lines] == [line["round"] for line in other.lines]
    for line, twin in zip(one.lines, other.lines, strict=True):
        assert line["participants"] == twin["participants"]
        assert line["train_loss"] == pytest.approx(twin["train_loss"], abs=1e-5)
        for which in ("validation", "test"):
            mine, theirs = (flat_metrics(each[which]) for each in (line, twin))
            # two scores within rounding of each other may change places, far down in somebody's ranking
            assert mine == (theirs if exact else pytest.approx(theirs, abs=1e-7))


def flat_metrics(metrics: dict[str, Any]) -> dict[str, float]:
    """The figures of a line, those of both lists too, by one name each."""
    lists = {f"{name}/{at}": v for name, each in metrics.items() if isinstance(each, dict) for at, v in each.items()}
    return lists | {name: value for name, value in metrics.items() if not isinstance(value, dict)}


@pytest.mark.parametrize("method", ["fedem", "fedem-released"])
def test_results_do_not_depend_on_users_a_node(method: str, tmp_path: Path) -> None:
    """To the bit, where the server adds nothing up; that others differ by rounding is in the conformance table."""
    whole = carry_out(tmp_path / "n", config_of(method))
    assert whole.run.nodes == 1 and whole.nodes["user"].shape[0] == USERS
    assert np.isfinite(whole.nodes["user"]).all() and len(whole.lines) == 3
    for each, nodes in ((1, USERS), (7, 6)):
        parts = carry_out(tmp_path / str(each), config_of(method, run={"users_per_node": each}))
        assert parts.run.nodes == nodes and parts.outcome.failures == []
        assert_same_results(whole, parts, exact=True)


@pytest.mark.data
@pytest.mark.slow
def test_users_a_node_do_not_matter_on_filmtrust(data_dir: Path, tmp_path: Path) -> None:
    data = {"dataset": "filmtrust", "data_dir": str(data_dir)}
    local, checkpoints = {"epochs": 1}, {"rounds": 2, "checkpoint_every": 2}
    runs = [
        carry_out(
            tmp_path / str(each),
            config_of("fedem-released", data=data, local=local, run=checkpoints | {"users_per_node": each}),
        )
        for each in (0, 67)
    ]
    assert runs[0].run.split.users > 900 and runs[1].run.nodes > 10
    assert_same_results(*runs)


def test_the_same_run_twice_is_the_same_to_the_bit(tmp_path: Path) -> None:
    one, two = (carry_out(tmp_path / name, config_of("fedem")) for name in "ab")
    assert largest_difference(one.server, two.server) == largest_difference(one.nodes, two.nodes) == 0
    assert [figures(line) for line in one.lines] == [figures(line) for line in two.lines]
    other = carry_out(tmp_path / "c", config_of("fedem", run={"seed": 1}))
    assert other.lines[0]["train_loss"] != one.lines[0]["train_loss"]


def test_more_nodes_than_users_is_no_failure(tmp_path: Path) -> None:
    """A deployment has the nodes it has: ceil(40 / 27) = 2 users a node leave seven nodes empty."""
    whole = carry_out(tmp_path / "n", config_of("fedem"))
    parts, grid = carry_out_watched(tmp_path / "many", config_of("fedem"), nodes=27)
    assert {c.node for c in grid.down if c.kind == "train"} == set(range(20))
    assert parts.outcome.failures == []
    assert largest_difference(whole.server, parts.server) <= TOLERANCE


def test_local_only_uploads_nothing_and_equals_a_single_user_world(tmp_path: Path) -> None:
    run, grid = carry_out_watched(tmp_path / "run", config_of("local-only", run={"users_per_node": 10}))
    tables = [c.arrays["items"] for c in [*grid.up, *grid.down] if "items" in c.arrays]
    assert tables and all(len(sent) == 0 for sent in tables)
    assert run.outcome.failures == [] and all(line["bytes_up"] < 100 for line in run.lines)
    assert run.lines[-1]["train_loss"] < run.lines[0]["train_loss"]


@pytest.mark.parametrize(("method", "share"), [("fedem", 0.5), ("fedmf", 0.25)])
@pytest.mark.parametrize("each", [0, 7, 1])
def test_participants_are_a_keyed_share_of_the_users(method: str, share: float, each: int, tmp_path: Path) -> None:
    run = {"participants": share, "users_per_node": each, "rounds": 2}
    result, grid = carry_out_watched(tmp_path / "run", config_of(method, run=run))
    assert result.outcome.failures == []
    drawn = {}
    for round_ in (1, 2):
        asked = [c for c in grid.down if c.kind == "train" and c.round == str(round_)]
        drawn[round_] = np.concatenate([c.arrays["participants"] for c in asked])
        expected = keyed_permutation(USERS, 0, "participants", round_).numpy()[: int(share * USERS)]
        assert sorted(drawn[round_]) == sorted(expected)
        assert [line["participants"] for line in result.lines] == [len(expected)] * 2
    assert set(drawn[1]) != set(drawn[2])
    # Everybody is evaluated, also who does not train, and who never trained is as on the first day.
    assert all(c.metrics["users"] for c in grid.up if c.kind == "train" and c.round == "2")
    fresh = carry_out(tmp_path / "fresh", config_of(method, run=run | {"users_per_node": 0}))
    assert_same_results(fresh, result)
    idle = np.setdiff1d(np.arange(USERS), np.concatenate(list(drawn.values())))
    assert len(idle) and (result.nodes["user"][idle] == result.nodes["user"][idle[0]]).all()


def test_who_has_no_table_waiting_does_not_merge(tmp_path: Path) -> None:
    """`fedem` with a fraction: ρ is counted for receivers only, whose tables wait until they train."""
    config = config_of(
        "fedem", aggregate={"fraction": 0.25}, run={"participants": 0.5, "rounds": 4, "users_per_node": 9}
    )
    result, grid = carry_out_watched(tmp_path / "run", config)
    waiting: set[int] = set()
    for round_ in range(1, 5):
        down = [c for c in grid.down if c.kind == "train" and c.round == str(round_)]
        up = [c for c in grid.up if c.kind == "train" and c.round == str(round_)]
        participants = {u for c in down for u in c.arrays["participants"].tolist()}
        uploaders = {u for c in down for u in c.arrays["uploaders"].tolist()}
        receivers = {u for c in down for u in c.arrays["receivers"].tolist()}
        assert receivers == waiting, "tables wait for those who did not train"
        assert uploaders <= participants and len(uploaders) == USERS // 8
        assert {u for c in up for u in c.arrays["users"].tolist()} == uploaders
        merged = sum(c.metrics.get("rho/count", 0) for c in up)
        assert merged == len(receivers) * ITEMS if round_ > 1 else merged == 0
        waiting = (waiting - participants) | uploaders
    assert sorted(waiting) == result.server["receivers"].tolist()
    assert (
        any(len(c.arrays["receivers"]) > USERS // 8 for c in grid.down if "receivers" in c.arrays)
        or len(waiting) > USERS // 8
    )


def test_a_table_that_waits_is_the_one_that_was_made(tmp_path: Path) -> None:
    config = config_of("fedem", aggregate={"fraction": 0.25}, run={"participants": 0.5, "rounds": 4})
    _, grid = carry_out_watched(tmp_path / "run", config)
    messages = {int(c.round): c.arrays for c in grid.down if c.kind == "train"}
    kept = 0
    for round_ in range(2, 4):
        now, after = messages[round_], messages[round_ + 1]
        for place, user in enumerate(now["receivers"]):
            if user not in now["participants"]:
                (later,) = np.flatnonzero(after["receivers"] == user)
                np.testing.assert_array_equal(now["items"][place], after["items"][later])
                kept += 1
    assert kept


def test_a_lone_uploader_gets_its_own_table_back(tmp_path: Path) -> None:
    config = config_of("fedem", aggregate={"fraction": 0.001}, run={"rounds": 1})
    result, _ = carry_out_watched(tmp_path / "run", config)
    (user,) = result.server["receivers"]
    np.testing.assert_allclose(result.server["items"][0], result.nodes["items"][user], atol=1e-6)


@pytest.mark.parametrize("every", [1, 2, 5])
def test_checkpoints_do_not_change_a_result(every: int, tmp_path: Path) -> None:
    plain = carry_out(tmp_path / "plain", config_of("fedem-released", run={"rounds": 5, "checkpoint_every": 100}))
    often = carry_out(tmp_path / "often", config_of("fedem-released", run={"rounds": 5, "checkpoint_every": every}))
    assert largest_difference(plain.server, often.server) == largest_difference(plain.nodes, often.nodes) == 0
    states = list((often.run.directory.path / "checkpoint").rglob("*.safetensors"))
    assert len(states) <= 5, "older states are pruned: two of the server and three of the node stay"


def test_bytes_are_those_of_the_arrays(tmp_path: Path) -> None:
    """One table a user both ways; in the first round nothing comes down."""
    result = carry_out(tmp_path / "run", config_of("fedem"))
    table = ITEMS * 16 * 4
    assert result.lines[0]["bytes_down"] < 100 < table <= result.lines[0]["bytes_up"] < table + 100
    assert table <= result.lines[1]["bytes_down"] < table + 100


@pytest.mark.parametrize(
    ("method", "participants"),
    [("fedem", 1.0), ("fedem-released", 0.5), ("fedmf", 0.5), ("fedmf-sr", 1.0), ("local-only", 0.5)],
)
def test_bytes_of_a_user_are_what_crosses_with_one_user_a_node(
    method: str, participants: float, tmp_path: Path
) -> None:
    """They do not depend on how users are spread, so a method that shares tables within a node looks no cheaper."""
    run = {"participants": participants, "users_per_node": 1}
    alone, _ = carry_out_watched(tmp_path / "1", config_of(method, run=run))
    whole = carry_out(tmp_path / "n", config_of(method, run=run | {"users_per_node": 0}))
    for line, twin in zip(alone.lines, whole.lines, strict=True):
        assert line["bytes_up"] == twin["bytes_up"] == pytest.approx(line["node_bytes_up"] / USERS)
        assert line["bytes_down"] == twin["bytes_down"]
        if line["round"] < len(alone.lines):  # the last line's nodes are sent the last model too, to evaluate it
            assert line["bytes_down"] == pytest.approx(line["node_bytes_down"] / USERS)
    if method.startswith("fedmf"):
        senders = USERS * participants  # the others send names without values
        assert whole.lines[0]["node_bytes_up"] == pytest.approx(alone.lines[0]["node_bytes_up"] / senders, rel=0.01)


def test_a_client_that_raises_half_way_starts_from_a_whole_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It trains in place; in the next round it must go on as a process that has nothing but the disk does."""
    config = config_of("fedmf", run={"users_per_node": USERS // 2, "rounds": 3, "checkpoint_every": 1})
    contribute = LocalTraining.contribute

    def failed_run(name: str) -> Done:
        trained = itertools.count(1)

        def fail_once(self: LocalTraining, *given: Any) -> Any:
            upload = contribute(self, *given)
            if next(trained) == 4:  # the second node in the second round
                raise RuntimeError("no memory")
            return upload

        monkeypatch.setattr(LocalTraining, "contribute", fail_once)
        result = carry_out(tmp_path / name, config)
        assert [(f["round"], f["reason"]) for f in result.outcome.failures] == [(2, "RuntimeError: no memory")]
        return result

    resident = failed_run("resident")

    def on_disk_only(*given: Any, resident: bool, observe: Any) -> NodeHost:
        return NodeHost(*given)

    monkeypatch.setattr("fedem_flwr.experiment.rounds.NodeHost", on_disk_only)
    on_disk = failed_run("disk")
    assert largest_difference(resident.nodes, on_disk.nodes) == largest_difference(resident.server, on_disk.server) == 0
    assert [figures(line) for line in resident.lines] == [figures(line) for line in on_disk.lines]


def test_a_forgotten_cohort_is_read_from_the_disk(tmp_path: Path) -> None:
    result = carry_out(tmp_path / "run", config_of("fedmf", run={"rounds": 1}))
    host = NodeHost(result.run.directory.path, 1, resident=True)
    cohort = host.cohort(0, 1)
    host.keep(0, 1, cohort, durable=False, keep_from=[0])
    cohort.state["user"][:] = torch.nan
    assert host.cohort(0, 1) is cohort
    host.forget(0)
    np.testing.assert_array_equal(host.cohort(0, 1).state["user"].numpy(), result.nodes["user"])


@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_a_nodes_histories_are_its_part_of_everybodys(protocol: str, tmp_path: Path) -> None:
    split = prepare(tmp_path / "run", config_of("fedmf", data={"protocol": protocol})).split
    offsets, items = split.forbidden()
    for users in (np.arange(7, 19), np.arange(3, 4), np.arange(0), np.arange(USERS)):
        part = slice_histories(split, users, torch.device("cpu"))
        for place, user in enumerate(users):
            mine = split.train_items[split.train_offsets[user] : split.train_offsets[user + 1]]
            held_out = [split.validation[user], split.test[user]] if protocol == "paper" else []
            a, b = part.positive_offsets[place : place + 2]
            assert part.positive_items[a:b].tolist() == mine.tolist()
            a, b = part.forbidden_offsets[place : place + 2]
            assert part.forbidden_items[a:b].tolist() == sorted({*mine.tolist(), *held_out})
            assert part.forbidden_items[a:b].tolist() == items[offsets[user] : offsets[user + 1]].tolist()
        assert len(part.positive_offsets) == len(part.forbidden_offsets) == len(users) + 1


def test_peak_memory_is_read_before_the_controls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = iter([123, 10**12])
    monkeypatch.setattr("fedem_flwr.experiment.rounds.peak_rss_bytes", lambda: next(measured))
    result = carry_out(tmp_path / "run", config_of("fedmf", run={"rounds": 1}))
    assert summarise(result.run, result.lines, result.outcome, {}, None, [])["peak_rss_bytes"] == 123


def test_a_run_is_opened_from_its_directory(tmp_path: Path) -> None:
    run = prepare(tmp_path / "run", config_of("fedmf"))
    again = PreparedRun.open(run.directory)
    assert again.config == run.config and again.split.users == USERS and again.nodes == run.nodes


def test_prepared_run_counts_nodes(tmp_path: Path) -> None:
    assert prepare(tmp_path / "ray", config_of("fedmf", run={"runtime": "ray"})).nodes == 2
    assert prepare(tmp_path / "one", config_of("fedmf", run={"users_per_node": 1})).nodes == USERS


def test_the_local_only_control_is_the_same_in_parts_and_its_progress_ends_at_the_last_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepare(tmp_path / "run", config_of("fedmf"))
    told: list[int] = []
    whole = controls.local_only(run.split, run.config, told.append)
    assert told == [1, 2, 3]
    monkeypatch.setattr(controls, "_COHORT", 15)  # three parts
    told.clear()
    assert controls.local_only(run.split, run.config, told.append) == whole
    assert told == [1, 2, 3], "a step that is told twice would look like one that begins anew"
