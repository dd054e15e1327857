"""The report renders whatever a run left behind, and loads nothing from elsewhere."""

from __future__ import annotations

import base64
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from example_runs import (
    Json,
    every_third,
    example_comparison,
    example_diagnostics,
    example_lists,
    example_run,
    example_summary,
    example_tuning,
    metrics_line,
    scores,
)

from fedem_flwr.errors import InputError
from fedem_flwr.report import RunDirectory
from fedem_flwr.report.html import render_report, write_report
from fedem_flwr.report.sections import lists_text, tunings_of


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


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the example run, pictures included."""
    run = example_run(tmp_path_factory.mktemp("written") / "run")
    path = write_report(run.path)
    assert path == run.path / "report.html"
    return path


class TestReport:
    def test_report_holds_everything(self, written: Path) -> None:
        text = written.read_text(encoding="utf-8")
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

    def test_nothing_is_loaded_from_elsewhere(self, written: Path) -> None:
        text = written.read_text(encoding="utf-8")
        page = Page(text)
        assert len(page.targets) == 4
        assert all(target.startswith("data:image/svg+xml;base64,") for target in page.targets)
        assert not page.tags & {"script", "link", "iframe", "object", "base"}
        assert not re.search(r"https?://|url\(|@import", text)
        assert "default-src 'none'" in text
        for target in page.targets:
            image = base64.b64decode(target.partition(",")[2])
            assert not re.search(rb'(href|src)="(?!#|data:)', image)

    @pytest.mark.usefixtures("undrawn")
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

    @pytest.mark.usefixtures("undrawn")
    def test_a_leaking_protocol_is_called_one(self, tmp_path: Path) -> None:
        text = render_report(example_run(tmp_path / "run", protocol="paper", selected="best_test").path)
        assert "This protocol leaks: " in text
        assert 'class="badge good"' not in text

    @pytest.mark.parametrize("name", ["config.toml", "metrics.jsonl", "summary.json", "diagnostics.json"])
    @pytest.mark.parametrize("damage", ["missing", "half"])
    @pytest.mark.usefixtures("undrawn")
    def test_each_file_may_be_missing_or_cut(self, tmp_path: Path, name: str, damage: str) -> None:
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

    @pytest.mark.usefixtures("undrawn")
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
    @pytest.mark.usefixtures("undrawn")
    def test_odd_sections_do_not_spoil_the_report(self, tmp_path: Path, part: str, value: object) -> None:
        run = example_run(tmp_path / "run")
        run.write_diagnostics({part: value})
        assert "</html>" in render_report(run.path)
        assert lists_text({part: value}) == ""

    def test_what_lists_hold_is_said(self) -> None:
        said = lists_text({"lists": example_lists()})
        assert (
            "1.5 % of what is listed is among the least popular" in said
            and "0.921 (0: " in said
            and "3.46 bits" in said
        )

    def test_nothing_is_marked_where_nothing_was_chosen(self) -> None:
        (grid,) = tunings_of({"tuning": example_tuning() | {"chosen": {"ridge": 7}}, "mixing": None})
        assert not any(chosen for _, chosen in grid.rows)
        assert grid.heads == ("half-life", "ridge", "NDCG@10", "users")
        (grid,) = tunings_of({"tuning": example_tuning() | {"chosen": None, "round": None}})
        assert not any(chosen for _, chosen in grid.rows)
        assert grid.sentence == "Nothing was chosen."

    @pytest.mark.usefixtures("undrawn")
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

    def test_against_draws_and_lists_the_other_run(self, written: Path, tmp_path: Path) -> None:
        other = example_run(tmp_path / "other", method="fedmf")
        alone, both = written.read_text(encoding="utf-8"), render_report(written.parent, [other.path])
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
