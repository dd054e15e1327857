"""`fedem resume`: finished runs, runs beside, damage, leftovers."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from dying import fedem, results
from worlds import TINY_OPTIONS, config_of, prepare

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, no_pictures: None) -> Path:
    """A finished run with another beside it; tests copy it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    options = ["--rounds=3", "--method=fedem", "--against=fedmf", "--quiet", f"--out={out}"]
    assert fedem("run", *TINY_OPTIONS, *options, "--set=run.checkpoint_every=2") == 0
    return out


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_resuming_a_finished_run_changes_nothing(copied: Path, finished: Path) -> None:
    assert fedem("resume", str(copied), "--quiet") == 0
    assert results(copied) == results(finished)
    assert (copied / "metrics.jsonl").read_text() == (finished / "metrics.jsonl").read_text()
    diagnostics = [json.loads((path / "diagnostics.json").read_text()) for path in (copied, finished)]
    assert diagnostics[0] == diagnostics[1] and diagnostics[0]["weights"]["own"]
    commands = [json.loads((path / "summary.json").read_text())["command"] for path in (copied, finished)]
    assert commands[0] == commands[1]


def test_the_command_is_the_one_that_started_the_run(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["fedem", "resume", "it"])
    (copied / "command.txt").write_text("fedem run --rounds 3\n")
    (copied / "summary.json").unlink()
    assert fedem("resume", str(copied), "--quiet") == 0
    assert json.loads((copied / "summary.json").read_text())["command"] == "fedem run --rounds 3"
    (copied / "command.txt").unlink()  # of an older version
    assert fedem("resume", str(copied), "--quiet") == 0
    monkeypatch.setattr(sys, "argv", ["fedem", "run", "a b.toml"])
    assert prepare(tmp_path / "new", config_of("fedmf")).directory.read_command() == "fedem run 'a b.toml'"


def test_the_runs_beside_are_resumed_too(copied: Path, finished: Path) -> None:
    """Killed in the first of two runs: neither has a summary, the main one has not even begun."""
    beside = copied / "against" / "fedmf"
    for path in (copied, beside):
        (path / "summary.json").unlink()
        (path / "report.html").unlink()
    for path in (copied, beside):
        shutil.rmtree(path / "checkpoint")
    (copied / "metrics.jsonl").unlink()
    lines = (beside / "metrics.jsonl").read_text().splitlines(keepends=True)
    (beside / "metrics.jsonl").write_text("".join(lines[:1]) + lines[1][:20])
    assert fedem("resume", str(copied), "--quiet") == 0
    assert results(copied) == results(finished)
    assert results(beside) == results(finished / "against" / "fedmf")
    assert "fedmf" in (copied / "report.html").read_text()


def damage(name: str) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        (path,) = run.glob(name)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return write


def cut_config(run: Path) -> None:
    """A key without its value; cut between two lines the rest would be a configuration."""
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text[: text.index(" = ", len(text) // 2) + 3])


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (damage("checkpoint/latest.json"), "latest.json is damaged"),
        (damage("checkpoint/server/*3.safetensors"), "round-00000003.safetensors is damaged"),
        (damage("checkpoint/nodes/node-000000/*3.safetensors"), "round-00000003.safetensors is damaged"),
        (lambda run: next(run.glob("checkpoint/server/*3.safetensors")).unlink(), "the checkpoint of round 3 in"),
        (lambda run: (run / "checkpoint/latest.json").write_text("[]"), "latest.json is damaged"),
        (cut_config, "config.toml"),
        (damage("split/train_items.npy"), "damaged split"),
        (damage("split/split.json"), "damaged split"),
        (lambda run: (run / "config.toml").unlink(), "config.toml"),
        (lambda run: (run / "metrics.jsonl").unlink(), "metrics.jsonl lacks lines of rounds before 4"),
    ],
)
def test_damage_is_one_clear_line(
    spoil: Callable[[Path], None], named: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(copied)
    capsys.readouterr()
    assert fedem("resume", str(copied), "--quiet") in (1, 2)
    screen = capsys.readouterr()
    assert screen.out == "" and screen.err.count("\n") == 1 and screen.err.startswith("fedem: ")
    assert named in screen.err


def test_a_half_written_line_and_leftovers_are_mended(copied: Path, finished: Path) -> None:
    with (copied / "metrics.jsonl").open("a") as stream:
        stream.write('{"round": 4, "train_lo')
    (copied / "checkpoint" / "server" / "round-00000004.abc.tmp").write_text("half")
    (copied / "checkpoint" / ".latest.json.tmp").write_text("half")
    assert fedem("resume", str(copied), "--quiet") == 0
    assert results(copied) == results(finished)
