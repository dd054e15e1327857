"""How long a grid will take, what a probe says, and what is shown meanwhile."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from worlds import SYNTHETIC

from fedem_flwr.leaderboard import probe as probing
from fedem_flwr.leaderboard.cells import Prepared, prepare, write_record
from fedem_flwr.leaderboard.compare import dry_run
from fedem_flwr.leaderboard.display import CellProgress
from fedem_flwr.leaderboard.folder import Folder
from fedem_flwr.leaderboard.grid import Axes, cells_of
from fedem_flwr.leaderboard.pace import Pace, seconds_left
from fedem_flwr.leaderboard.probe import Estimate, estimates, total_seconds
from fedem_flwr.terminal import console

OPTIONS: dict[str, Any] = {"data": {"synthetic": SYNTHETIC}, "run": {"rounds": 10}, "evaluation": {"controls": False}}


@pytest.fixture
def cells(tmp_path: Path) -> list[Prepared]:
    """Of fedmf and fedials, one seed each."""
    asked = cells_of({}, OPTIONS, Axes(["fedmf", "fedials"]), origin="here")
    return prepare(asked, Folder(tmp_path))[0]


def test_the_pace_of_a_kind_is_its_own_or_that_of_its_data(cells: list[Prepared]) -> None:
    fedmf, fedials = cells
    pace = Pace()
    assert pace.of_round(fedmf) is None and seconds_left(cells, {}, pace, 1) is None
    pace.took(fedmf, 20.0)
    assert pace.of_round(fedmf) == 2.0 == pace.of_round(fedials)
    pace.took(fedials, 50.0)
    assert seconds_left(cells, {}, pace, 1) == 70.0
    assert seconds_left(cells, {}, pace, 2) == 50.0  # not below the longest of them
    assert seconds_left([], {}, pace, 2) == 0.0


def test_what_runs_tells_its_own_pace(cells: list[Prepared]) -> None:
    fedmf, _ = cells
    fedmf.lay_out("it")
    (fedmf.directory.path / "metrics.jsonl").write_text("{}\n" * 4)
    assert seconds_left([], {fedmf: 12.0}, Pace(), 1) == pytest.approx(18.0)  # 3 s a round, 6 rounds left


def test_finished_cells_are_remembered(cells: list[Prepared]) -> None:
    for cell in cells:
        cell.lay_out("it")
    write_record(cells[0].directory, {"key": cells[0].key, "seconds": 30.0})
    assert Pace.of(cells).known == {}  # it has not finished
    for name in ("summary.json", "report.html"):
        (cells[0].directory.path / name).write_text("{}")
    pace = Pace.of(cells)
    assert pace.known == {("synthetic", "fedmf"): [3.0]}
    pace.known["synthetic", "fedials"] = [4.0]
    first, second = estimates(cells, pace, 1)
    assert (first.how, first.seconds, second.how, second.seconds) == ("finished", 0.0, "as measured", 40.0)


def test_each_kind_is_probed_once_and_failures_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probed: list[str] = []

    def answer(cell: Prepared, threads: int) -> float | str:
        probed.append(cell.name.method)
        return 2.0 if cell.name.method == "fedmf" else "it rained"

    monkeypatch.setattr(probing, "probe", answer)
    asked = cells_of({}, OPTIONS, Axes(["fedmf", "fedials"], seeds=3), origin="here")
    found, left_out = dry_run(asked, tmp_path / "out", jobs=2)
    assert sorted(probed) == ["fedials", "fedmf"] and not left_out
    assert {each.cell.name.method: (each.seconds, each.how) for each in found} == {
        "fedmf": (20.0, "probed"),
        "fedials": (None, "it rained"),
    }
    assert total_seconds(found, 2) == 40.0  # three of 20 s, two at a time
    assert not list((tmp_path / "out").glob("runs/*"))


def test_a_probe_is_a_few_rounds_of_the_real_thing(cells: list[Prepared], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(f'{{"round": {n}, "seconds": {s}}}\\n' for n, s in ((1, 9.0), (2, 0.5), (3, 0.7)))
    shell = f"printf '{lines}' > $1/metrics.jsonl; grep -q 'rounds = 3' $1/config.toml"
    monkeypatch.setattr(probing, "FEDEM", ("sh", "-c", shell))
    assert probing.probe(cells[0], 1) == pytest.approx(2 * 0.6)  # the first has starting up in it; local-only as much
    monkeypatch.setattr(probing, "FEDEM", ("sh", "-c", "echo 'fedem: no' >&2; exit 2"))
    assert "no" in str(probing.probe(cells[0], 1))
    monkeypatch.setattr(probing, "FEDEM", ("sh", "-c", "sleep 60"))
    monkeypatch.setattr(probing, "PROBE_SECONDS", 0.2)
    assert "no round within" in str(probing.probe(cells[0], 1))


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_names_cells_and_what_is_left(cells: list[Prepared], terminal: bool) -> None:
    shown = io.StringIO()
    pace = Pace()
    pace.took(cells[0], 20.0)
    with CellProgress(2, 20, 1, console(file=shown, force_terminal=terminal, width=160)) as progress:
        progress.look([cells[1]], {cells[0]: 4.0}, pace)
        progress.ended(cells[0], 20.0, "")
        progress.look([], {cells[1]: 1.0}, pace)
        progress.ended(cells[1], 3.0, "it rained")
    text = shown.getvalue()
    assert "[1/2] fedmf on synthetic, strict, seed 0: 0:20" in text and "FAILED: it rained" in text
    assert ("ETA 0:40" in text) or not terminal


def test_an_estimate_of_memory_grows_with_what_is_kept(tmp_path: Path) -> None:
    def needs(method: str, **options: Any) -> int:
        asked = cells_of({}, {**OPTIONS, **options}, Axes([method]), origin="here")
        (cell,), _ = prepare(asked, Folder(tmp_path))
        (found,) = estimates([cell], Pace({("synthetic", method): [1.0]}), 1)
        assert isinstance(found, Estimate)
        return found.memory

    wide = {"model": {"dim": 512}}
    assert needs("fedem", **wide) - needs("fedem") > 40 * 60 * (512 - 16) * 4  # a table each
