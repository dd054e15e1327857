"""Runs told to MLflow, by its real client; nothing of it where it is not asked for."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from test_temporal_runs import carried_out, settings, world

from fedem_flwr.config import resolve
from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.experiment import tracking
from fedem_flwr.experiment.flow import carry_out, reopen
from fedem_flwr.experiment.plan import plan
from fedem_flwr.experiment.tracking import RECORD, Tracker, flat
from fedem_flwr.network.server import for_nodes
from fedem_flwr.report.run_directory import RunDirectory

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """MLflow's client, and a place of its own for it; skips where it is not installed."""
    mlflow = pytest.importorskip("mlflow", reason="the extra fedem-flwr[mlflow] is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        uri = (tmp_path_factory.mktemp("mlflow") / "mlruns").as_uri()
        yield mlflow.MlflowClient(tracking_uri=uri), uri


def tracked(path: Path, uri: str, **run: Any) -> RunDirectory:
    tracking = {"to": "mlflow", "uri": uri, "experiment": "honest"}
    return carried_out(path, settings("fedials", run={"rounds": 2, **run}, tracking=tracking), world())


def told(client: Any) -> list[Any]:
    found = client.get_experiment_by_name("honest")
    return [] if found is None else client.search_runs([found.experiment_id])


def test_a_run_is_there_with_settings_rounds_and_files(store: tuple[Any, str], tmp_path: Path) -> None:
    client, uri = store
    done = tracked(tmp_path / "my-run", uri)
    (there,) = [run for run in told(client) if run.info.run_name == "my-run"]
    assert there.info.status == "FINISHED" and json.loads((done.path / RECORD).read_text())["run"] == there.info.run_id
    assert there.data.params["method.name"] == "fedials" and there.data.params["data.protocol"] == "temporal"
    lines = done.read_metrics()
    rounds = client.get_metric_history(there.info.run_id, "validation/ndcg-at-10")
    assert [(each.step, each.value) for each in rounds] == [
        (line["round"], pytest.approx(line["validation"]["ndcg@10"])) for line in lines
    ]
    tested = done.read_summary()["metrics"]["best_validation"]["ndcg@10"]
    assert there.data.metrics["result/metrics/best_validation/ndcg-at-10"] == pytest.approx(tested)
    names = {each.path for each in client.list_artifacts(there.info.run_id)}
    assert names == {"config.toml", "metrics.jsonl", "summary.json", "report.html"}, "and no figures of single users"


def test_a_resumed_run_goes_on_under_its_number(
    store: tuple[Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, uri = store

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("fedem_flwr.experiment.flow.finish", stop)
        tracked(tmp_path / "stopped", uri)
    (before,) = [run for run in told(client) if run.info.run_name == "stopped"]
    assert before.info.status == "KILLED"
    with reopen(tmp_path / "stopped") as runs:
        carry_out(runs, resume=True)
    (after,) = [run for run in told(client) if run.info.run_name == "stopped"]
    assert after.info.run_id == before.info.run_id and after.info.status == "FINISHED"


def test_a_place_that_cannot_be_used_is_said_in_a_line_before_the_rounds(
    store: tuple[Any, str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(FedemError, match=r"MLflow cannot be told of the run: .*; start its server") as caught:
        tracked(tmp_path / "run", (tmp_path / "file" / "mlruns").as_uri())
    assert "\n" not in str(caught.value)


def only_told(folder: Path, uri: str, shown: Any = None) -> Any:
    """What tells a run that is not carried out."""
    folder.mkdir()
    config = resolve({}, {"tracking": {"to": "mlflow", "uri": uri, "experiment": "honest"}})
    run: Any = SimpleNamespace(config=config, directory=RunDirectory(folder), facts=SimpleNamespace(protocol="strict"))
    return tracking.tracked(run, shown)


def test_where_nobody_listens_it_is_said_in_seconds(
    store: tuple[Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One try more, where MLflow's client would try for minutes; who has set how often it tries keeps that."""
    before, seen = dict(os.environ), list[tuple[str | None, ...]]()
    names = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT")
    monkeypatch.setattr("urllib3.util.retry.Retry.sleep", lambda *_: seen.append(tuple(map(os.environ.get, names))))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        said = r"MLflow cannot be told of the run: .*refused.*; start its server"
        with pytest.raises(FedemError, match=said) as caught, only_told(tmp_path / "run", uri):
            pass
        assert "\n" not in str(caught.value) and seen == [("1", "10")] and dict(os.environ) == before
        monkeypatch.setenv(names[0], "2")
        with pytest.raises(FedemError, match="cannot be told"), only_told(tmp_path / "again", uri):
            pass
        assert seen[1:] == [("2", "10")] * 2


def test_where_a_run_is_told_is_said_without_passwords(store: tuple[Any, str], tmp_path: Path) -> None:
    words = StringIO()
    with only_told(tmp_path / "said", store[1], Console(file=words, width=20)):
        number = json.loads((tmp_path / "said" / RECORD).read_text())["run"]
    assert words.getvalue() == f"MLflow is told: run {number} of experiment 'honest' at {store[1]}\n"
    shown = tracking._without_password
    for uri in ("https://me:secret@host:5/x", "https://me:se/cret@host:5/x?token=abc"):
        assert shown(uri) == "https://host:5/x"
    for uri, seen in {"me:secret@host/x": "host/x", "postgresql://me:secret@host/x": "postgresql://host/x"}.items():
        assert shown(uri) == seen
    assert shown("sqlite:////home/me/mlflow.db") == "sqlite:////home/me/mlflow.db"


def test_a_server_that_goes_away_stops_the_telling_and_not_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    class Gone:
        asked = 0

        def set_terminated(self, *_: Any) -> None:
            Gone.asked += 1
            raise ConnectionError("connection\nrefused")

    tracker = Tracker(Gone(), "7")
    tracker.ended("FINISHED")
    tracker.ended("FINISHED")
    tracker.line({"round": 1})
    assert Gone.asked == 1
    assert "MLflow is told no more: connection refused; the run goes on" in capsys.readouterr().err


def test_names_are_those_that_mlflow_takes() -> None:
    line = {"round": 3, "validation": {"ndcg@10": 0.5, "full": {"hr@10": 1}}, "rho": None, "words": "no", "yes": True}
    assert dict(flat(line)) == {"validation/ndcg-at-10": 0.5, "validation/full/hr-at-10": 1.0}


def test_without_mlflow_it_is_refused_and_without_the_setting_never_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(InputError, match=r"not installed; pip install 'fedem-flwr\[mlflow\]'"):
        plan({}, {"tracking": {"to": "mlflow"}}, origin="options")
    plan({}, {}, origin="options")
    code = "import sys, fedem_flwr.experiment.flow; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nodes_are_not_told_where_a_run_is_told() -> None:
    config = resolve({}, {"tracking": {"to": "mlflow", "uri": "http://mine:5000"}})
    assert for_nodes(config).tracking.to == "none" and not for_nodes(config).tracking.uri
