"""`fedem data shard`: the folders that it makes, and that it makes them whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from worlds import TINY_OPTIONS, USERS, config_of

from fedem_flwr.cli import main
from fedem_flwr.protocol.shards import write_shards
from fedem_flwr.runtime.inputs import load_interactions, split_of

Fedem = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fedem(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fedem:
    """Run `fedem data shard` on the tiny world; gives code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    tiny = [option for option in TINY_OPTIONS if "synthetic" in option]

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["data", "shard", *map(str, arguments), *tiny])
        screen = capsys.readouterr()
        return int(stopped.value.code or 0), screen.out, screen.err

    return run


def refused(answer: tuple[int, str, str], *words: str, code: int = 2) -> None:
    assert answer[:2] == (code, "") and answer[2].startswith("fedem: ") and answer[2].count("\n") == 1, answer
    assert all(word in answer[2] for word in words), answer[2]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_command_writes_one_shard_a_node(fedem: Fedem, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    code, shown, err = fedem("--nodes", 3, "--protocol", "paper", "--seed", 4, "--out", out, "--quiet")
    assert (code, err) == (0, "") and f"{USERS} users of synthetic in 3 shards of up to 14, protocol paper" in shown
    config = config_of("fedmf", data={"protocol": "paper"}, run={"seed": 4})
    write_shards(split_of(config, load_interactions(config)), 3, tmp_path / "expected")
    assert everything(out) == everything(tmp_path / "expected")
    assert {path.name for path in out.iterdir()} == {"federation", "shards"}


def test_the_command_overwrites_nothing(fedem: Fedem, tmp_path: Path) -> None:
    out = tmp_path / "shards"  # the default
    assert fedem("--quiet")[0] == 0
    before = everything(out)
    for gone in ("federation", "shards"):
        refused(fedem("--quiet", "--seed", 3), f"{out.name} holds shards already", "--out")
        assert everything(out) == before
        shutil.rmtree(out / gone)
        refused(fedem("--quiet"), "holds shards already")
        shutil.rmtree(out)
        assert fedem("--quiet")[0] == 0
    assert everything(out) == before, "the same options give the same shards"


def test_the_command_leaves_nothing_half_made(fedem: Fedem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data.tsv"
    data.write_text("".join(f"{u}\t{i}\t3\t{i}\n" for u in range(20) for i in range(12)) + "7\t")
    refused(fedem("--dataset", data, "--out", tmp_path / "a"), "line 241", "truncated?")
    refused(fedem("--dataset", tmp_path / "none.tsv", "--out", tmp_path / "a"), "none.tsv")
    refused(fedem("--nodes", USERS + 1, "--out", tmp_path / "a", "-q"), f"choose 1 to {USERS}")
    refused(fedem("--nodes", 30, "--out", tmp_path / "a", "-q"), "make 20 equal shards, not 30")
    refused(fedem("--nodes", 0, "--out", tmp_path / "a"), "--nodes")
    assert everything(tmp_path) == {"data.tsv": data.read_bytes()}

    remove = shutil.rmtree

    def full(path: Path, *more: Any, **options: Any) -> None:  # of what is done last, too
        if Path(path).name == "whole":
            raise OSError(28, "no space left", str(path))
        remove(path, *more, **options)

    monkeypatch.setattr(shutil, "rmtree", full)
    refused(fedem("--out", tmp_path / "a", "-q"), "no space left", code=1)
    assert [path for path in tmp_path.rglob("*") if path.name in ("federation", "shards", "federation.json")] == []
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert fedem("--out", tmp_path / "a", "-q")[0] == 0
