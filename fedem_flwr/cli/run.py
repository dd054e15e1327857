"""`fedem run` and `fedem resume`, behind their options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedem_flwr.cli.options import experiment_tree
from fedem_flwr.config import Tree
from fedem_flwr.errors import Interrupted
from fedem_flwr.experiment import flow
from fedem_flwr.experiment.plan import plan
from fedem_flwr.experiment.remarks import opening
from fedem_flwr.files import quoted
from fedem_flwr.protocol.shards import Federation
from fedem_flwr.report.labels import left_out, sample_text
from fedem_flwr.report.search import search_text
from fedem_flwr.report.tables import result_table
from fedem_flwr.terminal import console

_out = console()
_err = console(stderr=True)


def run(
    experiment: str | None,
    options: Tree,
    out: Path | None,
    against: Sequence[str],
    *,
    overwrite: bool,
    quiet: bool,
    federation: Path | None = None,
) -> None:
    """`fedem run`: one run, or one for each further method, then one table and one report.

    Args:
        federation: describes data that are on nodes elsewhere; they are not opened here.
    """
    tree, origin = experiment_tree(experiment)
    known = None if federation is None else Federation.load(federation)
    asked = plan(tree, options, [{"name": name} for name in against], origin=origin, federation=known)
    with flow.prepare(asked, out, overwrite=overwrite, console=_shown(quiet)) as runs:
        if not quiet:
            _err.print(opening(runs.main), markup=False, soft_wrap=True)
        _carry_out(runs, quiet=quiet)


def resume(run_dir: Path, back_to: int | None, *, quiet: bool, trusted: bool) -> None:
    """`fedem resume`: continue from the newest checkpoint, the runs beside it included; or from an earlier one."""
    with flow.reopen(run_dir, back_to, trusted=trusted) as runs:
        _carry_out(runs, quiet=quiet, resume=True)


def _carry_out(runs: flow.Runs, *, quiet: bool, resume: bool = False) -> None:
    """Carry out the runs and show them together."""
    try:
        report = flow.carry_out(runs, console=_shown(quiet), resume=resume)
    except KeyboardInterrupt:
        place = quoted(runs.main.directory.path)
        raise Interrupted(f"interrupted; continue with `fedem resume {place}`") from None
    main, *others = (each.directory.read_summary() for each in (runs.main, *runs.beside))
    _out.print(result_table(main, others))
    for line in (search_text(main), sample_text(main), *left_out(main.get("controls"))):
        if line:
            _out.print(line, soft_wrap=True)
    _out.print(f"report: {report}", soft_wrap=True)


def _shown(quiet: bool) -> Console | None:
    return None if quiet else _err
