"""`fedem tune`: trials until the budget is spent, and what they leave behind."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedem_flwr.config import Tree, merge_trees
from fedem_flwr.experiment.study import Study, Trial
from fedem_flwr.files import quoted, write_atomically
from fedem_flwr.report.steps import clock_text
from fedem_flwr.report.study import experiment_text, page
from fedem_flwr.runtime.lines import Line

REPORT, BEST, TABLE = "study.html", "best.toml", "trials.json"


@dataclass(frozen=True)
class Tuned:
    """What a study came to.

    Attributes:
        best: the best trial. trials: all of them. importances: see `Study.importances`.
        experiment, report: files that were written.
    """

    best: Trial
    trials: list[Trial]
    importances: dict[str, float]
    experiment: Path
    report: Path


def carry_out(
    study: Study,
    trials: int | None,
    minutes: float | None,
    say: Callable[[str], None],
    watch: Callable[[int], AbstractContextManager[Callable[[Line], None]]] = lambda _: nullcontext(lambda _: None),
) -> Tuned:
    """Trials until so many are done in all, or for so long in this process; then write what came of them.

    Args:
        say: told a line after each trial. watch: given a trial's number here, what is told its metrics lines.

    Raises:
        InputError: no trial has a finite value.
    """
    began = time.monotonic()
    ends = None if minutes is None else began + 60 * minutes
    own = 0
    while ends is None or time.monotonic() < ends:
        with watch(own + 1) as on_line:
            done = study.one_more(trials, on_line)
        if done is None:
            break
        own += 1
        say(_told(study, done, own, trials, began, ends))
    return leave(study)


def leave(study: Study) -> Tuned:
    """Write best.toml, trials.json and study.html into the study's folder."""
    best, trials, importances = study.best(), study.trials(), study.importances()
    finished = [trial for trial in trials if trial.finished and not trial.lost]
    folder, name = study.folder, study.config.method.name
    said = [
        f"fedem run {quoted(folder / BEST)}",
        f"The best of {len(finished)} trials of {name} on {study.split.dataset} under strict: trial {best.number}, "
        f"validation NDCG@10 {best.value:.6f} in round {best.round}.",
    ]
    write_atomically(folder / BEST, experiment_text(from_anywhere(study.experiment(best.params)), said))
    rows: list[dict[str, Any]] = [asdict(trial) for trial in trials if trial.finished]
    write_atomically(folder / TABLE, json.dumps({"importances": importances, "trials": rows}, indent=2) + "\n")
    preset = next((trial.value for trial in finished), None)
    facts = {
        "data set": f"{study.split.dataset}, {study.split.users:,} × {study.split.items:,}",
        "trials": f"{len(finished)}, of which {sum(trial.value is None for trial in finished)} without a value",
        "best, validation NDCG@10": f"{best.value:.4f} (trial {best.number}, round {best.round})",
        "the preset's": "none" if preset is None else f"{preset:.4f}",
        "seconds in all": f"{sum(trial.seconds or 0 for trial in finished):.0f}",
        "seed": str(study.config.run.seed),
    }
    text = page(f"Tuning {name} on {study.split.dataset}", facts, rows, best.number, importances)
    write_atomically(folder / REPORT, text)
    return Tuned(best, trials, importances, folder / BEST, folder / REPORT)


def from_anywhere(tree: Tree) -> Tree:
    """An experiment whose data set, where it is a file, has its whole path: a file's paths are relative to itself."""
    name = tree.get("data", {}).get("dataset")
    if not name or not (path := Path(name).expanduser()).is_file():
        return tree
    return merge_trees(tree, {"data": {"dataset": str(path.absolute())}})


def _told(study: Study, done: Trial, own: int, trials: int | None, began: float, ends: float | None) -> str:
    now = time.monotonic()
    pace = (now - began) / own
    scored = [trial for trial in study.trials() if trial.value is not None]
    best = max(scored, key=lambda trial: trial.value or 0.0, default=None)
    value = done.reason if done.value is None else f"NDCG@10 {done.value:.4f}"
    high = "" if best is None else f", best {best.value:.4f} (trial {best.number})"
    finished = sum(trial.finished and not trial.lost for trial in study.trials())
    left = [] if trials is None else [pace * max(0, trials - finished)]
    left += [] if ends is None else [max(0.0, ends - now)]
    of = "" if trials is None else f" of {trials}"
    return (
        f"trial {done.number}: {value}{high}; {finished}{of} done, {pace:.1f} s each, "
        f"ETA {clock_text(min(left, default=0.0))}"
    )
