"""What every run leaves behind once its rounds are done: controls, users' figures, diagnostics, summary and report."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedem_flwr.evaluation.control_cache import split_hash
from fedem_flwr.evaluation.lists import served
from fedem_flwr.experiment.controls import controls_of, per_user
from fedem_flwr.experiment.guarantee import kept
from fedem_flwr.experiment.outcome import diagnose, summarise
from fedem_flwr.experiment.remarks import notes_of
from fedem_flwr.report.html import write_report
from fedem_flwr.report.per_user import PerUser
from fedem_flwr.report.search import search_of
from fedem_flwr.runtime.loop import Outcome
from fedem_flwr.runtime.prepared import PreparedRun
from fedem_flwr.serving.served import ServedModel, look_at, with_served


def finish(run: PreparedRun, outcome: Outcome, on_round: Callable[[int], None]) -> Path:
    """Compute the controls, where the data are here, and write users' figures, diagnostics, summary and report.

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
    comparison, lists = _look(run, model, controls) if here else (None, None)
    diagnostics = with_served(diagnose(run, lines, outcome), model)
    directory.write_diagnostics({**diagnostics, "lists": lists})
    ldp, guarantee = kept(run)
    searched = {"search": search_of(lines, diagnostics)}
    notes = [*filter(None, [guarantee]), *notes_of(run, controls)]
    directory.write_summary({**summarise(run, lines, outcome, controls, comparison, notes), "ldp": ldp, **searched})
    return write_report(directory.path)


def _look(
    run: PreparedRun, model: ServedModel, controls: dict[str, Any]
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Score everybody once more, keep each user's figures, and say what is seen."""
    split, of_controls = run.split, per_user(run.split, run.config)
    found = served(split, model.scorers())
    people = hashlib.sha256("\n".join(split.user_ids.tolist()).encode()).hexdigest()
    PerUser(split_hash(split), people, model.point.round, found.ranks, of_controls).save(run.directory.path)
    return look_at(model, controls, of_controls, found)
