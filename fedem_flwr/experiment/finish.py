"""What every run leaves behind once its rounds are done: controls, diagnostics.json, summary.json and report.html."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedem_flwr.experiment.controls import controls_of, per_user
from fedem_flwr.experiment.guarantee import kept
from fedem_flwr.experiment.outcome import diagnose, summarise
from fedem_flwr.experiment.remarks import notes_of
from fedem_flwr.report.html import write_report
from fedem_flwr.runtime.loop import Outcome
from fedem_flwr.runtime.prepared import PreparedRun
from fedem_flwr.serving.served import ServedModel, look_at, with_served


def finish(run: PreparedRun, outcome: Outcome, on_round: Callable[[int], None]) -> Path:
    """Compute the controls, where the data are here, and write diagnostics, summary and report.

    Args:
        outcome: of the rounds, whose metrics lines and checkpoint are in the run's directory.
        on_round: told how many rounds of the local-only control are done.

    Returns:
        The path of the report.
    """
    directory, here = run.directory, run.has_data
    controls: dict[str, Any] = controls_of(run.split, run.config, on_round) if here else {}
    lines = directory.read_metrics()
    model = ServedModel.open(run)
    comparison, lists = look_at(model, controls, per_user(run.split, run.config)) if here else (None, None)
    directory.write_diagnostics({**with_served(diagnose(run, lines, outcome), model), "lists": lists})
    ldp, guarantee = kept(run)
    notes = [*filter(None, [guarantee]), *notes_of(run, controls)]
    directory.write_summary({**summarise(run, lines, outcome, controls, comparison, notes), "ldp": ldp})
    return write_report(directory.path)
