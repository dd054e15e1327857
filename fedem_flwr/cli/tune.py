"""`fedem tune`: look for a method's settings on validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer


def tune(
    method: Annotated[str, typer.Argument(help="a preset of configs/methods")],
    dataset: Annotated[str | None, typer.Option(help="a known name, or the path of a delimited file")] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="of the study in all, whoever carries them out; default: 20")
    ] = None,
    minutes: Annotated[float | None, typer.Option(min=0.01, help="begin no trial after so long, here")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="rounds of each trial")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="of the split, of every trial, and of the search")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="folder with known data sets")] = None,
    out: Annotated[
        Path | None, typer.Option(help="the study's folder; one that is there goes on. Default: under studies/")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress, only the result")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="a fixed value, as section.key=value; may be repeated"),
    ] = None,
) -> None:
    """Look for a method's settings on validation, and write an experiment for `fedem run`.

    Each trial is a run on the same split, scored by its best round's validation NDCG@10 under strict. Start the same
    command again to go on after a kill, or several times at once to share the trials.
    """
    from fedem_flwr.cli.options import options_tree, quiet_libraries
    from fedem_flwr.experiment.study import Study
    from fedem_flwr.experiment.tune import carry_out
    from fedem_flwr.report.progress import RoundProgress
    from fedem_flwr.report.steps import steps_shown
    from fedem_flwr.report.study import trial_rows
    from fedem_flwr.report.tables import audit_table
    from fedem_flwr.runtime.lines import Line
    from fedem_flwr.terminal import console

    quiet_libraries()
    options = options_tree(
        {
            "data": {"dataset": dataset, "data_dir": None if data_dir is None else str(data_dir)},
            "method": {"name": method},
            "run": {"rounds": rounds, "seed": seed},
        },
        settings or [],
    )
    shown, result = console(stderr=True), console()
    named = Path(dataset).stem if dataset else "synthetic"
    with steps_shown(quiet=quiet, console=shown):
        study = Study.open(out or Path("studies") / f"{method}-{named}", options)
    if trials is None and minutes is None:
        trials = 20
    if not quiet:
        budget = [*([f"{trials} trials"] if trials else []), *([f"{minutes:g} minutes"] if minutes else [])]
        looked_for = ", ".join(f"{each.path} {each.low:g} to {each.high:g}" for each in study.space)
        shown.print(
            f"tuning {method} on {study.split.dataset}, {' or '.join(budget)} of {study.config.run.rounds} rounds, "
            f"into {study.folder}\nlooked for: {looked_for}",
            soft_wrap=True,
        )

    @contextmanager
    def watch(place: int) -> Iterator[Callable[[Line], None]]:
        """A bar for the rounds of a trial, where there is a terminal; else its line at the end is enough."""
        silent = quiet or not shown.is_terminal
        name = f"trial {place} here"
        with RoundProgress(study.config.run.rounds, description=name, quiet=silent, console=shown) as bar:
            yield lambda line: bar.update(int(line["round"]), line)

    def say(line: str) -> None:
        if not quiet:
            shown.print(line, soft_wrap=True)

    found = carry_out(study, trials, minutes, say, watch)
    rows = trial_rows([vars(trial) for trial in found.trials if trial.finished], found.best.number)
    weights = ", ".join(f"{name} {share:.0%}" for name, share in found.importances.items()) or "too few trials to say"
    result.print(
        audit_table(rows, title=f"{method} on {study.split.dataset}, validation", caption=f"importances: {weights}")
    )
    result.print(f"report: {found.report}", soft_wrap=True)
    result.print(f"the best settings: fedem run {found.experiment}", soft_wrap=True)
