"""The Flower ServerApp, for `flwr run`: carries out the run whose directory the run configuration names.

    flwr run . --run-config 'run-dir="/shared/my-run" dataset="synthetic" method="fedmf"'

Server and nodes must see the run's directory. It is prepared here unless it holds a run already, which is then
continued.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedem_flwr.config import resolve
from fedem_flwr.errors import InputError
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.inputs import load_interactions, split_of
from fedem_flwr.runtime.prepared import PreparedRun

_OPTIONS = {
    "dataset": "data",
    "protocol": "data",
    "data_dir": "data",
    "method": "method",
    "rounds": "run",
    "seed": "run",
}

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Prepare or continue the run, over whatever nodes the grid reaches."""
    given = {name: value for name, value in context.run_config.items() if value}
    if not given.get("run-dir"):
        raise InputError("the run configuration names no run-dir; give one that server and nodes can see")
    directory = RunDirectory(Path(str(given["run-dir"])))
    if directory.holds_run():
        prepared = PreparedRun.open(directory)
    else:
        options: dict[str, dict[str, object]] = {}
        for name, section in _OPTIONS.items():
            if given.get(name.replace("_", "-")):
                key = "name" if name == "method" else name
                options.setdefault(section, {})[key] = given[name.replace("_", "-")]
        config = resolve({}, options, "the run configuration")
        split = split_of(config, load_interactions(config))
        command = shlex.join(
            ["flwr", "run", ".", "--run-config", " ".join(f"{k}={json.dumps(v)}" for k, v in given.items())]
        )
        prepared = PreparedRun.create(directory.create(), config, split, command)
    prepared.server(lambda _: None, resume=True)(grid)
