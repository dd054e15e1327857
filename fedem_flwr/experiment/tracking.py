"""A run told to MLflow while it goes on: its configuration, each round's metrics, and what it leaves behind.

MLflow is optional, and imported only where a configuration asks for it. What goes there is what the report shows: no
figure of a single user, no checkpoint, no data. A server that cannot be reached later stops the telling, not the run.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console

from fedem_flwr.config import Config
from fedem_flwr.config.search import leaves
from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.files import write_atomically
from fedem_flwr.report.run_directory import CONFIG, METRICS, REPORT, SUMMARY, RunDirectory
from fedem_flwr.runtime.lines import Line
from fedem_flwr.runtime.prepared import PreparedRun
from fedem_flwr.terminal import console

RECORD: Final = "mlflow.json"  # in a run's directory: under what number MLflow knows it
ARTEFACTS: Final = (CONFIG, METRICS, SUMMARY, REPORT)
_AT_ONCE: Final = 100  # parameters that a request may hold
_LONGEST: Final = 500  # characters of a parameter that every server takes
_AT_FIRST: Final = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}  # its own: minutes


def check_tracking(config: Config) -> None:
    """Find out before anything is read whether a run can be told to somebody.

    Raises:
        InputError: MLflow is not installed.
    """
    if config.tracking.to == "mlflow":
        _mlflow()


def _mlflow() -> Any:
    try:
        import mlflow
    except ImportError:
        raise InputError("tracking.to = 'mlflow': it is not installed; pip install 'fedem-flwr[mlflow]'") from None
    return mlflow


@dataclass
class Tracker:
    """Tells one run; says nothing where nobody is to be told.

    Attributes:
        client: MLflow's; None: nobody is told (any more). number: of the run there.
    """

    client: Any = None
    number: str = ""

    def line(self, line: Line) -> None:
        """A round's metrics, under the round as step."""
        if self.client is not None:
            self._say(self._metrics, dict(flat(line)), int(line["round"]))

    def done(self, directory: RunDirectory) -> None:
        """The result's figures and files."""
        if self.client is not None:
            self._say(self._result, directory)

    def ended(self, status: str) -> None:
        """That nothing more comes for now."""
        if self.client is not None:
            self._say(self.client.set_terminated, self.number, status)

    def _metrics(self, values: Mapping[str, float], step: int) -> None:
        entity = _mlflow().entities.Metric
        now = int(1000 * time.time())
        found = [entity(name, value, now, step) for name, value in values.items()]
        for start in range(0, len(found), _AT_ONCE):
            self.client.log_batch(self.number, metrics=found[start : start + _AT_ONCE])

    def _result(self, directory: RunDirectory) -> None:
        summary = directory.read_summary()
        wanted = {key: summary.get(key) for key in ("metrics", "controls", "seconds_per_round", "peak_rss_bytes")}
        self._metrics(dict(flat(wanted, "result/")), int(summary["rounds"]))
        for name in ARTEFACTS:
            if (path := directory.path / name).is_file():
                self.client.log_artifact(self.number, str(path))

    def _say(self, tell: Any, *what: Any) -> None:
        try:
            tell(*what)
        except Exception as error:  # of MLflow, of its HTTP client, of its database: the run is worth more
            self.client = None
            words = " ".join(str(error).split())
            console(stderr=True).print(f"fedem: MLflow is told no more: {words}; the run goes on", soft_wrap=True)


@contextmanager
def tracked(run: PreparedRun, shown: Console | None = None) -> Iterator[Tracker]:
    """Tell a run to whom its configuration says; a run that is resumed goes on under its number.

    Args:
        shown: where it is said under which number, and where; None: nowhere.

    Raises:
        FedemError: there is nobody to tell.
    """
    if run.config.tracking.to == "none":
        yield Tracker()
        return
    with _soon():
        tracker = _opened(run)
    if shown is not None:
        at, experiment = _without_password(tracker.client.tracking_uri), run.config.tracking.experiment
        shown.print(f"MLflow is told: run {tracker.number} of experiment '{experiment}' at {at}", soft_wrap=True)
    try:
        yield tracker
    except BaseException as error:
        tracker.ended("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    tracker.ended("FINISHED")


@contextmanager
def _soon() -> Iterator[None]:
    """Let MLflow's client find out in seconds that nobody answers, unless its user has said how long it may take."""
    mine = {name: value for name, value in _AT_FIRST.items() if name not in os.environ}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name in mine:
            os.environ.pop(name, None)


def _without_password(uri: str) -> str:
    """As much of an address as may be shown: neither what stands before its host nor what is asked of it."""
    scheme, mark, rest = uri.partition("://")
    shown = (rest if mark else uri).partition("?")[0].partition("#")[0]
    if scheme not in ("file", "sqlite"):  # these name files
        shown = shown.rpartition("@")[2]  # a password may have a slash; a path with an @ loses what is before it
    return f"{scheme}{mark}{shown}" if mark else shown


def _opened(run: PreparedRun) -> Tracker:
    mlflow, tracking, path = _mlflow(), run.config.tracking, run.directory.path / RECORD
    try:
        client = mlflow.MlflowClient(tracking_uri=tracking.uri or None)
        with suppress(OSError, ValueError, KeyError):
            number = str(json.loads(path.read_text(encoding="utf-8"))["run"])
            client.set_terminated(number, "RUNNING")
            return Tracker(client, number)
        found = client.get_experiment_by_name(tracking.experiment)
        experiment = client.create_experiment(tracking.experiment) if found is None else found.experiment_id
        tags = {"fedem.directory": str(run.directory.path), "fedem.protocol": run.facts.protocol}
        number = client.create_run(experiment, run_name=run.directory.path.name, tags=tags).info.run_id
        entity = mlflow.entities.Param
        params = [entity(name, str(value)[:_LONGEST]) for name, value in settings_of(run.config)]
        for start in range(0, len(params), _AT_ONCE):
            client.log_batch(number, params=params[start : start + _AT_ONCE])
    except Exception as error:
        words = " ".join(str(error).split())
        raise FedemError(
            f"MLflow cannot be told of the run: {words}; start its server, or leave --track out"
        ) from error
    write_atomically(path, json.dumps({"run": number, "experiment": tracking.experiment}) + "\n")
    return Tracker(client, number)


def settings_of(config: Config) -> list[tuple[str, object]]:
    """Every setting by its path, but for those that only say where things lie on this machine."""
    tree = config.model_dump(mode="json", exclude={"tracking": True, "network": True})
    return list(leaves(tree))


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of nested mappings, under names that MLflow takes: `validation/ndcg-at-10`."""
    for key, value in tree.items():
        name = prefix + key.replace("@", "-at-")
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and key != "round":
            yield name, float(value)
