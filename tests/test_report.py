"""The run directory survives crashes, and the report renders whatever a run left behind."""

from __future__ import annotations

import base64
import io
import math
import os
import re
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.files import write_atomically
from fedem_flwr.report import RunDirectory, default_run_path, drawing, plots, selection
from fedem_flwr.report.comparison import comparison_of, comparison_text, signed
from fedem_flwr.report.html import render_report, write_report
from fedem_flwr.report.labels import control_rows, settings_text
from fedem_flwr.report.progress import RoundProgress, clock_text, rate_text, task_progress
from fedem_flwr.report.run_directory import number_at, plain
from fedem_flwr.report.sections import lists_text, tunings_of
from fedem_flwr.report.tables import audit_table, bytes_text, result_rows, result_table, verdict

Json = dict[str, Any]


def scores(hits: float, gain: float, negative_hits: float = 0.4, negative_gain: float = 0.2) -> Json:
    return {"hr@10": hits, "ndcg@10": gain, "sampled99": {"hr@10": negative_hits, "ndcg@10": negative_gain}}


def metrics_line(number: int, **changes: Any) -> Json:
    line: Json = {
        "round": number,
        "train_loss": 0.7 / number,
        "validation": scores(0.02 * number, 0.01 * number),
        "test": scores(0.019 * number, 0.009 * number),
        "rho": {"mean": 0.5, "std": 0.1},
        "seconds": 1.2,
        "participants": 20,
        "bytes_up": 1000,
        "bytes_down": 2000,
    }
    return line | changes


def example_summary(**changes: Any) -> Json:
    summary: Json = {
        "dataset": "ml-100k",
        "method": "fedem",
        "protocol": "strict",
        "runtime": "inprocess",
        "seed": 0,
        "rounds": 6,
        "users": 943,
        "items": 1682,
        "interactions": 100000,
        "metrics": {
            "best_validation": {"round": 5, **scores(0.23, 0.12, 0.69, 0.37)},
            "best_test": {"round": 6, **scores(0.30, 0.15, 0.71, 0.38)},
            "last": {"round": 6, **scores(0.22, 0.11)},
        },
        "controls": {
            "random": scores(0.006, 0.003, 0.1, 0.045),
            "popularity": scores(0.08, 0.04),
            "ease": scores(0.25, 0.13, 0.64, 0.38),
            "local_only": scores(0.07, 0.03, 0.14, 0.07),
        },
        "seconds_per_round": 1.234,
        "bytes_up": 107648,
        "bytes_down": 215296,
        "peak_rss_bytes": 1_430_000_000,
        "selected": "best_validation",
        "command": "fedem run configs/ml-100k.toml",
        "notes": ["Three clients were small."],
        "failures": 1,
    }
    return summary | changes


def example_diagnostics() -> Json:
    generator = np.random.default_rng(0)
    return {
        "rho": {
            "edges": np.linspace(0, 1, 21),
            "histograms": {number: generator.integers(0, 50, 20) for number in (1, 3, 5, 6)},
        },
        "weights": {
            "own": generator.uniform(0.4, 0.6, 30),
            "nonzero": generator.integers(5, 15, 30),
            "sample": generator.uniform(0, 1, (12, 12)) * (generator.random((12, 12)) < 0.6),
        },
        "groups": [
            {"label": f"{number}", "users": 20, "mean_interactions": 9.5 * number, **scores(0.1, 0.05)}
            for number in range(1, 6)
        ],
        "failures": [{"round": 2, "node": "3", "reason": "timed out after 30 s"}],
    }


UNEVALUATED: Json = {"validation": None, "test": None, "rho": None, "evaluated_users": 0}


def every_third(count: int) -> list[Json]:
    return [
        metrics_line(n, **({"evaluated_users": 943} if n % 3 == 0 or n == count else UNEVALUATED))
        for n in range(1, count + 1)
    ]


def example_comparison(**changes: Any) -> Json:
    comparison: Json = {
        "control": "ease_recent",
        "metrics": {
            "ndcg@10": {"mean": 0.012, "low": 0.004, "high": 0.020},
            "hr@10": {"mean": -0.001, "low": -0.01, "high": 0.008},
            "sampled99": {
                "ndcg@10": {"mean": -0.02, "low": -0.03, "high": -0.01},
                "hr@10": {"mean": 0.0, "low": 0.0, "high": 0.01},
            },
        },
        "round": 5,
        "users": 943,
        "level": 0.95,
    }
    return comparison | changes


def example_lists() -> Json:
    return {
        "coverage": 0.341,
        "popularity_recommended": 0.213,
        "popularity_consumed": 0.0912,
        "popularity_histogram": {
            "edges": [0, 0.001, 0.002, 0.004, 0.007, 0.013, 0.021, 0.036, 0.064, 0.12, 0.615],
            "recommended": [0, 0, 0.002, 0.008, 0.02, 0.03, 0.06, 0.12, 0.23, 0.53],
            "consumed": [0.002, 0.004, 0.01, 0.02, 0.03, 0.05, 0.08, 0.13, 0.2, 0.474],
        },
    }


def example_tuning() -> Json:
    rows = [
        {"half_life": half, "ridge": ridge, "ndcg@10": 0.1 + 0.01 * ridge - 0.001 * half, "users": 900}
        for half in (5, 10)
        for ridge in (0.5, 1.0)
    ]
    return {"rows": rows, "chosen": {"half_life": 5, "ridge": 1.0}, "round": 12}


def example_run(path: Path, **changes: Any) -> RunDirectory:
    run = RunDirectory(path).create()
    run.write_config('dataset = "ml-100k"\n')
    for number in range(1, 7):
        run.append_metrics(metrics_line(number))
    run.write_summary(example_summary(**changes))
    run.write_diagnostics(example_diagnostics())
    return run


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


class TestTables:
    def test_number_at(self) -> None:
        record = {"a": {"b": 2, "c": math.nan, "d": "x", "e": True}}
        assert number_at(record, "a", "b") == 2.0
        for keys in (("a", "c"), ("a", "d"), ("a", "e"), ("a", "b", "z"), ("q",)):
            assert number_at(record, *keys) is None

    def test_a_peek_at_the_test_set_never_wins_a_column(self) -> None:
        rows = {row.label: row for row in result_rows(example_summary())}
        assert rows["fedem, best validation"].is_reported
        assert rows["fedem, best test"].best == (
            False,
            False,
            False,
            False,
        )  # though its figures are the highest
        assert rows["EASE"].best == (True, True, False, True)
        assert rows["fedem, best validation"].best == (False, False, True, False)

    def test_the_protocol_decides_what_is_reported(self) -> None:
        summary = example_summary(protocol="paper", selected=None)
        assert [row.label for row in result_rows(summary) if row.is_reported] == ["fedem, best test"]
        assert "99 negatives" in verdict(summary).sentence

    def test_any_set_of_controls_is_shown_with_its_settings(self) -> None:
        tuned = {**scores(0.26, 0.14), "settings": {"lambda": 400.0, "half_life": 10, "unused": None}}
        controls = {
            "ease_recent": tuned,
            "local_only": None,
            "my_own": scores(0.1, 0.1),
            "ease": scores(0.25, 0.13),
            "item_knn": scores(0.2, 0.1),
            "popularity": None,
        }
        rows = [row for row in result_rows(example_summary(controls=controls)) if row.is_control]
        labels = ["popularity", "item-kNN", "EASE", "EASE-recent", "my-own", "local-only"]
        assert [row.label for row in rows] == labels, "random is not measured here"
        assert [row.settings for row in rows] == ["", "", "", "lambda 400, half-life 10", "", ""]
        assert rows[0].figures == (None,) * 4 and rows[3].best[:2] == (True, True)
        console = Console(width=80, file=io.StringIO(), record=True)
        console.print(result_table(example_summary(controls=controls)))
        text = console.export_text()
        assert max(map(len, text.splitlines())) <= 80
        assert re.search(r"EASE-recent .*0\.2600\*", text)
        assert re.search(r"^EASE-recent: lambda 400, half-life 10 *$", text, re.MULTILINE)

    @pytest.mark.parametrize("controls", [None, {}, [], {"ease": "x"}, {"ease": {"settings": 3}}])
    def test_odd_controls(self, controls: object) -> None:
        assert all(row.settings == "" for row in control_rows(controls))
        assert {row.label for row in result_rows(example_summary(controls=controls)) if row.is_control} <= {"EASE"}

    def test_settings_in_words(self) -> None:
        assert settings_text({"half_life": 2.5, "ridge": 1e6, "kind": "x", "on": True}) == (
            "half-life 2.5, ridge 1e+06, kind x, on True"
        )
        assert settings_text({"full": {"lambda": 400.0}, "sampled99": {"lambda": 400.0}}) == "lambda 400"
        both = {"full": {"lambda": 400.0}, "sampled99": {"lambda": 200.0}}
        assert settings_text(both) == "whole catalogue: lambda 400; 99 negatives: lambda 200"

    def test_the_comparison_is_one_line_and_says_whether_it_excludes_zero(self) -> None:
        summary = example_summary(comparison=example_comparison())
        line = "NDCG@10 against EASE-recent: +0.0120, 95 % interval +0.0040 to +0.0200"
        assert comparison_text(summary) == line
        console = Console(width=120, file=io.StringIO(), record=True)
        console.print(result_table(summary))
        assert line in " ".join(console.export_text().split())
        compared = comparison_of(summary)
        assert compared is not None
        assert [compared.words(row).partition(":")[0] for row in compared.differences] == [
            "excludes 0",
            "includes 0",
            "excludes 0",
            "includes 0",  # one end at 0
        ]
        assert [row.sign for row in compared.differences] == [1, 0, -1, 0]
        assert (signed(-0.00001), signed(0.00004), signed(-0.25)) == ("0.0000", "0.0000", "-0.2500")

    @pytest.mark.parametrize(
        "comparison", [None, {}, "x", {"metrics": {"ndcg@10": {"mean": 0.1, "low": None, "high": 0.2}}}]
    )
    def test_without_a_comparison_there_is_no_line(self, comparison: object) -> None:
        summary = example_summary(comparison=comparison)
        assert comparison_of(summary) is None and comparison_text(summary) == ""
        part = {"metrics": {"hr@10": {"mean": 0.1, "low": 0.05, "high": 0.2}}}
        assert comparison_text({"comparison": part}).startswith("HR@10 against the control: +0.1000, interval +0.0500")

    def test_verdict(self) -> None:
        said = verdict(example_summary())
        assert (said.beats_popularity, said.beats_local_only) == (True, True)
        controls = {"popularity": scores(0.20, 0.12), "local_only": None}
        said = verdict(example_summary(controls=controls))
        assert (said.beats_popularity, said.beats_local_only) == (False, None)  # a tie does not beat
        assert "though it does by HR@10" in said.sentence
        assert "beats local-only: not measured" in said.sentence
        assert verdict({}).beats_popularity is None

    def test_terminal_table_fits_80_columns_and_names_the_protocol(self) -> None:
        console = Console(width=80, file=io.StringIO(), record=True)
        console.print(result_table(example_summary(dataset="[red]odd[/red]")))
        text = console.export_text()
        assert max(map(len, text.splitlines())) <= 80
        assert "protocol 'strict'" in text
        assert "[red]odd[/red]" in text  # not taken for markup
        assert re.search(r"> fedem, best validation +│ +5 │ +0\.2300", text)
        assert re.search(r"EASE +│ +– │ +0\.2500\*", text)
        assert "beats popularity: yes" in " ".join(text.split())

    def test_audit_table(self) -> None:
        console = Console(width=80, file=io.StringIO(), record=True)
        console.print(audit_table([{"protocol": "paper", "leaks": True}, {"protocol": "strict", "hr@10": 0.5}]))
        text = console.export_text()
        assert re.search(r"paper +│ yes +│ +–", text)
        assert re.search(r"strict +│ – +│ +0\.5000", text)

    @pytest.mark.parametrize(
        ("count", "text"),
        [(None, "–"), (0, "0 B"), (999, "999 B"), (1000, "1 kB"), (107648, "108 kB"), (1.43e9, "1.43 GB")],
    )
    def test_bytes(self, count: float | None, text: str) -> None:
        assert bytes_text(count) == text


class TestProgress:
    def test_plain_lines_every_tenth(self) -> None:
        console = Console(file=io.StringIO(), width=200)
        times = iter(range(1000))
        with RoundProgress(100, console=console, clock=lambda: 2.0 * next(times)) as progress:
            for number in range(1, 101):
                progress.update(number, metrics_line(number))
        lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert len(lines) == 11  # the first round, then every tenth
        assert lines[0].startswith("training: round 1/100  2.00 s/round  elapsed 0:02  ETA 3:18  loss 0.7000")
        assert lines[-1].startswith("training: round 100/100  2.00 s/round  elapsed 3:20  ETA 0:00")
        assert "hr@10 0.0200  ndcg@10 0.0100  rho 0.5000" in lines[0]

    def test_a_resumed_run_is_timed_from_where_it_resumed(self) -> None:
        console = Console(file=io.StringIO(), width=200)
        times = iter([0.0, 0.0, 10.0])
        with RoundProgress(20, first_round=11, console=console, clock=lambda: next(times)) as progress:
            progress.update(15, {"round": 15})
        assert "round 15/20  2.00 s/round  elapsed 0:10  ETA 0:10" in console.file.getvalue()  # type: ignore[attr-defined]

    def test_starting_up_does_not_count_for_the_pace(self) -> None:
        console = Console(file=io.StringIO(), width=200)
        times = iter([0.0, 0.0, 20.0, 22.0, 24.0])
        with RoundProgress(3, console=console, clock=lambda: next(times)) as progress:
            for number in (1, 2, 3):
                progress.update(number, metrics_line(number))
        lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert "20.00 s/round  elapsed 0:20" in lines[0] and "2.00 s/round  elapsed 0:24  ETA 0:00" in lines[-1]

    def test_terminal_bar_shows_the_metrics(self) -> None:
        console = Console(file=io.StringIO(), width=80, force_terminal=True)
        with RoundProgress(2, console=console) as progress:
            progress.update(1, metrics_line(1))
            progress.update(2, metrics_line(2, rho=None, train_loss=None))
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert "2/2" in text
        assert "hr@10 0.0400" in text
        assert "ETA 0:00" in text

    @pytest.mark.parametrize("terminal", [True, False])
    def test_a_round_that_was_not_evaluated_shows_the_last_known_metrics(self, terminal: bool) -> None:
        console = Console(file=io.StringIO(), width=200, force_terminal=terminal)
        with RoundProgress(3, console=console) as progress:
            progress.update(1, metrics_line(1, **UNEVALUATED))
            progress.update(2, metrics_line(2))
            progress.update(3, metrics_line(3, **UNEVALUATED))
        text = console.file.getvalue()  # type: ignore[attr-defined]
        if terminal:
            last = text.rpartition("loss")[2]
            assert "hr@10 0.0400" in last and "(round 2)" in last
            return
        first, second, third = text.splitlines()
        assert first.endswith("loss 0.7000") and "(round" not in second
        assert third.endswith("loss 0.2333  hr@10 0.0400  ndcg@10 0.0200  rho 0.5000  (round 2)")

    def test_quiet(self) -> None:
        console = Console(file=io.StringIO(), force_terminal=True)
        with RoundProgress(2, console=console, quiet=True) as progress:
            progress.update(2, metrics_line(2))
        with task_progress("fetch", 10, console=console, quiet=True) as advance:
            advance(10)
        assert console.file.getvalue() == ""  # type: ignore[attr-defined]

    @pytest.mark.parametrize("terminal", [True, False])
    @pytest.mark.parametrize("total", [1000, None])
    def test_task(self, terminal: bool, total: int | None) -> None:
        console = Console(file=io.StringIO(), width=100, force_terminal=terminal)
        with task_progress("fetch ml-100k", total, console=console) as advance:
            advance(400)
            advance(600)
        assert "fetch ml-100k" in console.file.getvalue()  # type: ignore[attr-defined]

    def test_units(self) -> None:
        assert (rate_text(0.25), rate_text(2.5), rate_text(0)) == (
            "4.0 rounds/s",
            "2.50 s/round",
            "0.00 s/round",
        )
        assert (clock_text(59.6), clock_text(3725), clock_text(-1)) == ("1:00", "1:02:05", "0:00")


PNG = b"\x89PNG\r\n\x1a\n"


class TestPlots:
    def draw_all(self, lines: list[Json], diagnostics: Json, image_format: drawing.ImageFormat) -> list[bytes]:
        curves = [plots.Curve("fedem", lines, 3), plots.Curve("fedmf", lines[:3])]
        return [
            plots.convergence(curves, example_summary()["controls"], image_format=image_format),
            plots.rho_distribution(lines, diagnostics, image_format=image_format),
            plots.aggregation_weights(diagnostics, image_format=image_format),
            plots.sparsity_groups(diagnostics["groups"], image_format=image_format),
            plots.popularity_histogram(example_lists(), image_format=image_format),
        ]

    def test_images_are_not_empty(self) -> None:
        import matplotlib.image

        lines = [metrics_line(number) for number in range(1, 7)]
        for image in self.draw_all(lines, plain(example_diagnostics()), "png"):
            assert image.startswith(PNG)
            assert matplotlib.image.imread(io.BytesIO(image))[..., :3].std() > 0.05  # more than white paper

    def test_svg_depends_on_the_figures_alone(self) -> None:
        lines = [metrics_line(number) for number in range(1, 4)]
        first = self.draw_all(lines, plain(example_diagnostics()), "svg")
        assert all(b"</svg>" in image for image in first)
        assert first == self.draw_all(lines, plain(example_diagnostics()), "svg")

    def test_missing_and_nan_figures_leave_gaps(self) -> None:
        lines = [
            metrics_line(1, train_loss=math.nan, rho=None, validation=None),
            metrics_line(2, test=None, rho={"mean": 0.4, "std": None}),
            {"round": 3},
        ]
        diagnostics = plain(example_diagnostics())
        diagnostics["weights"]["sample"][0][0] = None
        diagnostics["weights"]["own"] = [None, 0.3]
        diagnostics["rho"]["histograms"]["3"] = [0] * 20
        diagnostics["groups"][0]["hr@10"] = None
        assert all(image.startswith(PNG) for image in self.draw_all(lines, diagnostics, "png"))

    @pytest.mark.parametrize(
        "weights",
        [
            {"sample": [[0.5, 0.5], [0.5, 0.5]], "own": [0.5, 0.5], "nonzero": [2, 2]},  # plain averaging
            {"sample": [[0.0, 0.0], [0.0, 0.0]], "own": [0.0], "nonzero": [0]},
            {"sample": [[1.0, 1e-300], [0.0, 1.0]], "own": None, "nonzero": [1, 900]},
        ],
    )
    def test_degenerate_weights(self, weights: Json) -> None:
        assert plots.aggregation_weights({"weights": weights}, image_format="png").startswith(PNG)

    def test_curves_join_evaluated_rounds_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Few points have markers, many have none; the loss is known in every round."""
        drawn: list[Any] = []
        encode = drawing.image_bytes

        def noted(figure: Any, image_format: drawing.ImageFormat) -> bytes:
            drawn.extend(figure.axes)
            return encode(figure, image_format)

        monkeypatch.setattr(plots, "image_bytes", noted)
        lines = every_third(31)
        plots.convergence([plots.Curve("fedem", lines, 30)], {}, image_format="png")
        loss, hits, _ = (axis.lines for axis in drawn)
        assert len(loss[0].get_xdata()) == 31 and loss[0].get_marker() == ""
        assert [*hits[0].get_xdata()] == [*range(3, 31, 3), 31] and hits[0].get_marker() == "o"
        assert [*hits[2].get_xdata()] == [30], "the reported round"
        plots.rho_distribution(lines, {}, image_format="png")
        assert [*drawn[-1].lines[0].get_xdata()] == [*range(3, 31, 3), 31]
        assert drawing.marker_for(drawing.FEW_POINTS) == ""

    @pytest.mark.parametrize(
        "histogram", [None, {}, {"recommended": [0.5, 0.5]}, {"recommended": [1.0], "consumed": [0.5, 0.5]}]
    )
    def test_histograms_that_cannot_be_drawn(self, histogram: object) -> None:
        with pytest.raises(drawing.NothingToDrawError, match=r"not recorded|not numbers|different groups"):
            plots.popularity_histogram({"popularity_histogram": histogram})

    def test_nothing_to_draw_says_why(self) -> None:
        with pytest.raises(drawing.NothingToDrawError, match="no round"):
            plots.convergence([plots.Curve("fedem", [])], {})
        with pytest.raises(drawing.NothingToDrawError, match="adapter"):
            plots.rho_distribution([metrics_line(1, rho=None)], {"rho": None})
        for weights in (None, {}, {"own": [], "sample": "x", "nonzero": [[1]]}):
            with pytest.raises(drawing.NothingToDrawError, match="not recorded"):
                plots.aggregation_weights({"weights": weights})
        absent: tuple[object, ...] = (None, [], "x")
        for groups in absent:
            with pytest.raises(drawing.NothingToDrawError, match="not recorded"):
                plots.sparsity_groups(groups)

    @given(
        wanted=st.lists(st.floats(0, 1), min_size=1, max_size=8),
    )
    def test_labels_stand_apart_inside_the_axis(self, wanted: list[float]) -> None:
        placed = plots._spread(wanted, 0.1, 0.0, 1.0)
        assert all(-1e-9 <= place <= 1 + 1e-9 for place in placed)
        assert all(gap >= 0.1 - 1e-9 for gap in np.diff(sorted(placed)))


class Page(HTMLParser):
    """What a browser would load from a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.targets: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        loading = ("src", "href", "srcset", "action", "data")
        self.targets += [value or "" for name, value in attrs if name in loading]


class TestReport:
    def test_report_holds_everything(self, tmp_path: Path) -> None:
        run = example_run(tmp_path / "run")
        path = write_report(run.path)
        text = path.read_text(encoding="utf-8")
        assert path == run.path / "report.html"
        assert text.count("data:image/svg+xml;base64,") == 4
        wanted = [
            "beats popularity: yes",
            "0.1200",
            "EASE",
            "108 kB",
            "215 kB",
            "1.43 GB",
            "1.23 s",
            "timed out",
        ]
        wanted += [
            "fedem run configs/ml-100k.toml",
            "Three clients were small.",
            "dataset = &#34;ml-100k&#34;",
        ]
        assert [words for words in wanted if words not in text] == []
        assert "This protocol leaks" not in text

    def test_nothing_is_loaded_from_elsewhere(self, tmp_path: Path) -> None:
        text = render_report(example_run(tmp_path / "run").path)
        page = Page(text)
        assert len(page.targets) == 4
        assert all(target.startswith("data:image/svg+xml;base64,") for target in page.targets)
        assert not page.tags & {"script", "link", "iframe", "object", "base"}
        assert not re.search(r"https?://|url\(|@import", text)
        assert "default-src 'none'" in text
        for target in page.targets:
            image = base64.b64decode(target.partition(",")[2])
            assert not re.search(rb'(href|src)="(?!#|data:)', image)

    def test_texts_are_escaped(self, tmp_path: Path) -> None:
        evil = "<script>alert(1)</script>"
        run = example_run(tmp_path / "run", dataset=evil, method=evil, command=evil, notes=[evil], runtime=evil)
        run.write_config(evil)
        diagnostics = example_diagnostics()
        diagnostics["failures"] = [{"round": evil, "node": evil, "reason": evil}]
        diagnostics["groups"][0]["label"] = evil
        run.write_diagnostics(diagnostics)
        text = render_report(run.path)
        assert "script" not in Page(text).tags
        assert evil not in text
        assert text.count("&lt;script&gt;") >= 9

    def test_a_leaking_protocol_is_called_one(self, tmp_path: Path) -> None:
        text = render_report(example_run(tmp_path / "run", protocol="paper", selected="best_test").path)
        assert "This protocol leaks: " in text
        assert 'class="badge good"' not in text

    @pytest.mark.parametrize("name", ["config.toml", "metrics.jsonl", "summary.json", "diagnostics.json"])
    @pytest.mark.parametrize("damage", ["missing", "half"])
    def test_each_file_may_be_missing_or_cut(
        self, tmp_path: Path, name: str, damage: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "fedem_flwr.report.plots.image_bytes", lambda figure, image_format: b""
        )  # draw, do not encode
        run = example_run(tmp_path / "run")
        if damage == "missing":
            (run.path / name).unlink()
        else:
            content = (run.path / name).read_bytes()
            (run.path / name).write_bytes(content[: len(content) // 2])
        text = render_report(run.path)
        assert "</html>" in text
        if damage == "missing" or name.endswith(".json"):
            assert f"{name} is " in text  # the gap is named

    @pytest.mark.parametrize("key", sorted(example_summary()))
    @pytest.mark.parametrize("gone", [True, False])
    def test_each_field_of_the_summary_may_be_missing(
        self, tmp_path: Path, key: str, gone: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fedem_flwr.report.html._pictures", lambda run, others: [])  # slow, and tested above
        run = example_run(tmp_path / "run")
        summary = example_summary()
        del summary[key]
        run.write_summary(summary if gone else {**summary, key: None})
        assert "</html>" in render_report(run.path)

    def test_each_part_of_the_diagnostics_may_be_missing(self, tmp_path: Path) -> None:
        run = example_run(tmp_path / "run")
        (run.path / "metrics.jsonl").unlink()
        run.write_diagnostics({"rho": None, "weights": None, "groups": None})
        text = render_report(run.path)
        assert text.count("Not drawn: ") == 4

    def test_a_failed_round_of_nan_still_renders(self, tmp_path: Path) -> None:
        run = RunDirectory(tmp_path).create()
        run.append_metrics(metrics_line(1, train_loss=math.nan, test=scores(math.nan, math.nan)))
        metrics = {"best_validation": {"round": 1, **scores(math.nan, math.nan, math.nan, math.nan)}}
        run.write_summary(example_summary(metrics=metrics))
        text = render_report(tmp_path)
        assert "beats popularity: not measured" in text
        assert not re.search(r"\bnan\b", text, flags=re.IGNORECASE)

    def test_sections_that_not_every_run_has(self, tmp_path: Path) -> None:
        run = example_run(tmp_path / "run", comparison=example_comparison(), warnings=["Half the users <left>."])
        bare = render_report(example_run(tmp_path / "bare").path)
        run.write_diagnostics(example_diagnostics() | {"lists": example_lists(), "tuning": example_tuning()})
        mixed = {"rows": [{"weight": 1.0, "ndcg@10": 0.1, "users": 1234.0}], "chosen": {"weight": 1.0}, "round": 9}
        run.write_diagnostics(run.read_diagnostics() | {"mixing": mixed})
        text = render_report(run.path)
        said = [
            "Against EASE-recent, user by user",
            "+0.0040 to +0.0200",
            "excludes 0: better than EASE-recent",
            "excludes 0: worse than EASE-recent",
            "includes 0: not told apart from EASE-recent",
            "mean over 943 users, round 5",
            "What the lists hold",
            "34 % of the catalogue",
            "21 % of the users",
            "by 9.1 %",
            "How the settings were chosen",
            "Chosen: half-life 5, ridge 1. Measured in round 12.",
            "Half the users &lt;left&gt;.",
            'class="warning"',
        ]
        assert [words for words in said if words not in text] == []
        assert [words for words in said if words in bare] == []
        assert len(Page(text).targets) == 5 and text.count("How the settings were chosen") == 1
        chosen, other = re.findall(r"<tr class=chosen>(.*?)</tr>", text)
        assert re.findall(r">([^<]+)<", chosen) == ["5", "1", "0.1050", "900", "chosen"]
        assert re.findall(r">([^<]+)<", other) == ["1", "0.1000", "1,234", "chosen"]

    @pytest.mark.parametrize("part", ["lists", "tuning"])
    @pytest.mark.parametrize("value", ["x", [], {}, {"rows": ["x"]}, {"rows": [{"a": None}], "chosen": 3}])
    def test_odd_sections_do_not_spoil_the_report(
        self, tmp_path: Path, part: str, value: object, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fedem_flwr.report.plots.image_bytes", lambda figure, image_format: b"")
        run = example_run(tmp_path / "run")
        run.write_diagnostics({part: value})
        assert "</html>" in render_report(run.path)
        assert lists_text({part: value}) == ""

    def test_nothing_is_marked_where_nothing_was_chosen(self) -> None:
        (grid,) = tunings_of({"tuning": example_tuning() | {"chosen": {"ridge": 7}}, "mixing": None})
        assert not any(chosen for _, chosen in grid.rows)
        assert grid.heads == ("half-life", "ridge", "NDCG@10", "users")
        (grid,) = tunings_of({"tuning": example_tuning() | {"chosen": None, "round": None}})
        assert not any(chosen for _, chosen in grid.rows)
        assert grid.sentence == "Nothing was chosen."

    def test_rounds_without_an_evaluation_render(self, tmp_path: Path) -> None:
        run = example_run(tmp_path / "run")
        run.truncate_metrics(1)
        for line in every_third(7):
            run.append_metrics(line)
        text = render_report(run.path)
        assert "7 of 6" in text and "fewer users" not in text

    def test_an_empty_directory_is_bad_input(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="holds no run"):
            write_report(tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_against_draws_and_lists_the_other_run(self, tmp_path: Path) -> None:
        run = example_run(tmp_path / "run")
        other = example_run(tmp_path / "other", method="fedmf")
        alone, both = render_report(run.path), render_report(run.path, [other.path])
        assert "fedmf, best validation" in both
        assert "fedmf" not in alone
        assert Page(alone).targets[0] != Page(both).targets[0]  # the convergence plot
        assert Page(alone).targets[1:] == Page(both).targets[1:]

    @pytest.mark.parametrize("change", [{"protocol": "paper"}, {"dataset": "ml-1m"}])
    def test_figures_that_measure_different_things_are_not_mixed(self, tmp_path: Path, change: Json) -> None:
        run = example_run(tmp_path / "run")
        other = example_run(tmp_path / "other", **change)
        with pytest.raises(InputError, match="same data set and protocol"):
            write_report(run.path, [other.path])


# ---- which round is reported


def evaluated(number: int, users: int | None, hits: float, gain: float) -> Json:
    more = {} if users is None else {"evaluated_users": users}
    return {"round": number, "validation": scores(0.1, gain), "test": scores(hits, 0.1), **more}


def test_the_reported_round_is_the_best_among_those_with_the_most_users() -> None:
    lines = [evaluated(1, 40, 0.1, 0.3), evaluated(2, 30, 0.9, 0.9), evaluated(3, 40, 0.2, 0.2)]
    assert selection.reported_line(lines, "strict")["round"] == 1
    assert selection.reported_line(lines, "paper")["round"] == 3
    unsaid = [evaluated(n, None, 0.1 * n, 0.5) for n in (1, 2)]
    assert selection.reported_line(unsaid, "strict")["round"] == 1, "the first of equals"
    assert selection.reported_line(unsaid, "paper")["round"] == 2


def test_rounds_without_an_evaluation_are_not_chosen_and_not_called_a_loss() -> None:
    lines = every_third(8)
    assert selection.reported_line(lines, "strict")["round"] == selection.reported_line(lines, "paper")["round"] == 8
    assert selection.reported_line(lines[:7], "strict")["round"] == 6
    assert selection.partial_text(lines, 943) == ""
    lines[2]["evaluated_users"] = 900
    assert "1 of 3 rounds (3)" in selection.partial_text(lines, 943)
    with pytest.raises(FedemError, match=r"none of 2 rounds was evaluated: .* evaluation\.every") as caught:
        selection.best_line(lines[:2], "best_test")
    assert "\n" not in str(caught.value)
    with pytest.raises(FedemError, match="none of 0 rounds"):
        selection.best_line([], "best_test")


def test_rounds_on_fewer_users_are_named(tmp_path: Path) -> None:
    lines = [metrics_line(n, evaluated_users=943 - 100 * (n in (2, 5))) for n in range(1, 7)]
    assert selection.partial_text([metrics_line(1)], 943) == ""
    assert selection.partial_text([metrics_line(1, evaluated_users=943)], 943) == ""
    note = selection.partial_text(lines, 943)
    assert "2 of 6 rounds (2, 5)" in note and "843 at least, of 943" in note
    run = example_run(tmp_path / "run")
    assert "fewer users" not in render_report(run.path)
    run.truncate_metrics(1)
    for line in lines:
        run.append_metrics(line)
    assert note in render_report(run.path)


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
