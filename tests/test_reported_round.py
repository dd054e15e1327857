"""Which round is reported, and what is said of rounds on fewer users."""

from __future__ import annotations

from pathlib import Path

import pytest
from example_runs import Json, every_third, example_run, metrics_line, scores

from fedem_flwr.errors import FedemError
from fedem_flwr.report import selection
from fedem_flwr.report.html import render_report


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


@pytest.mark.usefixtures("undrawn")
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
