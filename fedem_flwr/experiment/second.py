"""The second training of a run under ``temporal``: up to the second instant, with what the first one chose.

It lies in the run's folder `second`, a run directory of its own. Its rounds and settings are those of the reported
round of the first; its data are a split that was made with the run's, and that nothing has looked at before.
"""

from __future__ import annotations

import shutil
from typing import Any

from fedem_flwr.config import Config
from fedem_flwr.errors import InputError
from fedem_flwr.files import quoted
from fedem_flwr.nodes.host import SPLIT_FOLDER
from fedem_flwr.protocol.rules import rules_of
from fedem_flwr.protocol.split import Split
from fedem_flwr.protocol.temporal import SECOND
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.report.selection import reported_line
from fedem_flwr.runtime.prepared import PreparedRun
from fedem_flwr.serving.served import ServedModel


def check_instants(config: Config) -> None:
    """Find out before anything is read whether a run can be trained up to instants.

    Raises:
        InputError: it cannot.
    """
    if not rules_of(config.data.protocol).by_instant:
        return
    refused = {
        "network.superlink": config.network.superlink
        and "nodes elsewhere hold the data of one training, and it has two",
        "ldp.noise": config.ldp.noise != "none" and "its two trainings would spend the guarantee twice",
        "evaluation.trained": config.evaluation.trained and "centralised controls are not trained twice",
        "temporal.rounds": config.temporal.rounds and "the first training chooses the rounds of the second",
        "temporal.chosen": config.temporal.chosen and "the first training chooses the settings of the second",
    }
    for setting, why in refused.items():
        if why:
            raise InputError(f"protocol 'temporal': {why}: leave {setting} out, or use --protocol strict")


def second_of(run: PreparedRun) -> PreparedRun | None:
    """The second training of a run whose first one is done, prepared or as far as it is; None: its protocol has none.

    Raises:
        InputError: the run lacks its data.
    """
    if not rules_of(run.facts.protocol).by_instant:
        return None
    if run.config.temporal.rounds:
        whole = run.directory.path.parent
        raise InputError(f"{run.directory.path} is the second training of a run: continue that, in {quoted(whole)}")
    place = run.directory.path / SPLIT_FOLDER / SECOND
    if not run.has_data or not place.is_dir():
        raise InputError(f"{place} is missing: the run cannot be tested; start it again ({quoted(run.directory.path)})")
    config, split = _config_of(run), Split.load(place)
    directory = RunDirectory(run.directory.path / SECOND)
    if directory.holds_run() and directory.read_config() == config.to_toml():
        return PreparedRun(directory, config, Split.load(directory.path / SPLIT_FOLDER))
    shutil.rmtree(directory.path, ignore_errors=True)  # of another first training
    return PreparedRun.create(directory.create(), config, split, run.directory.read_command() or "")


def _config_of(run: PreparedRun) -> Config:
    """The run's configuration, with the rounds and the settings of its reported round."""
    best: int = reported_line(run.directory.read_metrics(), run.facts.protocol)["round"]
    strategy = ServedModel.open(run).strategy
    grids: dict[str, Any] = getattr(strategy, "grids", {})
    chosen = {name: dict(grid.chosen) for name, grid in grids.items() if grid.best is not None}
    return (
        run.config.changed("temporal", rounds=best, chosen=chosen)
        .changed("evaluation", every=best)
        .changed("tracking", to="none")
    )
