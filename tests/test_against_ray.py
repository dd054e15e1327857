"""Ray goes on from another runtime's state to what one process gives; that it gives the same is in `conformance`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_run import TOLERANCE, flat_metrics
from test_temporal_runs import carried_out, settings, world
from worlds import done, largest_difference

from fedem_flwr.experiment import flow
from fedem_flwr.experiment.flow import reopen
from fedem_flwr.protocol.temporal import SECOND
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.checkpoint import Checkpoint, Checkpoints
from fedem_flwr.runtime.loop import Outcome
from fedem_flwr.runtime.prepared import PreparedRun


@pytest.mark.ray
@pytest.mark.usefixtures("undrawn")
def test_ray_goes_on_where_one_process_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server dies when it stores the second checkpoint: the nodes' states of that round are there already.

    Under `temporal`, so that devices answer from histories and train for that, and a second training follows on Ray.
    """

    class Killed(BaseException):
        pass

    config = settings("fedmf", run={"users_per_node": 18, "checkpoint_every": 1, "rounds": 2})
    carried_out(tmp_path / "whole", config, world())
    save = Checkpoints.save

    def save_once(self: Checkpoints, checkpoint: Checkpoint) -> None:
        if checkpoint.round == 2:
            raise Killed
        save(self, checkpoint)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoints, "save", save_once)
        carried_out(tmp_path / "run", config, world())
    point = Checkpoints(RunDirectory(tmp_path / "run").checkpoint_dir).load()
    assert point is not None and point.round == 1
    with reopen(tmp_path / "run") as runs:
        on_ray = replace(runs.main, config=runs.main.config.changed("run", runtime="ray"))
        flow.carry_out(replace(runs, main=on_ray), resume=True)
    for stage in ("", SECOND):
        whole, resumed = (PreparedRun.open(RunDirectory(tmp_path / name / stage)) for name in ("whole", "run"))
        assert resumed.nodes == 2 and resumed.config.run.runtime == ("ray" if stage else "inprocess")
        (tables, lines), (other_tables, other_lines) = (kept(run) for run in (whole, resumed))
        assert largest_difference(tables, other_tables) <= TOLERANCE
        for line, twin in zip(lines, other_lines, strict=True):
            assert line == pytest.approx(twin, abs=1e-6)
    one, other = (RunDirectory(tmp_path / name).read_summary() for name in ("whole", "run"))
    assert one["temporal"] == other["temporal"] and one["metrics"] == other["metrics"]


def kept(run: PreparedRun) -> tuple[dict[str, np.ndarray], list[dict[str, float]]]:
    """What server and nodes hold of a finished training, and the figures of its rounds."""
    found = done(run, Outcome())
    parts = [next(line[part] for part in ("validation", "test") if part in line) for line in found.lines]
    flat = [flat_metrics(part) for part in parts]
    return {**found.server, **{f"nodes/{name}": values for name, values in found.nodes.items()}}, flat
