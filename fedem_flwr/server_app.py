"""The Flower ServerApp, for `flwr run`: one run, from its data to its report.

    flwr run . --stream
    flwr run . --stream --run-config 'dataset="/data/ratings.csv" method="fedmf" run-dir="/shared/my-run"'

Server and nodes must see the run's directory. It is prepared here unless it holds a run already, which is then
continued.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedem_flwr.config import Tree, resolve
from fedem_flwr.config.search import paths
from fedem_flwr.errors import InputError
from fedem_flwr.experiment.controls import control_rounds
from fedem_flwr.experiment.finish import finish
from fedem_flwr.experiment.outcome import Tested
from fedem_flwr.experiment.second import second_of
from fedem_flwr.files import quoted, remove_if_empty
from fedem_flwr.locking import lock_run
from fedem_flwr.nodes.host import SPLIT_FOLDER
from fedem_flwr.protocol.shards import FEDERATION_FOLDER
from fedem_flwr.pulse import tell
from fedem_flwr.report.progress import RoundProgress
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.report.run_path import new_run_path
from fedem_flwr.report.steps import steps_shown
from fedem_flwr.report.tables import result_table
from fedem_flwr.runtime.consent import write_config
from fedem_flwr.runtime.flower import FlowerGrid, is_simulated
from fedem_flwr.runtime.inputs import adapted, check_method, split_into
from fedem_flwr.runtime.prepared import PreparedRun, checkpointed
from fedem_flwr.runtime.surroundings import peak_rss_bytes
from fedem_flwr.terminal import console

_KEYS = {  # of the run configuration, but for run-dir and threads, which the nodes read
    "dataset": ("data", "dataset"),
    "data-dir": ("data", "data_dir"),
    "protocol": ("data", "protocol"),
    "method": ("method", "name"),
    "rounds": ("run", "rounds"),
    "seed": ("run", "seed"),
    "device": ("run", "device"),
}

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Prepare or continue the run, carry it out over the nodes that Flower has, and finish it."""
    given = {name: value for name, value in context.run_config.items() if value}
    runtime = "ray" if is_simulated(grid) else "network"
    with ExitStack() as held:
        _carry_out(grid, _prepared(given, runtime, held), runtime)


def _carry_out(grid: Grid, run: PreparedRun, runtime: str) -> None:
    """The rounds that are left, and what every run leaves behind."""
    out, config, directory = console(width=100), run.config, run.directory
    out.print(f"run directory: {directory.path}", soft_wrap=True)
    nodes = FlowerGrid(grid, directory.path)
    hosted = nodes.await_users(run.facts.users, config.network.join_timeout)
    config = config.changed("run", users_per_node=hosted, runtime=runtime)
    write_config(directory, config)
    run = replace(run, config=config)
    point, rounds = checkpointed(directory), config.run.rounds
    first = 1 if point is None else point.round + 1
    with RoundProgress(rounds, first_round=first, description=config.method.name) as progress:
        outcome = run.server(lambda line: progress.update(line["round"], line), resume=True)(nodes)
    outcome = replace(outcome, peak_rss_bytes=peak_rss_bytes())
    tested = _test(grid, run)
    with steps_shown():
        total = control_rounds(config)
        report = finish(run, outcome, lambda round_: tell("controls that train: rounds", round_, total), tested)
    out.print(result_table(directory.read_summary(), []))
    out.print(f"report: {report}", soft_wrap=True)


def _test(grid: Grid, run: PreparedRun) -> Tested | None:
    """The second training, where the protocol has one, over the same nodes."""
    second = second_of(run)
    if second is None:
        return None
    nodes = FlowerGrid(grid, second.directory.path)
    hosted = nodes.await_users(second.facts.users, run.config.network.join_timeout)
    if hosted != second.config.run.users_per_node:
        second = replace(second, config=second.config.changed("run", users_per_node=hosted))
        write_config(second.directory, second.config)
    with RoundProgress(second.config.temporal.rounds, description=f"{run.config.method.name}, for the test") as shown:
        outcome = second.server(lambda line: shown.update(line["round"], line), resume=True)(nodes)
    return Tested(second, outcome)


def _prepared(given: Mapping[str, Any], runtime: str, held: ExitStack) -> PreparedRun:
    """The run in the directory that is named, or a new one in it, or in `runs/` where Flower's process works.

    Args:
        held: keeps the directory's lock.

    Raises:
        InputError: what is given fits nothing, the run is `fedem`'s to continue, or another process writes there.
    """
    # Flower's simulation gives its nodes no GPU unless it is told to.
    tree: Tree = {"run": {"runtime": runtime, **({"device": "cpu"} if runtime == "ray" else {})}}
    for name, (section, key) in _KEYS.items():
        if name in given:
            tree.setdefault(section, {})[key] = given[name]
    config = resolve({}, tree, "the run configuration")
    check_method(config)
    named, data = given.get("run-dir"), config.data
    path = Path(str(named)) if named else new_run_path(data.dataset, config.method.name, data.protocol)
    directory = RunDirectory(path.absolute())
    held.callback(remove_if_empty, directory.path)
    held.enter_context(lock_run(directory.path))
    if directory.holds_run():
        directory.open()
        if (directory.path / FEDERATION_FOLDER).is_dir():
            raise InputError(f"{path} is a run over shards: continue it with `fedem resume {quoted(path)}`")
        text = f"goes on with the run in {directory.path}: its own settings hold, not those of now"
        console().print(text, soft_wrap=True)
        return PreparedRun.open(directory, resumes=True)
    directory.create()
    split = split_into(directory.path / SPLIT_FOLDER, config)
    config = adapted(config, split, frozenset(paths(tree)))
    return PreparedRun.create(directory, config, split, _command(given), saved=True)


def _command(given: Mapping[str, Any]) -> str:
    settings = " ".join(f"{name}={json.dumps(value)}" for name, value in given.items())
    return shlex.join(["flwr", "run", ".", *(["--run-config", settings] if settings else [])])
