"""Rounds that are not evaluated, and the best round that is kept where it can be served."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dying import Crash, crash_at
from worlds import (
    USERS,
    Done,
    carry_out,
    carry_out_watched,
    config_of,
    done,
    figures,
    largest_difference,
    node_of,
    prepare,
)

from fedem_flwr.config import Config
from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.experiment.outcome import diagnose, summarise
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.methods.fedmf import FedMF
from fedem_flwr.report.html import render_report
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.report.selection import best_line, partial_text
from fedem_flwr.runtime.checkpoint import Best, Checkpoint, Checkpoints, served_checkpoint
from fedem_flwr.runtime.prepared import PreparedRun
from strategies.sums import SumsStrategy

STOCK = {"strategy": "flwr.FedAvg", "client": "table"}
METRICS = ("validation", "test", "rho")


class ServesItsBest(SumsStrategy):
    """Stands for the strategy of a method whose clients keep nothing; the loop only asks for the attribute."""

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        self.stateless = True


class Stateless(FedMF):
    """Is carried out by it."""

    STRATEGY = f"{__name__}:ServesItsBest"


class EvaluatesTwice(SumsStrategy):
    """Evaluates the rounds it likes."""

    def evaluates(self, round_: int) -> bool:
        return round_ in (2, 3)


class Twice(FedMF):
    """Is carried out by it."""

    STRATEGY = f"{__name__}:EvaluatesTwice"


class Also(FedMF):
    """Has two more rounds evaluated than the configuration."""

    def evaluates(self, round_: int) -> bool:
        return round_ in (2, 3)


OWN = {kind.__name__.lower(): f"{__name__}:{kind.__name__}" for kind in (Stateless, Twice, Also)}


def configured(name: str, every: int = 1, **run: Any) -> Any:
    method = {"base": "fedmf", "strategy": OWN[name]} if name in OWN else STOCK if name == "stock" else {}
    settings = {"rounds": 7, "users_per_node": 20} | run
    return config_of(name, method=method, run=settings, evaluation={"every": every})


def assert_not_evaluated(line: dict[str, Any]) -> None:
    assert all(line[part] is None for part in METRICS) and line["evaluated_users"] == 0
    assert line["train_loss"] > 0 and line["participants"] == USERS and line["bytes_up"] > 0


@pytest.mark.parametrize("name", ["fedem", "fedmf", "stock"])
def test_only_rounds_that_are_due_are_evaluated_and_nothing_else_changes(name: str, tmp_path: Path) -> None:
    always = carry_out(tmp_path / "1", configured(name))
    seldom, grid = carry_out_watched(tmp_path / "3", configured(name, 3))
    assert [line["round"] for line in seldom.lines] == list(range(1, 8))
    for line, twin in zip(seldom.lines, always.lines, strict=True):
        assert line.keys() == twin.keys()
        if line["round"] in (3, 6, 7):
            assert figures(line) == figures(twin) and line["evaluated_users"] == USERS
        else:
            assert_not_evaluated(line)
            assert {**figures(twin), **dict.fromkeys(METRICS), "evaluated_users": 0} == figures(line)
    assert largest_difference(always.server, seldom.server) == largest_difference(always.nodes, seldom.nodes) == 0
    if name == "stock":
        asked = {c.config["server-round"] for c in grid.down if c.kind == "evaluate"}
        assert asked == {3, 6, 7}
        assert seldom.lines[0]["node_bytes_down"] < seldom.lines[2]["node_bytes_down"]
    else:
        assert {c.round for c in grid.down if c.config.get("evaluate")} == {"4", "7"}
        assert {c.round for c in grid.up if c.kind == "train" and "users" in c.metrics} == {"4", "7"}
        assert {c.round for c in grid.down if c.kind == "evaluate"} == {"7"}


@pytest.mark.parametrize(("name", "every"), [("twice", 1), ("also", 100)])
def test_a_strategy_may_say_which_rounds_it_evaluates(name: str, every: int, tmp_path: Path) -> None:
    """And a method which more."""
    run = carry_out(tmp_path / "run", configured(name, every, rounds=5))
    assert [line["round"] for line in run.lines if line["validation"]] == [2, 3, 5]


def test_whatever_reads_lines_copes(tmp_path: Path) -> None:
    run = carry_out(tmp_path / "run", configured("fedem", 3, rounds=5))
    summary, diagnostics = (
        summarise(run.run, run.lines, run.outcome, {}, None, []),
        diagnose(run.run, run.lines, run.outcome),
    )
    assert summary["rounds"] == summary["served_round"] == summary["metrics"]["last"]["round"] == 5
    assert {best["round"] for best in summary["metrics"].values()} <= {3, 5}
    assert set(diagnostics["rho"]["histograms"]) == {"3", "5"}
    assert partial_text(run.lines, USERS) == "", "nothing was lost"
    run.run.directory.write_summary(summary)
    run.run.directory.write_diagnostics(diagnostics)
    page = render_report(run.run.directory.path)
    assert "5 of 5" in page and "fewer users" not in page and page.count("data:image/svg+xml") >= 3


def test_more_rounds_between_evaluations_than_there_are(tmp_path: Path) -> None:
    run = carry_out(tmp_path / "run", configured("fedmf", 100, rounds=3))
    assert [line["validation"] is None for line in run.lines] == [True, True, False]
    with pytest.raises(FedemError, match="none of 2 rounds was evaluated"):
        best_line(run.lines[:2], "best_validation")


def deaths(path: Path, config: Any) -> Callable[[int], tuple[PreparedRun, Checkpoint | None]]:
    """Runs that die in their n-th write, and what they can go on from."""

    def die(moment: int) -> tuple[PreparedRun, Checkpoint | None]:
        run = prepare(path / str(moment), config)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
            crash_at(moment, patch)
            carry_out_rounds(run, lambda _: None)
        return run, Checkpoints(run.directory.checkpoint_dir).load()

    return die


def whole_run(path: Path, config: Any) -> tuple[Done, int]:
    """An undisturbed run, and how many writes it takes."""
    run = prepare(path, config)
    with pytest.MonkeyPatch.context() as patch:
        writes = crash_at(0, patch)
        outcome = carry_out_rounds(run, lambda _: None)
        return done(run, outcome), writes()


def best_files(run: PreparedRun) -> list[int]:
    return [int(path.stem[-8:]) for path in (run.directory.checkpoint_dir / "best").rglob("*.safetensors")]


@pytest.mark.parametrize("name", ["fedmf", "stock", "stateless"])
@pytest.mark.parametrize("checkpoint_every", [1, 3])
def test_a_killed_run_ends_with_the_same_lines_and_the_same_best(
    name: str, checkpoint_every: int, tmp_path: Path
) -> None:
    config = configured(name, 2, checkpoint_every=checkpoint_every, users_per_node=0)
    whole, writes = whole_run(tmp_path / "whole", config)
    die = deaths(tmp_path, config)
    for moment in range(1, writes + 1, 5 if name == "stateless" else 11):
        run, point = die(moment)
        if point is not None and point.best is not None:
            kept = point.round - (point.pending is not None)
            assert point.best.round <= kept, "a round that will be repeated cannot be the best already"
        resumed = done(run, carry_out_rounds(run, lambda _: None, resume=True))
        assert [figures(line) for line in resumed.lines] == [figures(line) for line in whole.lines], moment
        assert largest_difference(whole.server, resumed.server) == largest_difference(whole.nodes, resumed.nodes) == 0
        assert resumed.outcome.served_round == whole.outcome.served_round
        served, expected = (served_checkpoint(each.directory) for each in (run, whole.run))
        assert served.round == expected.round and largest_difference(served.arrays, expected.arrays) == 0
        left = [] if name != "stateless" else [served.round]
        if point is None or point.round < 7:  # else nothing is written any more: an older file may stay
            records = Checkpoints(run.directory.checkpoint_dir)._records()
            assert set(best_files(run)) == {record["best"]["round"] for record in records if record["best"]}
        assert set(left) <= set(best_files(run))


def test_the_best_round_is_served_as_it_was(tmp_path: Path) -> None:
    run = carry_out(tmp_path / "run", configured("stateless", 1, rounds=9, checkpoint_every=4))
    best = best_line(run.lines, "best_validation")["round"]
    assert 1 < best < 9, "the test needs a best round in between"
    served = served_checkpoint(run.run.directory)
    assert served.round == run.outcome.served_round == best
    assert summarise(run.run, run.lines, run.outcome, {}, None, [])["served_round"] == best
    stopped = carry_out(tmp_path / "stopped", configured("fedmf", 1, rounds=best))
    assert largest_difference(served.arrays, stopped.server) == 0
    assert largest_difference(served.arrays, run.server) > 1e-3, "the last round's differ"
    newest = Checkpoints(run.run.directory.checkpoint_dir).load()
    assert newest is not None and newest.round == 9 and newest.best is not None and newest.best.round == best


def test_where_clients_keep_a_state_the_last_round_is_served(tmp_path: Path) -> None:
    run = carry_out(tmp_path / "run", configured("fedmf", 1, rounds=9))
    served = served_checkpoint(run.run.directory)
    assert served.round == run.outcome.served_round == 9 and largest_difference(served.arrays, run.server) == 0
    assert Checkpoints(run.run.directory.checkpoint_dir).load_best() is None and best_files(run.run) == []


def test_a_round_on_fewer_users_is_not_served(tmp_path: Path) -> None:
    """A node is silent when the best round is evaluated: what the others say of it does not compare."""
    config = configured("stateless", 1, rounds=9)
    whole = carry_out(tmp_path / "whole", config)
    best = best_line(whole.lines, "best_validation")["round"]

    def silent(reply: Any, message: Any) -> list[Any]:
        late = message.metadata.message_type == "train" and message.metadata.group_id == str(best + 1)
        return [] if late and node_of(reply) == 1 else [reply]

    run, _ = carry_out_watched(tmp_path / "run", config, silent)
    line = run.lines[best - 1]
    assert line["evaluated_users"] == USERS // 2
    served = served_checkpoint(run.run.directory).round
    assert served == best_line(run.lines, "best_validation")["round"] != best


ARRAYS = {"table": np.ones((3, 2), dtype=np.float32)}


def point(round_: int, best: int) -> Checkpoint:
    arrays = {name: array * round_ for name, array in ARRAYS.items()}
    state = {name: array * best for name, array in ARRAYS.items()}
    return Checkpoint(round_, arrays, None, [], Best(best, 40, 0.5, state))


def test_a_best_round_counts_once_a_checkpoint_names_it(tmp_path: Path) -> None:
    """The process dies after storing a later best round: until that is repeated, the earlier one is the best."""
    folder = Checkpoints(tmp_path)
    assert folder.load_best() is None
    folder.save(point(4, 3))
    folder.save_best(6, ARRAYS)
    round_, arrays = Checkpoints(tmp_path).load_best() or (0, {})
    assert round_ == 3 and arrays["table"][0, 0] == 3
    again = Checkpoints(tmp_path)
    again.save(point(8, 5))  # the repeated rounds went another way, as another node failed
    round_, arrays = again.load_best() or (0, {})
    assert round_ == 5 and arrays["table"][0, 0] == 5
    names = sorted(path.name for path in (tmp_path / "best").rglob("*.safetensors"))
    assert names == ["round-00000003.safetensors", "round-00000005.safetensors"], "of both checkpoints that are kept"
    again.save(replace(point(9, 5), best=replace(point(9, 5).best, arrays={})))  # type: ignore[type-var]
    assert (again.load_best() or (0, {}))[1], "a best round that is stored already is not written again"


def test_damage_of_the_best_state_is_one_line(tmp_path: Path) -> None:
    folder = RunDirectory(tmp_path).create()
    with pytest.raises(InputError, match="no checkpoint yet"):
        served_checkpoint(folder)
    checkpoints = Checkpoints(folder.checkpoint_dir)
    checkpoints.save(point(4, 3))
    (path,) = (folder.checkpoint_dir / "best").rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(FedemError, match=r"round-00000003\.safetensors is damaged"):
        served_checkpoint(folder)
    path.unlink()
    with pytest.raises(InputError, match="the checkpoint of round 3 in"):
        served_checkpoint(folder)
    latest = folder.checkpoint_dir / "latest.json"
    latest.write_text(json.dumps({**json.loads(latest.read_text()), "best": "x"}))
    with pytest.raises(InputError, match=r"latest\.json is damaged"):
        served_checkpoint(folder)
