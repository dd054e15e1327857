"""A comparison, from its cells or runs to the folder that it leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from fedem_flwr.errors import InputError
from fedem_flwr.leaderboard.cells import Prepared, prepare, read_record
from fedem_flwr.leaderboard.display import CellProgress
from fedem_flwr.leaderboard.folder import Folder
from fedem_flwr.leaderboard.gather import Record, Table, readable, records_of, samples_said, tables_of
from fedem_flwr.leaderboard.grid import Cell, Name
from fedem_flwr.leaderboard.pace import Pace
from fedem_flwr.leaderboard.probe import Estimate, estimates
from fedem_flwr.leaderboard.ray_cells import check_parallel
from fedem_flwr.leaderboard.schedule import Schedule, cores, threads_of
from fedem_flwr.leaderboard.writing import write_leaderboard
from fedem_flwr.report.progress import task_progress


@dataclass(frozen=True)
class Compared:
    """What came of a comparison.

    Attributes:
        failed: cells that did not finish, and why. left_out: cells that their data do not allow, and why.
        reused: how many had finished before.
    """

    folder: Folder
    records: Sequence[Record]
    tables: Sequence[Table]
    failed: Mapping[str, str]
    left_out: Mapping[str, str]
    reused: int = 0


def default_jobs() -> int:
    """Cells at a time where nobody says: as many as this process may use cores; memory may allow fewer."""
    return cores()


def compare_cells(
    cells: Sequence[Cell],
    path: Path,
    *,
    jobs: int,
    command: str = "",
    console: Console | None = None,
    parallel: str = "processes",
) -> Compared:
    """Carry out what is missing of a grid, and write the leaderboard of what there is.

    Args:
        path: the leaderboard's folder.
        jobs: cells at a time, at most.
        command: what the page says made it.
        console: where progress is shown; nowhere if None.
        parallel: what starts the cells' processes: this one ("processes"), or tasks of Ray ("ray").

    Raises:
        InputError: data or a folder that will not do, no cell that the data allow, or no Ray. FedemError: no space is
            left.
    """
    way = check_parallel(parallel)
    folder = Folder(path)
    with folder.held() as lock:
        ready, left_out = _prepared(cells, folder, console)
        missing = [cell for cell in ready if not cell.finished]
        pace = Pace.of(ready)
        schedule = Schedule(folder, jobs, command, lock, pace, way)
        rounds = sum(cell.config.run.rounds for cell in missing)
        with CellProgress(len(missing), rounds, jobs, console) as progress:
            schedule.carry_out(missing, progress)
        records, damaged = readable([cell.directory for cell in ready if cell.finished])
        failed = {str(cell.name): why for cell, why in schedule.failed.items()}
        without = {str(name): why for name, why in left_out.items()}
        done = len(ready) - len(missing)
        compared = Compared(folder, records, tables_of(records), {**failed, **damaged}, without, done)
        _write(compared, command)
        return compared


def dry_run(
    cells: Sequence[Cell], path: Path, *, jobs: int, console: Console | None = None
) -> tuple[list[Estimate], Mapping[Name, str]]:
    """What a grid would take, and the cells that it would leave out; only splits are made."""
    folder = Folder(path)
    with folder.held():
        ready, left_out = _prepared(cells, folder, console)

        def tell(what: str) -> None:
            if console is not None:
                console.print(f"probing {what} ...", soft_wrap=True)

        return estimates(ready, Pace.of(ready), threads_of(jobs), tell), left_out


def compare_runs(paths: Sequence[Path], path: Path, command: str = "") -> Compared:
    """The leaderboard of runs that exist already.

    Raises:
        InputError: some have not finished, or two of them are one cell.
    """
    folder = Folder(path)
    records = records_of(paths)
    with folder.held():
        compared = Compared(folder, records, tables_of(records), {}, {})
        _write(compared, command)
        return compared


def _write(compared: Compared, command: str) -> None:
    """All forms of the leaderboard, where anything has finished."""
    if not compared.tables:
        return
    remarks = [f"Left out: {name}: {why}." for name, why in compared.left_out.items()]
    remarks += [f"Failed: {name}: {why}." for name, why in compared.failed.items()]
    beside = max((int(read_record(record.directory).get("beside", 1)) for record in compared.records), default=1)
    if beside > 1:
        remarks.append(f"Seconds were measured with up to {beside} runs at a time on one machine.")
    remarks += samples_said(compared.tables)
    write_leaderboard(compared.folder, compared.tables, remarks=remarks, command=command)


def _prepared(cells: Sequence[Cell], folder: Folder, console: Console | None) -> tuple[list[Prepared], dict[Name, str]]:
    with task_progress(
        "splits of the cells", len(cells), in_bytes=False, quiet=console is None, console=console
    ) as advance:
        ready, left_out = prepare(cells, folder, lambda _: advance(1))
    if not ready:
        why = next(iter(left_out.values()))
        raise InputError(f"none of {len(cells)} cells can be carried out: {why}")
    return ready, left_out
