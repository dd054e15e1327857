"""Ray gives what one process gives: tables, embeddings, metrics; also when it goes on from another runtime's state."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_run import assert_same_results
from worlds import USERS, carry_out, config_of, done, prepare

from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.runtime.checkpoint import Checkpoint, Checkpoints
from fedem_flwr.runtime.prepared import PreparedRun


@pytest.mark.ray
def test_ray_equals_in_process(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    here = carry_out(tmp_path / "here", config_of("fedem-released"))
    capfd.readouterr()
    there = carry_out(
        tmp_path / "there", config_of("fedem-released", run={"runtime": "ray", "users_per_node": USERS // 2})
    )
    assert there.run.nodes == 2 and there.outcome.failures == []
    assert_same_results(here, there)
    assert capfd.readouterr() == ("", ""), "Flower and Ray stay off the screen"


@pytest.mark.ray
def test_ray_goes_on_where_one_process_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server dies when it stores the second checkpoint: the nodes' states of that round are there already."""

    class Killed(BaseException):
        pass

    here = {"users_per_node": USERS // 2, "checkpoint_every": 1, "rounds": 3}
    whole = carry_out(tmp_path / "whole", config_of("fedmf", run=here))
    save = Checkpoints.save

    def save_once(self: Checkpoints, checkpoint: Checkpoint) -> None:
        if checkpoint.round == 2:
            raise Killed
        save(self, checkpoint)

    run = prepare(tmp_path / "run", config_of("fedmf", run=here))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoints, "save", save_once)
        carry_out_rounds(run, lambda _: None)
    point = Checkpoints(run.directory.checkpoint_dir).load()
    assert point is not None and point.round == 1
    on_ray = PreparedRun(run.directory, run.config.changed("run", runtime="ray"), run.split)
    resumed = done(on_ray, carry_out_rounds(on_ray, lambda _: None, resume=True))
    assert_same_results(whole, resumed)
    assert resumed.outcome.failures == []
