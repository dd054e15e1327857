"""The folder of a grid: by what a cell is known again, and which folders are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from boards import finished
from compared import OPTIONS, small
from dying import fedem
from worlds import SYNTHETIC

from fedem_flwr.errors import InputError
from fedem_flwr.leaderboard import cells as cells_module
from fedem_flwr.leaderboard import splits
from fedem_flwr.leaderboard.cells import prepare, read_record
from fedem_flwr.leaderboard.compare import compare_cells
from fedem_flwr.leaderboard.folder import MARK, Folder
from fedem_flwr.leaderboard.grid import Axes, cells_of
from fedem_flwr.leaderboard.keys import cell_key, said


def test_a_key_holds_what_results_depend_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(**options: Any) -> str:
        ready, _ = prepare(small(["fedmf"], **options), Folder(tmp_path / "out"))
        return ready[0].key

    assert key() == key() == key(run={**OPTIONS["run"], "threads": 3, "checkpoint_every": 2})
    found = []
    for place in ("here", "there"):
        file = tmp_path / place / "log.csv"
        file.parent.mkdir()
        rows = (f"u{u},i{(u + t) % 15},{t}\n" for u in range(12) for t in range(11))
        file.write_text("user,item,time\n" + "".join(rows))
        moved = cells_of({}, {}, Axes(["fedmf"], [str(file)]), origin="here")
        found += prepare(moved, Folder(tmp_path / "out"))[0]
    assert found[0].key == found[1].key  # the same file elsewhere
    others = [
        key(local={"epochs": 2}),
        key(run={**OPTIONS["run"], "rounds": 4}),
        key(data={"synthetic": {"users": 41}}),
    ]
    monkeypatch.setattr(cells_module, "cell_key", lambda config, content: content)
    assert key() == key(local={"epochs": 2}) != key(data={"synthetic": {**SYNTHETIC, "users": 41}})
    assert len({key(), *others}) == 4
    config = small(["fedmf"])[0].config
    assert cell_key(config, "one split") != cell_key(config, "another")


def test_data_that_a_protocol_cannot_cut_are_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "timeless.csv"
    file.write_text("user,item\n" + "".join(f"u{u},i{(u + t) % 15}\n" for u in range(12) for t in range(11)))
    axes = Axes(["fedmf", "fedials"], [str(file), "synthetic"], ["strict", "temporal"])
    asked, cut = [], splits.split_into
    monkeypatch.setattr(splits, "split_into", lambda *given: asked.append(given) or cut(*given))
    cells = cells_of({}, OPTIONS, axes, origin="here")
    ready, left_out = prepare(cells, Folder(tmp_path / "out"))
    assert {str(name): why.split(":")[0] for name, why in left_out.items()} == dict.fromkeys(
        (f"{method} on timeless, temporal, seed 0" for method in axes.methods),
        "protocol 'temporal' cuts by time, and 'timeless' has no times",
    )
    assert len(ready) == 6 and len(asked) == 4  # what is refused once is not read again
    file.unlink()
    with pytest.raises(InputError, match="cannot read"):  # a file that has gone is nobody's wish
        prepare(cells, Folder(tmp_path / "out"))


def test_sources_count_by_what_they_say_to_python() -> None:
    plain = "def f(x):\n    return x + 1\n"
    told = '"""A module."""\n\n\ndef f(x):  # why\n    """Add one."""\n    return (x + 1)\n'
    assert said(plain) == said(told) != said(plain.replace("1", "2"))
    assert said('x = """text"""') != said('x = """another"""')


def test_a_damaged_or_unfinished_directory_is_made_again(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "out")
    (cell,), _ = prepare(small(["fedmf"]), folder)
    cell.lay_out("a")
    assert cell.begun and not cell.finished
    (cell.directory.path / "config.toml").unlink()  # as of a process that died before it was written
    cell.lay_out("b")
    assert cell.begun and cell.directory.read_command() == "b"
    cell.lay_out("c")
    assert cell.directory.read_command() == "b"  # what has begun is left as it is
    (cell.directory.path / "cell.json").write_text("{")
    assert not cell.begun and read_record(cell.directory) == {}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("notes.txt", "mine", "holds something else"),
        (MARK, '{"format": 99, "version": "9.9"}', "version 9.9 .format 99, this one writes 1"),
        (MARK, "{", "damaged"),
    ],
)
def test_a_folder_that_is_no_leaderboard_of_this_version(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=said):
        compare_cells(small(["fedmf"]), tmp_path, jobs=1)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == content


def test_bad_input_gets_one_line_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert fedem("compare", "--methods=fedmf", f"--out={tmp_path}") == 2  # before a word on its cells
    run = finished(tmp_path / "runs", "fedmf", 0, 0.5)
    (run / "summary.json").write_text("{")
    assert fedem("compare", str(run), f"--out={tmp_path / 'out'}") == 2
    folder, summary = capsys.readouterr().err.splitlines()
    assert "holds something else" in folder and "is damaged" in summary and "leave this run out" in summary


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with Folder(tmp_path / "out").held(), pytest.raises(InputError, match="in use by process"):
        compare_cells(small(["fedmf"]), tmp_path / "out", jobs=1)
