"""What every run leaves behind once its rounds are done: controls, users' figures, diagnostics, summary and report."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedem_flwr.evaluation.control_cache import split_hash
from fedem_flwr.evaluation.lists import served
from fedem_flwr.experiment.bottleneck import shares
from fedem_flwr.experiment.controls import controls_of, per_user
from fedem_flwr.experiment.guarantee import kept
from fedem_flwr.experiment.newcomers import TEMPORAL, described, drawn, groups_of
from fedem_flwr.experiment.outcome import Tested, diagnose, summarise
from fedem_flwr.experiment.remarks import notes_of
from fedem_flwr.experiment.tables_of_one import tables_of_one
from fedem_flwr.protocol.split import Split
from fedem_flwr.report.html import write_report
from fedem_flwr.report.per_user import PerUser
from fedem_flwr.report.search import search_of
from fedem_flwr.runtime.loop import Outcome
from fedem_flwr.runtime.prepared import PreparedRun
from fedem_flwr.serving.served import ServedModel, look_at, with_served


def finish(run: PreparedRun, outcome: Outcome, on_round: Callable[[int], None], tested: Tested | None = None) -> Path:
    """Compute the controls, where the data are here, and write users' figures, diagnostics, summary and report.

    Args:
        outcome: of the rounds, whose metrics lines and checkpoint are in the run's directory.
        on_round: told how many rounds of the local-only control are done.
        tested: the second training, where the protocol has one: what is reported, and served, is its model.

    Returns:
        The path of the report.
    """
    directory, here = run.directory, run.has_data
    last, choose = (run, None) if tested is None else (tested.run, run.split)
    controls: dict[str, Any] = controls_of(last.split, run.config, on_round, choose) if here else {}
    lines = directory.read_metrics()
    model = ServedModel.open(last)
    looked = _look(run, model, controls, choose) if here else _Looked(None, None, [])
    diagnostics = with_served(diagnose(run, lines, outcome), model)
    tables = tables_of_one(model) if here else None
    shown = {**diagnostics, "lists": looked.lists, "bottleneck": shares(directory.path), "tables": tables}
    directory.write_diagnostics({**shown, "groups": drawn(looked.groups)} if looked.groups else shown)
    ldp, guarantee = kept(run)
    notes = [*filter(None, [guarantee]), *notes_of(last, controls)]
    summary = summarise(run, lines, outcome, controls, looked.comparison, notes, tested)
    served = {} if tested is None else {TEMPORAL: described(tested.run, looked.groups)}
    searched = {"search": search_of(lines, diagnostics)}
    directory.write_summary({**summary, **served, "ldp": ldp, **searched})
    return write_report(directory.path)


@dataclass(frozen=True)
class _Looked:
    """What the experimenter, who has the data, sees of the served model."""

    comparison: dict[str, Any] | None
    lists: dict[str, Any] | None
    groups: list[dict[str, Any]]


def _look(run: PreparedRun, model: ServedModel, controls: dict[str, Any], choose: Split | None) -> _Looked:
    """Score everybody once more, keep each user's figures, and say what is seen."""
    split = model.run.split
    of_controls = per_user(split, run.config, choose)
    found = served(split, model.scorers())
    people = hashlib.sha256("\n".join(split.user_ids.tolist()).encode()).hexdigest()
    PerUser(split_hash(split), people, model.point.round, found.ranks, of_controls).save(run.directory.path)
    groups = groups_of(split, run.config.method.name, found, of_controls) if choose is not None else []
    return _Looked(*look_at(model, controls, of_controls, found), groups)
