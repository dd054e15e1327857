"""`fedem compare`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table as Shown

from fedem_flwr.errors import FedemError, InputError, Interrupted

if TYPE_CHECKING:
    from fedem_flwr.config import Tree
    from fedem_flwr.leaderboard.compare import Compared
    from fedem_flwr.leaderboard.grid import Axes, Name
    from fedem_flwr.leaderboard.probe import Estimate


def compare(
    what: Annotated[
        list[str] | None, typer.Argument(help="a TOML file, a shipped experiment, or directories of finished runs")
    ] = None,
    methods: Annotated[str | None, typer.Option(help="presets of configs/methods, separated by commas")] = None,
    datasets: Annotated[str | None, typer.Option(help="known names or paths, separated by commas")] = None,
    protocols: Annotated[str | None, typer.Option(help="strict, paper, temporal, separated by commas")] = None,
    seeds: Annotated[str | None, typer.Option(help="how many, from 0 on; or a list, as in 0,3,7")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="rounds of training, instead of each method's own")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="cells at a time, at most; default: one a core, as far as memory goes")
    ] = None,
    parallel: Annotated[str, typer.Option(help="processes, or ray: cells as tasks of Ray")] = "processes",
    out: Annotated[
        Path | None, typer.Option(help="the leaderboard's folder; default: leaderboards/EXPERIMENT or .../comparison")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="folder with known data sets; default: $FEDEM_DATA, the cache, a download")
    ] = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="only say what it would take, from quick probes")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress, only the result")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="a setting of all cells, as section.key=value; may be repeated"),
    ] = None,
) -> None:
    """Compare methods over data sets, protocols and seeds: a grid of runs, and a leaderboard of what is finished.

    WHAT is an experiment (a TOML file, or one that ships), or directories of finished runs.
    """
    axes = _names(methods), _names(datasets), _names(protocols), _seeds(seeds)
    try:
        _compare(
            list(what or []), axes, settings or [], rounds, device, data_dir, jobs, out, parallel, dry=dry, quiet=quiet
        )
    except KeyboardInterrupt:
        raise Interrupted("interrupted; the same command goes on where this one was") from None


def _compare(
    given: Sequence[str],
    asked: tuple[list[str], list[str], list[str], list[int] | int | None],
    settings: Sequence[str],
    rounds: int | None,
    device: str | None,
    data_dir: Path | None,
    jobs: int | None,
    out: Path | None,
    parallel: str,
    *,
    dry: bool,
    quiet: bool,
) -> None:
    from fedem_flwr.cli.options import options_tree
    from fedem_flwr.leaderboard.grid import Axes

    axes = Axes(*asked)
    options = options_tree(
        {"data": {"data_dir": data_dir and str(data_dir)}, "run": {"rounds": rounds, "device": device}}, settings
    )
    runs = [Path(each).expanduser() for each in given if Path(each).expanduser().is_dir()]
    if runs:
        if len(runs) < len(given) or any(asked) or options or dry:
            raise InputError(
                f"{runs[0]} is a run's directory: give such directories alone, without options of a grid, or an "
                "experiment"
            )
        _compare_runs(runs, out)
        return
    if len(given) > 1:
        wrong = next((each for each in given if not Path(each).exists()), given[1])
        raise InputError(f"{wrong}: give one experiment, or directories of finished runs")
    _compare_grid(given[0] if given else None, options, axes, jobs, out, parallel, dry=dry, quiet=quiet)


def _names(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _seeds(text: str | None) -> list[int] | int | None:
    if text is None:
        return None
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        raise InputError(f"--seeds {text}: write how many, as in 5, or a list, as in 0,3,7") from None
    return numbers[0] if "," not in text else numbers


def _compare_runs(runs: Sequence[Path], out: Path | None) -> None:
    from fedem_flwr.leaderboard.compare import compare_runs
    from fedem_flwr.leaderboard.folder import DEFAULT_ROOT

    _show(compare_runs(runs, out or DEFAULT_ROOT / "runs", shlex.join(["fedem", *sys.argv[1:]])))


def _compare_grid(
    experiment: str | None,
    options: Tree,
    axes: Axes,
    jobs: int | None,
    out: Path | None,
    parallel: str,
    *,
    dry: bool,
    quiet: bool,
) -> None:
    from fedem_flwr.cli.options import experiment_tree
    from fedem_flwr.leaderboard.compare import compare_cells, default_jobs, dry_run
    from fedem_flwr.leaderboard.folder import DEFAULT_ROOT, Folder
    from fedem_flwr.leaderboard.grid import cells_of
    from fedem_flwr.leaderboard.ray_cells import check_parallel
    from fedem_flwr.terminal import console

    check_parallel(parallel)
    tree, origin = experiment_tree(experiment)
    cells = cells_of(tree, options, axes, origin=origin)
    path = out or DEFAULT_ROOT / (Path(experiment).stem if experiment else "comparison")
    Folder(path).check()  # before anything is said or read
    at_a_time = jobs or default_jobs()
    shown = None if quiet else console(stderr=True)
    if dry:
        _show_estimates(*dry_run(cells, path, jobs=at_a_time, console=shown), at_a_time)
        return
    if shown is not None:
        shown.print(f"{_counted(len(cells))}, up to {at_a_time} at a time, into {path}", soft_wrap=True)
    command = shlex.join(["fedem", *sys.argv[1:]])
    _show(compare_cells(cells, path, jobs=at_a_time, command=command, console=shown, parallel=parallel))


def _counted(cells: int) -> str:
    return "1 cell" if cells == 1 else f"{cells} cells"


def _show(compared: Compared) -> None:
    """The tables, what failed, and where all of it lies; the exit code says whether something failed."""
    from fedem_flwr.leaderboard.tables import terminal_table
    from fedem_flwr.terminal import console

    out = console()
    for table in compared.tables:
        out.print(terminal_table(table))
    for name, why in compared.left_out.items():
        out.print(f"left out: {name}: {why}", soft_wrap=True)
    for name, why in compared.failed.items():
        out.print(f"FAILED: {name}: {why}", soft_wrap=True)
    if compared.tables:
        out.print(f"leaderboard: {compared.folder.path / 'leaderboard.html'}", soft_wrap=True)
    if compared.failed:
        again = "it" if len(compared.failed) == 1 else "them"
        raise FedemError(f"{_counted(len(compared.failed))} failed; the same command tries {again} again")


def _show_estimates(found: Sequence[Estimate], left_out: Mapping[Name, str], jobs: int) -> None:
    from fedem_flwr.leaderboard.probe import total_seconds
    from fedem_flwr.report.steps import clock_text
    from fedem_flwr.report.tables import bytes_text
    from fedem_flwr.terminal import console

    table = Shown("cell", "rounds", "time", "memory", "from")
    for each in found:
        time = "?" if each.seconds is None else clock_text(each.seconds)
        rounds = str(each.cell.config.run.rounds)
        table.add_row(str(each.cell.name), rounds, time, bytes_text(each.memory), each.how)
    out = console()
    out.print(table)
    for name, why in left_out.items():
        out.print(f"left out: {name}: {why}", soft_wrap=True)
    unknown = sum(each.seconds is None for each in found)
    aside = f", and {_counted(unknown)} of unknown time" if unknown else ""
    out.print(
        f"{_counted(len(found))}, {sum(each.how == 'finished' for each in found)} finished; about "
        f"{clock_text(total_seconds(found, jobs))} with {jobs} at a time{aside}",
        soft_wrap=True,
    )
