"""The flow of an experiment, from what was asked for to the report: the command line and the Python call share it.

`prepare` takes what `experiment.plan` has resolved and checked, claims the directory, reads the data and writes what a
run starts from; `carry_out` trains, measures and reports. `reopen` gives the runs of a directory to go on with.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import torch
from rich.console import Console

from fedem_flwr.config import Config
from fedem_flwr.data import Source
from fedem_flwr.engine.device import resolve_device
from fedem_flwr.errors import InputError
from fedem_flwr.experiment.controls import control_rounds
from fedem_flwr.experiment.finish import finish
from fedem_flwr.experiment.outcome import Tested
from fedem_flwr.experiment.plan import Experiment
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.experiment.second import second_of
from fedem_flwr.experiment.tracking import tracked
from fedem_flwr.files import remove_if_empty
from fedem_flwr.locking import WAIT, Lock, lock_run
from fedem_flwr.network import NETWORK_FOLDER
from fedem_flwr.nodes.host import SPLIT_FOLDER
from fedem_flwr.protocol.shards import FEDERATION_FOLDER, Federation
from fedem_flwr.protocol.split import Split
from fedem_flwr.protocol.temporal import SECOND
from fedem_flwr.pulse import tell, watched_by
from fedem_flwr.report.html import write_report
from fedem_flwr.report.progress import RoundProgress
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.report.run_path import new_run_path
from fedem_flwr.report.steps import steps_shown
from fedem_flwr.runtime.checkpoint import Checkpoints
from fedem_flwr.runtime.inputs import adapted, split_into
from fedem_flwr.runtime.lines import Line
from fedem_flwr.runtime.prepared import PreparedRun, checkpointed

AGAINST = "against"  # folder of a run that holds the runs beside it


@dataclass(frozen=True)
class Runs:
    """A prepared run, and those beside it; their directories are this process's until the block ends."""

    main: PreparedRun
    beside: tuple[PreparedRun, ...] = ()
    held: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.held.close()


def prepare(
    asked: Experiment,
    out: Path | None,
    *,
    overwrite: bool = False,
    source: Source | None = None,
    command: str = "",
    console: Console | None = None,
) -> Runs:
    """Claim the directory, read and split the data, and write what the runs start from.

    Args:
        out: the run's directory; a new one under runs/ where None.
        overwrite: replace a run that is there, once the new one's data have been read.
        source: the data, where they are not those that the configuration names.
        command: what the report says made the run; by default this process's `fedem` command.
        console: where progress is shown; nowhere if None.

    Raises:
        InputError: the directory or the data will not do; then nothing is left behind.
    """
    config, others, known = asked.config, asked.others, asked.federation
    with ExitStack() as held:
        directory, lock = _claim(config, out, held, overwrite=overwrite)
        fresh = directory.path / f"{SPLIT_FOLDER}.new"
        held.callback(shutil.rmtree, fresh, ignore_errors=True)  # unless it came to be a run
        split: Split | Federation = known or _split(config, fresh, source, console)
        facts = split if isinstance(split, Split) else split.facts
        config, *adapted_others = (
            adapted(each, facts, given) for each, given in zip((config, *others), asked.given, strict=True)
        )
        if overwrite:  # only now: the data are there, so the old run is replaced and not merely lost
            directory.create(overwrite=True)
            for name in (SPLIT_FOLDER, SECOND, AGAINST, FEDERATION_FOLDER, NETWORK_FOLDER):
                shutil.rmtree(directory.path / name, ignore_errors=True)
        if known is None:
            fresh.rename(directory.path / SPLIT_FOLDER)
            split = Split.load(directory.path / SPLIT_FOLDER)
        places = [RunDirectory(directory.path / AGAINST / other.method.name).create() for other in adapted_others]
        locks = [held.enter_context(lock_run(place.path)) for place in places]
        made = zip(places, adapted_others, locks, strict=True)
        for place in places if known is None else ():
            shutil.copytree(directory.path / SPLIT_FOLDER, place.path / SPLIT_FOLDER)  # with all that lies in it
        prepared = tuple(
            replace(PreparedRun.create(place, other, split, command, saved=known is None), lock=one)
            for place, other, one in made
        )
        main = PreparedRun.create(directory, config, split, command, saved=known is None)  # last: all is there to go on
        return Runs(replace(main, lock=lock), prepared, held.pop_all())


def _claim(config: Config, out: Path | None, held: ExitStack, *, overwrite: bool) -> tuple[RunDirectory, Lock]:
    """Take hold of the directory, see that a run may be written there, and delete nothing yet.

    Raises:
        InputError: in use, not writable, holds a run that may not be overwritten, or folders that are none of a run's.
    """
    directory = RunDirectory(out or new_run_path(config.data.dataset, config.method.name, config.data.protocol))
    held.callback(remove_if_empty, directory.path)
    lock = held.enter_context(lock_run(directory.path, f"{WAIT}, or choose another --out", "give another with --out"))
    held_run = directory.holds_run()
    directory.create(resume=overwrite)
    for name in (SPLIT_FOLDER, SECOND, AGAINST):
        if not held_run and (directory.path / name).exists():
            raise InputError(f"{directory.path / name} exists and is no run's: choose another --out, or move it")
    for other in beside_of(directory):
        held.enter_context(lock_run(other.path))  # it may be resumed by itself
    return directory, lock


def _split(config: Config, folder: Path, source: Source | None, console: Console | None) -> Split:
    """Read the data and split them, and say how far that is where it takes a while."""
    with steps_shown(quiet=console is None, console=console):
        return split_into(folder, config, source=source)


def reopen(run_dir: Path, back_to: int | None = None, *, trusted: bool = False) -> Runs:
    """The runs of a directory, those beside the main one included, to go on with.

    Args:
        back_to: give up what the main run's checkpoints hold of later rounds.
        trusted: somebody has said that they may do what they want (see `runtime.consent`).

    Raises:
        InputError: it holds no run, a damaged one, no checkpoint of that round, or one that wants what needs a word.
    """
    directory = RunDirectory(run_dir).open()
    with ExitStack() as held:
        places = (directory, *beside_of(directory))
        locks = [held.enter_context(lock_run(place.path)) for place in places]
        main, *beside = (
            replace(PreparedRun.open(place, trusted=trusted, resumes=True, processes=True), lock=lock)
            for place, lock in zip(places, locks, strict=True)
        )
        for run in (main, *beside):
            if run.has_data:
                run.split.check(run.directory.path / SPLIT_FOLDER)
        resolve_device(main.config.run.device)
        if back_to is not None:
            Checkpoints(directory.checkpoint_dir).go_back(back_to)
        return Runs(main, tuple(beside), held.pop_all())


def beside_of(directory: RunDirectory) -> list[RunDirectory]:
    """The runs beside the one of a directory, by name."""
    return [RunDirectory(path) for path in sorted((directory.path / AGAINST).glob("*")) if path.is_dir()]


def carry_out(runs: Runs, *, console: Console | None = None, resume: bool = False) -> Path:
    """Carry out the runs beside the main one, then that, and report them together.

    Args:
        console: where progress is shown; nowhere if None.
        resume: go on from the newest checkpoints.

    Returns:
        The path of the report.
    """
    with _as_a_guest():
        for other in runs.beside:
            _carry_out(other, console, resume=resume)
        report = _carry_out(runs.main, console, resume=resume)
        beside = [other.directory.path for other in runs.beside]
        return write_report(runs.main.directory.path, beside) if beside else report


@contextmanager
def _as_a_guest() -> Iterator[None]:
    """Flower logs every step, where a run shows its own progress; afterwards log and threads are as before."""
    log, threads = logging.getLogger("flwr"), torch.get_num_threads()
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
        torch.set_num_threads(threads)


def _carry_out(run: PreparedRun, console: Console | None, *, resume: bool) -> Path:
    """Train, and leave behind what every run does; returns the report."""
    config, directory, quiet = run.config, run.directory, console is None
    point = checkpointed(directory) if resume else None
    first, rounds = 1 if point is None else point.round + 1, config.run.rounds
    title = config.method.name
    shown = RoundProgress(rounds, first_round=first, description=title, quiet=quiet, console=console)
    with tracked(run, console) as tracker:

        def take(line: Line) -> None:
            progress.update(line["round"], line)
            tracker.line(line)

        with shown as progress, watched_by(None if quiet else progress.watch):
            outcome = carry_out_rounds(run, take, resume=resume)
        tested = _test(run, console)
        with steps_shown(quiet=quiet, console=console):
            total = control_rounds(config)
            report = finish(run, outcome, lambda round_: tell("controls that train: rounds", round_, total), tested)
        tracker.done(directory)
    return report


def _test(run: PreparedRun, console: Console | None) -> Tested | None:
    """The second training, where the protocol has one; it goes on where it was stopped."""
    second = second_of(run)
    if second is None:
        return None
    quiet, rounds, point = console is None, second.config.temporal.rounds, checkpointed(second.directory)
    title, first = f"{run.config.method.name}, for the test", 1 if point is None else point.round + 1
    with lock_run(second.directory.path) as lock:
        shown = RoundProgress(rounds, first_round=first, description=title, quiet=quiet, console=console)
        with shown as progress, watched_by(None if quiet else progress.watch):
            prepared = replace(second, lock=lock)
            outcome = carry_out_rounds(prepared, lambda line: progress.update(line["round"], line), resume=True)
    return Tested(prepared, outcome)
