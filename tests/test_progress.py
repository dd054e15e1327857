"""Progress of rounds and tasks, on a terminal and in a log."""

from __future__ import annotations

import io

import pytest
from example_runs import UNEVALUATED, metrics_line
from rich.console import Console

from fedem_flwr.report.progress import RoundProgress, clock_text, rate_text, task_progress


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
