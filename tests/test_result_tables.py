"""Result tables, verdicts and comparisons: what a run's summary says in words and columns."""

from __future__ import annotations

import io
import math
import re

import pytest
from example_runs import example_comparison, example_summary, scores
from rich.console import Console

from fedem_flwr.report.comparison import comparison_of, comparison_text, signed
from fedem_flwr.report.labels import control_rows, settings_text
from fedem_flwr.report.run_directory import number_at
from fedem_flwr.report.tables import audit_table, bytes_text, result_rows, result_table, verdict


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
