"""`fedem run` and `fedem resume`, behind their options."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from fedem_flwr.cli.options import experiment_tree, quiet_libraries
from fedem_flwr.config import Config, Tree, merge_trees, resolve
from fedem_flwr.errors import InputError
from fedem_flwr.experiment.controls import controls_of, per_user
from fedem_flwr.experiment.outcome import diagnose, summarise
from fedem_flwr.experiment.remarks import notes_of, opening
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.methods.settings import resolve_device
from fedem_flwr.network import NETWORK_FOLDER
from fedem_flwr.nodes.host import SPLIT_FOLDER
from fedem_flwr.protocol.shards import FEDERATION_FOLDER, Federation
from fedem_flwr.protocol.split import Split
from fedem_flwr.report.html import write_report
from fedem_flwr.report.progress import RoundProgress, task_progress
from fedem_flwr.report.run_directory import RunDirectory, default_run_path
from fedem_flwr.report.tables import result_table
from fedem_flwr.runtime.inputs import adapted, check_method, split_into
from fedem_flwr.runtime.prepared import PreparedRun, checkpointed
from fedem_flwr.serving.served import ServedModel, look_at, with_served

SHARED_SECTIONS = ("data", "run", "evaluation")  # of an experiment file, that hold for the runs beside it too
_PATIENCE = 2.0  # seconds before a bar is shown
AGAINST = "against"  # folder of a run that holds the runs beside it

_out = Console(highlight=False)
_err = Console(stderr=True, highlight=False)


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
    options = _over(known, options)
    methods = tree.pop("methods", [])
    if not isinstance(methods, list) or not all(isinstance(name, str) for name in methods):
        raise InputError(f"{origin}: methods = {methods!r}: write a list of method names")
    if methods and "name" not in options.get("method", {}):
        options = merge_trees(options, {"method": {"name": methods[0]}})
        against = [*methods[1:], *against]
    config = resolve(tree, options, origin)
    named = dict.fromkeys(against)  # each once
    shared = {section: keys for section, keys in tree.items() if section in SHARED_SECTIONS}
    common = {section: keys for section, keys in options.items() if section != "method"}
    others = [resolve(shared, merge_trees(common, {"method": {"name": name}}), origin) for name in named]
    for each in (config, *others):  # before anything is read or written
        resolve_device(each.run.device)
        check_method(each)
        if each.run.runtime == "network":
            from fedem_flwr.network.launch import check_network, check_privacy  # brings Flower's network clients

            check_network(each.network)
            check_privacy(each)
        elif each.network.superlink:
            raise InputError("--superlink goes with --runtime network")
    directory = RunDirectory(out or default_run_path(config.data.dataset, config.method.name, config.data.protocol))
    _claim(directory, overwrite=overwrite)
    quiet_libraries()
    fresh = directory.path / f"{SPLIT_FOLDER}.new"
    try:
        split: Split | Federation = known or _split(config, fresh, quiet=quiet)
        facts = split if isinstance(split, Split) else split.facts
        given = merge_trees(tree, options).get("model", {})
        config, *others = (adapted(each, facts, dim_is_preset="dim" not in given) for each in (config, *others))
    except InputError:
        shutil.rmtree(fresh, ignore_errors=True)
        with suppress(OSError):
            directory.path.rmdir()  # unless there is something in it
        raise
    if overwrite:  # only now: the data are there, so the old run is replaced and not merely lost
        directory.create(overwrite=True)
        for name in (SPLIT_FOLDER, AGAINST, FEDERATION_FOLDER, NETWORK_FOLDER):
            shutil.rmtree(directory.path / name, ignore_errors=True)
    if known is None:
        fresh.rename(directory.path / SPLIT_FOLDER)
        split = Split.load(directory.path / SPLIT_FOLDER)
    if not quiet:
        _err.print(opening(config, facts), f"into {directory.path}", sep="\n", soft_wrap=True)
    places = [RunDirectory(directory.path / AGAINST / other.method.name).create() for other in others]
    beside = [PreparedRun.create(place, other, split) for place, other in zip(places, others, strict=True)]
    main = PreparedRun.create(
        directory, config, split, saved=known is None
    )  # last: now there is all that `resume` needs
    _carry_out_all(main, beside, quiet=quiet)


def _over(known: Federation | None, options: Tree) -> Tree:
    """Options for a run over data that are on nodes elsewhere: what these data are is given.

    Raises:
        InputError: other data were asked for, or nodes elsewhere without a word of what they hold.
    """
    elsewhere = options.get("network", {}).get("superlink")
    if known is None:
        if elsewhere:
            raise InputError("--superlink: say what its nodes hold, with --federation (`fedem data shard` writes it)")
        return options
    if not elsewhere:
        raise InputError("--federation describes nodes elsewhere: name their SuperLink with --superlink host:port")
    facts = known.facts
    for key in ("dataset", "protocol"):
        asked = options.get("data", {}).get(key)
        if asked not in (None, getattr(facts, key)):
            raise InputError(f"--{key} {asked}: the nodes hold {getattr(facts, key)}; leave it out")
    given = {"data": {"dataset": facts.dataset, "protocol": facts.protocol}, "run": {"seed": facts.seed}}
    return merge_trees(given, options)


def _split(config: Config, folder: Path, *, quiet: bool) -> Split:
    """Read the data and split them, with a bar where it takes a while."""
    began, shown = time.monotonic(), 0
    with ExitStack() as stack:
        advance: Callable[[int], None] | None = None

        def on_progress(done: int, total: int) -> None:
            nonlocal advance, shown
            if advance is None and time.monotonic() - began > _PATIENCE:
                bar = task_progress("reading and splitting, users", total, in_bytes=False, quiet=quiet)
                advance = stack.enter_context(bar)
            if advance is not None:
                advance(done - shown)
                shown = done

        return split_into(folder, config, on_progress)


def _claim(directory: RunDirectory, *, overwrite: bool) -> None:
    """Make sure that a run may be written there, and delete nothing yet.

    Raises:
        InputError: not writable, holds a run that may not be overwritten, or folders that are none of a run's.
    """
    held = directory.holds_run()
    directory.create(resume=overwrite)
    for name in (SPLIT_FOLDER, AGAINST):
        if not held and (directory.path / name).exists():
            raise InputError(f"{directory.path / name} exists and is no run's: choose another --out, or move it")


def resume(run_dir: Path, *, quiet: bool) -> None:
    """`fedem resume`: continue from the newest checkpoint, the runs beside it included."""
    directory = RunDirectory(run_dir).open()
    beside = sorted(path for path in (directory.path / AGAINST).glob("*") if path.is_dir())
    quiet_libraries()
    prepared, *others = (PreparedRun.open(RunDirectory(path)) for path in (directory.path, *beside))
    resolve_device(prepared.config.run.device)
    _carry_out_all(prepared, others, quiet=quiet, resume=True)


def _carry_out_all(main: PreparedRun, beside: Sequence[PreparedRun], *, quiet: bool, resume: bool = False) -> None:
    """Carry out the runs beside the main one, then that, and show them together."""
    for run_ in (*beside, main):
        _carry_out(run_, quiet, resume=resume)
    report = write_report(main.directory.path, [other.directory.path for other in beside])
    _out.print(result_table(main.directory.read_summary(), [other.directory.read_summary() for other in beside]))
    _out.print(f"report: {report}", soft_wrap=True)


def _carry_out(run: PreparedRun, quiet: bool, *, resume: bool) -> None:
    """Train, compute the controls, write summary, diagnostics and report."""
    config, directory = run.config, run.directory
    point = checkpointed(directory) if resume else None
    first = 1 if point is None else point.round + 1
    name = config.method.name
    with RoundProgress(config.run.rounds, first_round=first, description=name, quiet=quiet) as progress:
        outcome = carry_out_rounds(run, lambda line: progress.update(line["round"], line), resume=resume)
    controls: dict[str, Any] = {}
    if run.has_data:
        with RoundProgress(config.run.rounds, description="control: local-only", quiet=quiet) as progress:
            controls = controls_of(run.split, config, lambda round_: progress.update(round_, {}))
    lines = directory.read_metrics()
    model = ServedModel.open(run)
    comparison, lists = look_at(model, controls, per_user(run.split, config)) if run.has_data else (None, None)
    directory.write_diagnostics({**with_served(diagnose(run, lines, outcome), model), "lists": lists})
    directory.write_summary(summarise(run, lines, outcome, controls, comparison, notes_of(run, controls)))
    write_report(directory.path)
