"""A run that dies, at any moment, ends as if it had not."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from dying import Crash, crash_at, fedem, results
from preloaded import Preloaded
from worlds import TINY_OPTIONS, WatchedGrid, carry_out, config_of, done, figures, largest_difference, node_of, prepare

from fedem_flwr.errors import FedemError
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.network.processes import FEDEM
from fedem_flwr.runtime.checkpoint import Checkpoint, Checkpoints
from fedem_flwr.runtime.inprocess import task_identity
from fedem_flwr.runtime.loop import Outcome
from fedem_flwr.runtime.prepared import PreparedRun

STOCK = {"strategy": "flwr.FedAdam", "client": "table"}
MOMENTUM = {
    "strategy": "flwr.FedAvgM",
    "client": "table",
    "options": {"server_momentum": 0.9, "server_learning_rate": 0.5},
}


@pytest.mark.parametrize(
    ("name", "method", "each"), [("fedem", {}, 0), ("fedmf", {}, 20), ("stock", STOCK, 0), ("stock", MOMENTUM, 20)]
)
def test_death_at_every_write(
    name: str, method: dict[str, Any], each: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write is flushed with fsync, so this dies around each one: of states, checkpoints and metrics lines."""
    config = config_of(name, method=method, run={"rounds": 3, "checkpoint_every": 1, "users_per_node": each})
    with monkeypatch.context() as patch:
        writes = crash_at(0, patch)
        start = prepare(tmp_path / "whole", config)
        before = writes()
        whole = done(start, carry_out_rounds(start, lambda _: None))
    moments = range(1, writes() - before + 1)
    assert len(moments) > 12
    for moment in moments[:: 1 if name == "fedem" else 5]:
        run = prepare(tmp_path / str(moment), config)
        with monkeypatch.context() as patch, pytest.raises(Crash):
            crash_at(moment, patch)
            carry_out_rounds(run, lambda _: None)
        resumed = done(run, carry_out_rounds(run, lambda _: None, resume=True))
        assert largest_difference(whole.server, resumed.server) == largest_difference(whole.nodes, resumed.nodes) == 0
        assert [figures(line) for line in resumed.lines] == [figures(line) for line in whole.lines], moment


def test_death_between_rare_checkpoints_and_with_some_participants(tmp_path: Path) -> None:
    config = config_of(
        "fedem",
        run={"rounds": 7, "checkpoint_every": 3, "participants": 0.5, "users_per_node": 9},
        aggregate={"fraction": 0.5},
    )
    whole = carry_out(tmp_path / "whole", config)
    for last in (1, 3, 4, 6, 7):
        run = prepare(tmp_path / str(last), config)

        def die(line: dict[str, Any], last: int = last) -> None:
            if line["round"] == last:
                raise Crash

        with pytest.raises(Crash):
            carry_out_rounds(run, die)
        again = PreparedRun(run.directory, run.config, run.split)
        resumed = done(again, carry_out_rounds(again, lambda _: None, resume=True))
        assert [figures(line) for line in resumed.lines] == [figures(line) for line in whole.lines]
        assert largest_difference(whole.server, resumed.server) == largest_difference(whole.nodes, resumed.nodes) == 0


def run_options(out: Path) -> list[str]:
    some = ["--rounds=12", "--method=fedem", "--set=run.checkpoint_every=1", "--quiet", f"--out={out}"]
    return ["run", *TINY_OPTIONS, *some]


@pytest.mark.usefixtures("undrawn")
def test_three_kills_at_random_moments(tmp_path: Path, forking: Preloaded) -> None:
    whole = tmp_path / "whole"
    began = time.monotonic()
    assert fedem(*run_options(whole)) == 0
    duration = time.monotonic() - began
    draw = random.Random(20250722)
    for attempt in range(3):
        out = tmp_path / str(attempt)
        process = forking.popen([*FEDEM, *run_options(out)], stdout=subprocess.DEVNULL)
        await_file(out / "config.toml", process)
        time.sleep(draw.random() * 0.9 * duration)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
        assert fedem("resume", str(out), "--quiet") == 0
        assert results(out) == results(whole)


def await_file(path: Path, process: Any) -> None:
    """Wait until a process has written a file."""
    while not path.exists():
        assert process.poll() is None, "the run ended before it began"
        time.sleep(0.01)


def test_states_of_a_round_that_died_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server died when storing round 2. A node that now misses round 2 must not find the dead run's."""
    config = config_of("fedmf", run={"rounds": 3, "checkpoint_every": 1, "users_per_node": 20})
    save = Checkpoints.save

    def save_once(self: Checkpoints, checkpoint: Checkpoint) -> None:
        if checkpoint.round == 2:
            raise Crash
        save(self, checkpoint)

    run = prepare(tmp_path / "run", config)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(Checkpoints, "save", save_once)
        carry_out_rounds(run, lambda _: None)
    states = run.directory.checkpoint_dir / "nodes"
    newest = "round-00000002.safetensors"
    assert len(list(states.rglob(newest))) == run.nodes == 2
    run.server(lambda _: None, resume=True)
    assert not list(states.rglob(newest)) and len(list(states.rglob("round-00000001.safetensors"))) == 2


def test_other_nodes_than_the_run_was_started_with_are_refused(tmp_path: Path) -> None:
    config = config_of("fedmf", run={"rounds": 2, "users_per_node": 20})
    run = prepare(tmp_path / "run", config)
    carry_out_rounds(run, lambda _: None)

    def resumed(each: int) -> Outcome:
        run.directory.write_config(config.changed("run", rounds=3, users_per_node=each).to_toml())
        return carry_out_rounds(PreparedRun.open(run.directory), lambda _: None, resume=True)

    with pytest.raises(FedemError, match=r"node-000000 is not of the users .*\(0–39, stored: 0–19\)") as raised:
        resumed(0)
    assert "\n" not in str(raised.value)
    assert ["(0–9, stored: 0–19)" in f["reason"] for f in resumed(10).failures[:2]] == [True, False]


def test_failures_are_counted_once_however_often_a_run_is_resumed(tmp_path: Path) -> None:
    lost = lambda reply, message: [] if node_of(reply) == 1 else [reply]  # noqa: E731
    run = prepare(tmp_path / "run", config_of("fedmf", run={"rounds": 2, "users_per_node": 20}))
    counts = []
    for resume in (False, True):
        with task_identity():
            counts.append(len(run.server(lambda _: None, resume=resume)(WatchedGrid(run, lost)).failures))
    assert counts == [1, 1]
