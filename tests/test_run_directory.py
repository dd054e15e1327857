"""The run directory survives crashes."""

from __future__ import annotations

import math
import os
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from example_runs import example_diagnostics, example_run, example_summary, metrics_line
from hypothesis import given
from hypothesis import strategies as st

from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.files import write_atomically
from fedem_flwr.report import RunDirectory, default_run_path
from fedem_flwr.report.run_directory import plain


class TestRunDirectory:
    def test_round_trip(self, tmp_path: Path) -> None:
        run = example_run(tmp_path / "deep" / "run")
        assert run.read_config() == 'dataset = "ml-100k"\n'
        assert run.read_metrics() == [metrics_line(number) for number in range(1, 7)]
        assert run.read_summary() == example_summary()
        assert run.read_diagnostics() == plain(example_diagnostics())
        assert run.checkpoint_dir == tmp_path / "deep" / "run" / "checkpoint"
        assert not [path for path in run.path.iterdir() if path.name.startswith(".")]  # no temporary file is left

    def test_what_is_not_finite_is_null(self, tmp_path: Path) -> None:
        run = RunDirectory(tmp_path).create()
        run.append_metrics({"round": 1, "train_loss": math.nan, "test": {"hr@10": np.float32("inf")}})
        run.write_summary({"seed": np.int64(3), "nested": [math.inf, np.array([1.0, math.nan])]})
        assert run.read_metrics() == [{"round": 1, "train_loss": None, "test": {"hr@10": None}}]
        assert run.read_summary() == {"seed": 3, "nested": [None, [1.0, None]]}
        assert "NaN" not in (tmp_path / "metrics.jsonl").read_text() + (tmp_path / "summary.json").read_text()

    def test_an_existing_run_is_not_overwritten_unasked(self, tmp_path: Path) -> None:
        run = example_run(tmp_path / "run")
        (run.path / "mine.txt").write_text("keep")
        run.checkpoint_dir.mkdir()
        with pytest.raises(InputError, match="already holds a run"):
            RunDirectory(run.path).create()
        RunDirectory(run.path).create(resume=True)
        assert len(run.read_metrics()) == 6
        assert run.checkpoint_dir.exists()
        RunDirectory(run.path).create(overwrite=True)
        assert [path.name for path in run.path.iterdir()] == ["mine.txt"]

    def test_a_directory_that_cannot_be_written_is_bad_input(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        for path in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(InputError, match="cannot write the run directory") as caught:
                RunDirectory(path).create()
            assert "\n" not in str(caught.value)

    def test_opening_what_holds_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="holds no run"):
            RunDirectory(tmp_path).open()
        with pytest.raises(InputError, match="is no directory"):
            RunDirectory(tmp_path / "absent").open()

    def test_missing_and_damaged_files_say_so_in_one_line(self, tmp_path: Path) -> None:
        run = RunDirectory(tmp_path)
        for read in (run.read_config, run.read_metrics, run.read_summary, run.read_diagnostics):
            with pytest.raises(InputError, match="is missing") as missing:
                read()
            assert "\n" not in str(missing.value)
        (tmp_path / "summary.json").write_text('{"seed": ')
        with pytest.raises(FedemError, match=r"summary\.json is damaged") as damaged:
            run.read_summary()
        assert "\n" not in str(damaged.value)

    def test_default_path(self) -> None:
        path = default_run_path("/data/my ratings.csv", "fedem", "strict", now=datetime(2024, 5, 6, 7, 8, 9))
        assert path == Path("runs/my-ratings-fedem-strict-20240506-070809")


class TestHalfWrittenMetrics:
    @given(cut=st.integers(min_value=1))
    def test_a_cut_anywhere_in_the_last_line_loses_only_that_line(
        self, cut: int, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        run = RunDirectory(tmp_path_factory.mktemp("run")).create()
        run.append_metrics(metrics_line(1))
        whole = len((run.path / "metrics.jsonl").read_bytes())
        run.append_metrics(metrics_line(2))
        path = run.path / "metrics.jsonl"
        content = path.read_bytes()
        path.write_bytes(content[: whole + cut % (len(content) - whole - 1)])  # at least '}' is cut off
        assert run.read_metrics() == [metrics_line(1)]
        run.append_metrics(metrics_line(2, seconds=9.0))  # the next line must not be glued to the half
        assert run.read_metrics() == [metrics_line(1), metrics_line(2, seconds=9.0)]

    def test_a_whole_line_without_its_line_end_is_kept(self, tmp_path: Path) -> None:
        (tmp_path / "metrics.jsonl").write_text('{"round": 1}')
        run = RunDirectory(tmp_path)
        assert run.read_metrics() == [{"round": 1}]
        run.append_metrics({"round": 2})
        assert run.read_metrics() == [{"round": 1}, {"round": 2}]

    def test_damage_in_the_middle_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "metrics.jsonl").write_text('{"round": 1}\n{"rou\n{"round": 3}\n')
        with pytest.raises(FedemError, match="line 2 is damaged"):
            RunDirectory(tmp_path).read_metrics()

    def test_resuming_drops_later_rounds_and_the_half_line(self, tmp_path: Path) -> None:
        run = example_run(tmp_path / "run")
        with (run.path / "metrics.jsonl").open("a") as stream:
            stream.write('{"round": 7, "trai')
        assert run.truncate_metrics(before_round=4) == 3
        assert [line["round"] for line in run.read_metrics()] == [1, 2, 3]
        assert (run.path / "metrics.jsonl").read_text().endswith("}\n")
        assert RunDirectory(tmp_path / "fresh").truncate_metrics(1) == 0


def test_a_replaced_file_is_named_on_the_disk_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a crash may keep a deletion that came later, and lose the new name."""
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(handle: int) -> None:
        events.append("folder" if os.path.samestat(os.fstat(handle), tmp_path.stat()) else "file")
        fsync(handle)

    def noted_replace(self: Path, target: Path) -> Path:
        events.append("replace")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    write_atomically(tmp_path / "latest.json", "{}")
    assert events == ["file", "replace", "folder"]
