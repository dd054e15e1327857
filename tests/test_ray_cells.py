"""A grid whose cells are tasks of Ray: the same results as one after the other, resumable, its failures named."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from compared import one_after_the_other, small
from dying import fedem, results

from fedem_flwr.errors import InputError
from fedem_flwr.leaderboard import ray_cells, schedule
from fedem_flwr.leaderboard.cells import Prepared, prepare
from fedem_flwr.leaderboard.compare import compare_cells
from fedem_flwr.leaderboard.folder import Folder
from fedem_flwr.leaderboard.ray_cells import RayCell, check_parallel, ray_of_this_machine
from fedem_flwr.locking import born
from fedem_flwr.network.processes import stop_all, wait_until
from fedem_flwr.runtime.checkpoint import Checkpoint, Checkpoints

DIES = (
    'case "$1" in *colr*) echo "fedem: it rained" >&2; exit 1;; *) exec {python} -m fedem_flwr.cli resume "$@";; esac'
)


class Quiet:
    def look(self, *_: Any) -> None: ...

    def ended(self, *_: Any) -> None: ...


class Killed(BaseException):
    pass


def begun(cell: Prepared) -> None:
    """Carry a cell out up to its second round, where its process dies."""
    save = Checkpoints.save

    def save_once(self: Checkpoints, checkpoint: Checkpoint) -> None:
        if checkpoint.round == 2:
            raise Killed
        save(self, checkpoint)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoints, "save", save_once)
        list(one_after_the_other([cell]))


@pytest.mark.ray
@pytest.mark.usefixtures("undrawn")
def test_cells_on_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One Ray for all of it: a cell from its start, one from a checkpoint, one that fails, and a task that is ended."""
    run = {"rounds": 3, "checkpoint_every": 1, "device": "cpu", "engine": "torch"}
    cells = small(["fedmf", "fedials", "colr"], run=run)
    reference, _ = prepare(cells[:2], Folder(tmp_path / "one"))
    expected = dict(one_after_the_other(reference))
    folder = Folder(tmp_path / "ray")
    monkeypatch.setattr(schedule, "FEDEM", ("sh", "-c", DIES.format(python=sys.executable)))
    monkeypatch.setattr(schedule, "ray_of_this_machine", lambda *_: nullcontext())
    with folder.held() as lock, ray_of_this_machine(2, 1):
        ready, _ = prepare(cells, folder)
        begun(ready[0])
        assert ready[0].begun and not ready[0].finished
        carrying = schedule.Schedule(folder, 2, "", lock, parallel="ray")
        carrying.carry_out(ready, Quiet())
        with pytest.raises(InputError, match="Ray is already running in this process"):
            check_parallel("ray")
        wait, told = tmp_path / "waits.log", tmp_path / "pid"
        waiting = RayCell("waits", ["sh", "-c", f"echo $$ > {told}; sleep 600"], wait, {"OMP_NUM_THREADS": "1"})
        waiting.start()
        assert wait_until(lambda: told.exists() and told.read_text() != "", 60) and waiting.alive
        stop_all([waiting])
        assert waiting.ended() and wait_until(lambda: born(int(told.read_text())) is None, 60)
        assert "Ray lost the cell's task" in waiting.reason()
    assert {str(cell.name): results(cell.directory.path) for cell in ready[:2]} == expected
    (failed,) = carrying.failed.items()
    assert failed[0] == ready[2] and "it rained" in failed[1] and "log:" in failed[1]


def test_ways_that_are_none_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert check_parallel("processes") == "processes"
    with pytest.raises(InputError, match="parallel = 'rai': write processes or ray; did you mean 'ray'"):
        check_parallel("rai")
    monkeypatch.setattr(ray_cells.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="need Ray: pip install"):
        compare_cells(small(["fedmf"]), tmp_path / "out", jobs=1, parallel="ray")
    assert fedem("compare", "--methods", "fedmf", "--parallel", "ray", "--out", str(tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "leave out --parallel ray" in said
    assert not (tmp_path / "out").exists()
