"""The leak audit: small catalogues, and that whatever is wrong is found before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedem_flwr.cli import main
from fedem_flwr.cli.options import options_tree
from fedem_flwr.experiment import audit
from fedem_flwr.experiment.audit import PROTOCOLS, TRAINED, Audit
from fedem_flwr.pulse import watched_by

SMALL = 37  # items: fewer than the 64 columns of fedials' preset
QUICK = ["--rounds=1", "--quiet", "--set=run.threads=1", "--set=run.device=cpu", "--set=local.epochs=1"]


def write_ratings(path: Path, *, distinct: int = 12, once: int = 0) -> Path:
    """20 users with 12 rows each, `distinct` of them different items; and a user of `once` items of its own, twice."""
    rows = [(user, (user * 5 + 3 * (place % distinct)) % SMALL, place) for user in range(20) for place in range(12)]
    rows += [(20, SMALL + place % once, place) for place in range(2 * once)]
    path.write_text("".join(f"{user}\t{item}\t4\t{100 * time + user}\n" for user, item, time in rows))
    return path


@pytest.fixture
def ratings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_ratings(tmp_path / "ratings.tsv")


def audited(ratings: Path, *options: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["audit", f"--dataset={ratings}", *QUICK, *options])
    return int(stopped.value.code or 0)


def test_a_small_catalogue_is_audited_as_it_is_run(ratings: Path, tmp_path: Path) -> None:
    assert audited(ratings, f"--out={tmp_path / 'audit'}") == 0
    rows = {row.pop("method"): row for row in json.loads((tmp_path / "audit" / "audit.json").read_text())}
    assert all(len(rows[name]) == 4 and all(0 <= x <= 1 for x in rows[name].values()) for name in TRAINED)


def test_a_method_has_the_same_width_under_both_protocols(ratings: Path, tmp_path: Path) -> None:
    """A user whose rows repeat counts under `paper` alone, and makes the catalogue there the larger one."""
    write_ratings(ratings, once=6)
    told: list[tuple[str, int, int]] = []
    with watched_by(lambda *step: told.append(step)):
        prepared = Audit.prepare(options_tree({"data": {"dataset": str(ratings)}}, []))
    assert told[-2:] == [("splitting, protocols", 1, 2), ("splitting, protocols", 2, 2)]
    assert {name: split.items for name, split in prepared.splits.items()} == {"paper": SMALL + 6, "strict": SMALL}
    widths = {prepared.configs["fedials", protocol].model.dim for protocol in PROTOCOLS}
    assert widths == {SMALL // 8 * 2}
    asked = Audit.prepare(options_tree({"data": {"dataset": str(ratings)}}, ["model.dim=16"]))
    assert {config.model.dim for config in asked.configs.values()} == {16}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set=model.dim=64"], ["model.dim = 64", "the 37 items of ratings"]),
        (["--set=aggregate.fraction=0.5"], ["aggregate.fraction", "run.participants"]),
        (
            ["--set=evaluation.cache_dir=ratings.tsv/cache"],
            ["cannot write to /", "ratings.tsv/cache", "evaluation.cache_dir"],
        ),
        (["--out=ratings.tsv/audit"], ["cannot write to ratings.tsv", "--out"]),
        (["--set=network.superlink=there:1"], ["superlink"]),
        (
            ["--set=run.runtime=network", "--set=network.superlink=there:1", "--set=network.insecure=true"],
            ["superlink", "nodes of its own"],
        ),
        (["--set=data.min_interactions=13"], ["no user has >= 13 rows"]),
    ],
)
def test_what_is_wrong_is_found_before_training(
    options: list[str], words: list[str], ratings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        forbid(patch)
        assert audited(ratings, *options) == 2
    screen = capsys.readouterr()
    assert screen.out == "" and screen.err.startswith("fedem: ") and screen.err.count("\n") == 1, screen.err
    assert all(word in screen.err for word in words), screen.err


def test_nobody_left_under_strict_is_found_before_training_under_paper(
    ratings: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(monkeypatch)
    assert audited(write_ratings(ratings, distinct=6)) == 2
    assert "no user has >= 10 rows in 'ratings'" in capsys.readouterr().err


def forbid(patch: pytest.MonkeyPatch) -> None:
    """Nothing is trained or fitted any more."""

    def fail(*arguments: Any) -> None:
        raise AssertionError("it began")

    for name in ("carry_out_rounds", "remembered_controls"):
        patch.setattr(audit, name, fail)
