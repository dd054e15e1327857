"""A grid of runs as processes: killed and gone on with, in parallel, failing, and with what is refused."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest
from compared import OPTIONS, one_after_the_other, small
from dying import fedem, results

from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.leaderboard import schedule
from fedem_flwr.leaderboard.cells import prepare
from fedem_flwr.leaderboard.compare import compare_cells, compare_runs
from fedem_flwr.leaderboard.folder import MARK, Folder
from fedem_flwr.leaderboard.gather import tables_of
from fedem_flwr.leaderboard.grid import Axes, cells_of
from fedem_flwr.leaderboard.memory import cell_bytes
from fedem_flwr.report.per_user import PerUser
from fedem_flwr.report.run_directory import RunDirectory


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 24 users and 30 items."""
    file = tmp_path_factory.mktemp("data") / "visits.csv"
    lines = (f"u{u},i{(u % 3) * 6 + (u + 5 * t) % 14},{t}" for u in range(24) for t in range(11))
    file.write_text("user,item,time\n" + "\n".join(lines) + "\n")
    return file


def metrics_without_seconds(path: Path) -> list[dict[str, Any]]:
    return [{**line, "seconds": 0} for line in RunDirectory(path).read_metrics()]


@pytest.mark.usefixtures("undrawn", "hurry")
def test_in_parallel_and_killed_three_times_as_one_after_the_other(
    tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two data sets, two methods, two seeds. Each time all processes die: the parent, and so the cells."""
    monkeypatch.setattr(schedule, "_LOOK", 0.02)
    axes = Axes(["fedem", "fedmf"], ["synthetic", str(rows)], (), 2)
    cells = cells_of({}, OPTIONS, axes, origin="here")
    reference, _ = prepare(cells, Folder(tmp_path / "one"))
    expected = dict(one_after_the_other(reference))
    out = tmp_path / "many"
    with Folder(out).held():
        prepare(cells, Folder(out))  # files are read with threads, which a fork does not have
    for lines in (1, 7, 13):  # metrics lines that are there when it dies, of 24
        parent = multiprocessing.get_context("fork").Process(
            target=compare_cells, args=(cells, out), kwargs={"jobs": 2}
        )
        parent.start()
        while parent.is_alive() and written(out) < lines:
            time.sleep(0.02)
        parent.kill()
        parent.join()
        wait_for_lock(out)
    assert len(list(out.glob("runs/*/summary.json"))) < len(cells)
    compared = compare_cells(cells, out, jobs=2)
    assert not compared.failed and len(compared.records) == len(cells)
    ready, _ = prepare(cells, Folder(out))
    assert {str(cell.name): results(cell.directory.path) for cell in ready} == expected
    for cell, other in zip(ready, reference, strict=True):
        ours, theirs = (metrics_without_seconds(each.directory.path) for each in (cell, other))
        assert ours == theirs

    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/summary.json")}
    again = compare_cells(cells, out, jobs=2)  # nothing is left to do, and nothing is done
    assert again.reused == len(cells) and not again.failed
    assert {path: path.stat().st_mtime_ns for path in out.glob("runs/*/summary.json")} == before
    assert [(table.dataset, len(table.methods)) for table in again.tables] == [("synthetic", 2), ("visits", 2)]


def written(out: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in out.glob("runs/*/metrics.jsonl"))


def wait_for_lock(out: Path) -> None:
    """Until the cells of a killed parent have ended, too."""
    while True:
        try:
            with Folder(out).held():
                return
        except InputError:
            time.sleep(0.05)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Cells whose process is a line of shell: `$4` is the run's directory."""

    def use(script: str) -> None:
        monkeypatch.setattr(schedule, "FEDEM", ("sh", "-c", script))

    return use


SUMMARY = '{"dataset": "synthetic", "protocol": "strict", "method": "m", "seed": 0}'
FINISH = f"echo '{SUMMARY}' > $1/summary.json; echo > $1/report.html"


def test_failures_are_named_and_the_others_go_on(tmp_path: Path, scripted: Any) -> None:
    scripted(f'case "$1" in *fedmf*) echo "fedem: it rained" >&2; exit 1;; *) {FINISH};; esac')
    compared = compare_cells(small(["fedmf", "fedials"]), tmp_path / "out", jobs=2)
    (why,) = (why for name, why in compared.failed.items() if "fedmf" in name)
    assert "it rained" in why and "log:" in why
    assert len(list((tmp_path / "out").glob("runs/*fedials*/summary.json"))) == 1
    scripted("kill -9 $$")
    compared = compare_cells(small(["fedmf", "fedials"]), tmp_path / "out", jobs=2)
    assert compared.reused == 1 and "SIGKILL" in next(iter(compared.failed.values()))


def test_without_space_the_grid_stops_and_nothing_is_lost(tmp_path: Path, scripted: Any) -> None:
    scripted(
        f'case "$1" in *-0-*) {FINISH};; *) echo "fedem: cannot write x: No space left on device" >&2; exit 1;; esac'
    )
    with pytest.raises(FedemError, match="No space left on device; what is finished stays: free space") as stopped:
        compare_cells(small(["fedials"], seeds=3), tmp_path / "out", jobs=1)
    assert "\n" not in str(stopped.value)
    scripted(FINISH)
    assert compare_cells(small(["fedials"], seeds=3), tmp_path / "out", jobs=1).reused == 1


def test_cells_that_do_not_fit_wait_or_are_named(
    tmp_path: Path, scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = small(["fedials"], seeds=3)
    counted: list[int] = []
    go = tmp_path / "go"
    scripted(f"while [ ! -e {go} ]; do sleep 0.05; done; {FINISH}")
    folder = Folder(tmp_path / "out")
    with folder.held():
        ready, _ = prepare(cells, folder)
    need = cell_bytes(ready[0].config, ready[0].facts)
    monkeypatch.setattr(schedule, "free_bytes", lambda: int(1.9 * need))
    monkeypatch.setattr(schedule, "resident_bytes", lambda pid: need)
    look = schedule.Schedule.carry_out

    class Quiet:
        def look(self, waiting: Any, running: Any, pace: Any) -> None:
            counted.append(len(running))
            if len(running) == 3 or len(counted) > 8:
                go.touch()

        def ended(self, *_: Any) -> None: ...

    with folder.held() as lock:
        look(schedule.Schedule(folder, 3, "", lock), ready, Quiet())
    assert max(counted) == 3  # what runs has all it needs already, and is not counted again
    monkeypatch.setattr(schedule, "resident_bytes", lambda pid: 0)
    counted.clear()
    go.unlink()
    fresh = small(["fedmf"], seeds=3)
    ready, _ = prepare(fresh, folder)
    with folder.held() as lock:
        look(schedule.Schedule(folder, 3, "", lock), ready, Quiet())
    assert max(counted) == 1
    monkeypatch.setattr(schedule, "memory_here", lambda: need // 2)
    compared = compare_cells(small(["colr"]), tmp_path / "out", jobs=2)
    assert "GB of memory, and this machine has" in next(iter(compared.failed.values()))


@pytest.mark.usefixtures("undrawn")
def test_runs_that_exist_already(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Folder(tmp_path / "grid")
    ready, _ = prepare(small(["fedmf", "fedials"]), folder)
    done = dict(one_after_the_other(ready))
    paths = [cell.directory.path for cell in ready]
    compared = compare_runs(paths, tmp_path / "board")
    (table,) = compared.tables
    for row in table.methods:
        reported = done[f"{row.label} on synthetic, strict, seed 0"]["metrics"]["best_validation"]
        kept = PerUser.load(row.records[0].directory.path)
        assert kept is not None
        (line,) = (line for line in row.records[0].directory.read_metrics() if line["round"] == kept.round)
        assert kept.metric("full", "ndcg@10").mean() == pytest.approx(line["test"]["ndcg@10"], abs=1e-6)
        spread = row.figures["full", "ndcg@10"]
        assert spread is not None and (spread.mean, spread.deviation) == (reported["ndcg@10"], None)
    assert fedem("compare", *map(str, paths), "--out", str(tmp_path / "board")) == 0
    assert "fedials" in capsys.readouterr().out
    assert fedem("compare", *map(str, paths), "--seeds", "3") == 2
    assert fedem("compare", str(paths[0]), "synthetic") == 2
    (paths[0] / "summary.json").unlink()
    capsys.readouterr()
    assert fedem("compare", *map(str, paths), "--out", str(tmp_path / "board")) == 2
    said = capsys.readouterr().err
    assert "1 of these runs have not finished" in said and "(round 3)" in said and len(said.splitlines()) == 1
    lines = (paths[1] / "metrics.jsonl").read_text().splitlines(keepends=True)
    (paths[1] / "metrics.jsonl").write_text("".join(lines[:-1]))  # as of one that goes on from an earlier checkpoint
    with pytest.raises(InputError, match=r"1 of these runs have not finished: .*round 2"):
        compare_runs([paths[1]], tmp_path / "board")
    (paths[1] / "metrics.jsonl").write_text("".join(lines))
    with pytest.raises(InputError, match="are both 'fedials on synthetic"):
        compare_runs([paths[1], paths[1]], tmp_path / "board")


def test_tables_never_mix_protocols(tmp_path: Path) -> None:
    summary = {"metrics": {"best_validation": {"ndcg@10": 0.1}}, "controls": {}, "seed": 0, "method": "m"}
    paths = []
    for protocol in ("paper", "strict"):
        for dataset in ("a", "b"):
            directory = RunDirectory(tmp_path / f"{protocol}-{dataset}").create()
            directory.write_config("")
            directory.write_summary({**summary, "protocol": protocol, "dataset": dataset})
            paths.append(directory.path)
    compared = compare_runs(paths, tmp_path / "out")
    assert [(t.dataset, t.protocol) for t in compared.tables] == [
        ("a", "paper"),
        ("b", "paper"),
        ("a", "strict"),
        ("b", "strict"),
    ]
    assert len(tables_of(compared.records)) == 4
    assert json.loads((tmp_path / "out" / MARK).read_text())["format"] == 1
