"""What stands beside the figures of a leaderboard: in the page, the tables, the files and the frame alike."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from boards import finished

from fedem_flwr.leaderboard import writing
from fedem_flwr.leaderboard.call import frame_of
from fedem_flwr.leaderboard.compare import compare_runs
from fedem_flwr.leaderboard.gather import BEYOND
from fedem_flwr.leaderboard.tables import BEYOND_HEADS, terminal_table
from fedem_flwr.report.run_directory import RunDirectory

FORMS = ("leaderboard.html", "leaderboard.md", "leaderboard.tex")


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "pictures_of", lambda tables: ({}, {}))


def with_noise(path: Path, **ldp: Any) -> Path:
    directory = RunDirectory(path)
    directory.write_summary({**directory.read_summary(), "ldp": ldp})
    return path


def test_an_epsilon_stands_in_every_form_and_is_the_weakest_of_the_seeds(tmp_path: Path) -> None:
    runs = [finished(tmp_path, "fedmf", 0, 0.5)]
    for seed, epsilon in enumerate((3.25, 16.520408)):
        runs.append(with_noise(finished(tmp_path, "fedem", seed, 0.6), composed=epsilon, delta=1e-5, releases=2))
    compared = compare_runs(runs, tmp_path / "out")
    texts = {name: (tmp_path / "out" / name).read_text() for name in FORMS}
    assert all("16.52 (" in text and "3.25" not in text for text in texts.values())
    assert "16.52 (δ 1e-05)" in texts["leaderboard.md"] and r"16.52 ($\delta$ 1e-05)" in texts["leaderboard.tex"]
    assert 'data-value="16.520408"' in texts["leaderboard.html"]
    lines = {line["method"]: line for line in csv.DictReader((tmp_path / "out" / "leaderboard-strict.csv").open())}
    assert (lines["fedem"]["epsilon"], lines["fedem"]["delta"]) == ("16.520408", "1e-05")
    assert lines["fedmf"]["epsilon"] == lines["EASE"]["epsilon"] == ""
    (table,) = json.loads((tmp_path / "out" / "leaderboard.json").read_text())["tables"]
    said = {row["method"]: row["privacy"] for row in table["rows"]}
    assert said["fedem"] == {"epsilon": 16.520408, "delta": 1e-5} and said["fedmf"] is said["EASE"] is None
    frame = frame_of(compared)
    assert frame.loc[("strict", "ml-100k", "fedem"), "epsilon"] == 16.520408
    (measured,) = compared.tables
    assert str(next(iter(terminal_table(measured).columns[-1].cells))) == "6 s\nε 16.5"


def test_without_noise_there_is_no_column_and_some_seeds_without_it_are_no_guarantee(tmp_path: Path) -> None:
    runs = [
        with_noise(finished(tmp_path, "fedem", 0, 0.6), composed=3.0, delta=0.0),
        finished(tmp_path, "fedem", 1, 0.6),
    ]
    compare_runs(runs, tmp_path / "out")
    assert not any("ε" in (tmp_path / "out" / name).read_text() for name in FORMS)
    with_noise(runs[1], composed=2.0, delta=0.0)
    compare_runs(runs, tmp_path / "out")
    assert "| 3 |" in (tmp_path / "out" / "leaderboard.md").read_text()


def test_what_lists_hold_stands_in_every_form(tmp_path: Path) -> None:
    compared = compare_runs([finished(tmp_path, "fedmf", 0, 0.5)], tmp_path / "out")
    board = (tmp_path / "out" / "leaderboard.md").read_text()
    assert "| fedmf | 25 % | 0.912 | 4.25 | 15 % | 10 % |" in board and "Gini of exposure" in board
    page = (tmp_path / "out" / "leaderboard.html").read_text()
    assert all(head in page for head in BEYOND_HEADS.values()) and 'data-value="0.912">0.912<' in page
    (line, *_) = csv.DictReader((tmp_path / "out" / "leaderboard-strict.csv").open())
    frame = frame_of(compared)
    expected = {"coverage": 0.25, "gini": 0.912, "novelty": 4.25, "long_tail": 0.15, "popularity_recommended": 0.1}
    assert {name: float(line[name]) for name in BEYOND} == expected
    assert {name: frame.loc[("strict", "ml-100k", "fedmf"), name] for name in BEYOND} == expected
    directory = RunDirectory(next(tmp_path.glob("*fedmf-0")))
    directory.write_diagnostics({})  # as of a run that was made before
    compare_runs([directory.path], tmp_path / "out")
    assert "top 10" not in (tmp_path / "out" / "leaderboard.md").read_text()
