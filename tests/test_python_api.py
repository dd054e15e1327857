"""The program from Python: the same runs as the command line's, read back as objects, and clear refusals."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from worlds import SYNTHETIC, TINY_OPTIONS

import fedem_flwr as fedem
from fedem_flwr import api
from fedem_flwr.cli import main
from fedem_flwr.errors import InputError
from fedem_flwr.experiment import flow
from fedem_flwr.methods.fedem import FedEM
from fedem_flwr.methods.fedmf import FedMF
from fedem_flwr.methods.fedmf_elastic import FedMFElastic
from fedem_flwr.report.run_directory import RunDirectory

pytestmark = pytest.mark.usefixtures("no_pictures")
ROOT = Path(__file__).resolve().parent.parent
ALONE: dict[str, Any] = {"controls": False, "local_only": False}
TINY: dict[str, Any] = {
    "data": {"synthetic": SYNTHETIC},
    "local": {"epochs": 2},
    "run": {"threads": 1, "device": "cpu"},
    "evaluation": {**ALONE, "every": 2},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[fedem.Result, fedem.Result]:
    """The same run from Python and by the command line."""
    folder = tmp_path_factory.mktemp("api")
    seed: Any = np.int64(3)  # out of a sweep
    mine = fedem.run(method="fedem", against="fedmf", rounds=3, seed=seed, out=folder / "python", **TINY)
    options = ["--method=fedem", "--against=fedmf", "--rounds=3", "--seed=3", "--set=evaluation.every=2", "--quiet"]
    with pytest.raises(SystemExit):
        main(["run", *TINY_OPTIONS, *options, f"--out={folder / 'terminal'}"])
    return mine, fedem.load(folder / "terminal")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs go there; drawing their reports is what takes time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(flow, "write_report", lambda path, others=(): RunDirectory(path).report_path)
    return tmp_path


def ratings(users: int = 12) -> pd.DataFrame:
    """Eleven visits of every user."""
    visits = [(f"u{u}", (u * 7 + j * 3) % 50, pd.Timestamp(2024, 1, 1 + j)) for u in range(users) for j in range(11)]
    return pd.DataFrame(visits, columns=["who", "item", "timestamp"])


def test_the_same_run_as_the_command_lines(results: tuple[fedem.Result, fedem.Result]) -> None:
    mine, theirs = results
    for one, other in ((mine, theirs), (mine.against["fedmf"], theirs.against["fedmf"])):
        assert one.config == other.config and one.config.run.seed == 3
        clocks = ["seconds"]
        pd.testing.assert_frame_equal(one.metrics.drop(columns=clocks), other.metrics.drop(columns=clocks))
        for key in ("metrics", "controls", "users", "served_round", "method", "warnings"):
            assert one.summary[key] == other.summary[key]
    assert mine.summary["command"].startswith("fedem_flwr.run(rounds=3, seed=3, method='fedem', out='")
    assert "against=['fedmf'], data={'synthetic': {'users': 40, " in mine.summary["command"]


def test_metrics_have_a_row_a_round(results: tuple[fedem.Result, fedem.Result]) -> None:
    result, lines = results[0], RunDirectory(results[0].path).read_metrics()
    metrics = result.metrics
    assert metrics.index.tolist() == [1, 2, 3] and metrics.index.name == "round"
    assert metrics["train_loss"].tolist() == [line["train_loss"] for line in lines]
    assert metrics.loc[2, "test.sampled99.hr@10"] == lines[1]["test"]["sampled99"]["hr@10"]
    assert metrics["rho.mean"].tolist()[1:] == [line["rho"]["mean"] for line in lines[1:]]
    assert np.isnan(metrics.loc[1, "validation.ndcg@10"]) and metrics.notna().loc[3].all()  # every second, and the last
    assert {kind.kind for kind in metrics.dtypes} <= {"i", "f"}


def test_a_result_reads_its_directory(results: tuple[fedem.Result, fedem.Result], tmp_path: Path) -> None:
    result = results[0]
    assert fedem.load(result.path) == result and result.path.is_absolute()
    assert result.report == result.path / "report.html" and "<html" in result.report.read_text()
    assert list(result.against) == ["fedmf"] and result.against["fedmf"].against == {}
    assert len(result.recommender().recommend_user("7", top=3)) == 3
    assert repr(result).startswith("<fedem on synthetic, protocol 'strict': hr@10 ") and "\n" not in repr(result)
    copied = Path(shutil.copytree(result.path, tmp_path / "run"))
    (copied / "summary.json").unlink()
    (copied / "report.html").unlink()
    unfinished = fedem.load(copied)
    assert len(unfinished.metrics) == 3 and "unfinished" in repr(unfinished)
    for look in (lambda: unfinished.summary, lambda: unfinished.report):
        with pytest.raises(InputError, match=r"(summary.json|report.html) is missing"):
            look()
    (copied / "metrics.jsonl").write_text("")
    assert fedem.load(copied).metrics.empty
    with pytest.raises(InputError, match="holds no run"):
        fedem.load(tmp_path)


def test_an_interrupted_run_is_resumed(results: tuple[fedem.Result, fedem.Result], folder: Path) -> None:
    copied = Path(shutil.copytree(results[0].path, folder / "run"))
    for path in (copied, copied / "against" / "fedmf"):
        (path / "summary.json").unlink()
        shutil.rmtree(path / "checkpoint")
    lines = (copied / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copied / "metrics.jsonl").write_text(lines[0])
    again = fedem.resume("run")
    for one, other in ((again, results[0]), (again.against["fedmf"], results[0].against["fedmf"])):
        assert one.summary["metrics"] == other.summary["metrics"]
        assert one.summary["command"] == other.summary["command"]


def test_a_data_frame_is_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = folder / "temporary"
    empty.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(empty))
    settings = {"model": {"dim": 8}, "evaluation": ALONE, "run": TINY["run"]}
    frame = ratings()
    columns = {"user_column": "who"}
    result = fedem.run(frame, rounds=2, name="visits", data=columns, **settings)
    assert result.path.name.startswith("visits-auto-strict-") and result.summary["dataset"] == "visits"
    assert "dataset=<DataFrame 'visits'>" in result.summary["command"]
    config = tomllib.loads((result.path / "config.toml").read_text())["data"]
    assert (config["dataset"], config["user_column"]) == ("visits", "who")
    assert not any(empty.iterdir()) and {path.name for path in folder.iterdir()} == {"temporary", "runs"}

    frame["timestamp"] = (frame["timestamp"] - pd.Timestamp(0)) / pd.Timedelta(seconds=1)
    frame.to_csv("visits.csv", index=False)
    filed = fedem.run(Path("visits.csv"), rounds=2, out="filed", data=columns, **settings)
    assert filed.summary["metrics"] == result.summary["metrics"] and filed.summary["has_times"]

    shutil.rmtree(result.path / "checkpoint")
    (result.path / "summary.json").unlink()
    assert fedem.resume(result.path).summary["metrics"] == filed.summary["metrics"]
    unnamed = fedem.run(ratings(), rounds=1, out="unnamed", data=columns, **settings)
    assert unnamed.config.data.dataset == unnamed.summary["dataset"] == "dataframe"


def test_silence_and_progress(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for progress in (None, False, True):
        assert capfd.readouterr() == ("", "")  # the last one printed nothing: this is no terminal
        fedem.run(method="fedmf", rounds=2, progress=progress, out="run", overwrite=True, **TINY)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("fedmf on synthetic (40 users,") and "into run\n" in err and "fedmf: round 2/2" in err


def test_a_run_is_a_guest_in_its_process(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    log, threads = logging.getLogger("flwr"), torch.get_num_threads()
    caplog.set_level(logging.INFO, "flwr")
    other = {**TINY, "run": {**TINY["run"], "threads": threads + 1}}
    fedem.run(method={"name": "average", "strategy": "flwr.FedAvg", "client": "table"}, rounds=1, **other)
    assert torch.get_num_threads() == threads and log.level == logging.INFO
    (made,) = (folder / "runs").iterdir()
    assert made.name.startswith("synthetic-average-strict-")


def test_a_stock_strategy_as_a_section(folder: Path) -> None:
    stock = {"name": "average", "strategy": "flwr.FedAvg", "client": "table"}
    result = fedem.run(method="fedmf", against=[stock], rounds=1, **TINY)
    assert result.against["average"].config.method.strategy == "flwr.FedAvg"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dataset": [1, 2]}, ["dataset is a list", "pandas DataFrame"]),
        ({"dataset": "ml-100"}, ["did you mean 'ml-100k'"]),
        ({"dataset": ratings(), "name": "ml-100k"}, ["name = 'ml-100k'", "another name"]),
        ({"dataset": ratings(), "name": "synthetic"}, ["name = 'synthetic'"]),
        ({"dataset": ratings(), "name": " "}, ["name = ' '"]),
        ({"dataset": ratings(), "name": "a\nb"}, ["name = 'a\\nb'"]),
        ({"dataset": ratings().drop(columns="item")}, ["no item column in 'who, timestamp'"]),
        ({"dataset": ratings(), "data": {"header": True}}, ["data.header"]),
        ({"name": "mine"}, ["name = 'mine'", "DataFrame"]),
        ({"method": "fedme"}, ["unknown method 'fedme'", "did you mean"]),
        ({"method": 3}, ["method = 3", "a class or a section"]),
        ({"method": "nowhere:Method"}, ["nowhere"]),
        ({"against": ["fedfm"]}, ["did you mean 'fedmf'"]),
        ({"against": ["fedmf", {"name": "fedmf", "base": "fedem"}]}, ["beside the run are called 'fedmf'"]),
        ({"round": 3}, ["unknown argument 'round'", "did you mean 'rounds'"]),
        ({"locl": {}}, ["unknown argument 'locl'", "did you mean 'local'"]),
        ({"rounds": 3, "run": {"rounds": 3}}, ["rounds is given twice"]),
        ({"rounds": 0}, ["run.rounds", "greater than or equal to 1"]),
        ({"protocol": "strickt"}, ["data.protocol", "'paper', 'strict' or 'temporal'"]),
        ({"local": 3}, ["local = 3", "dictionary"]),
        ({"local": {"epoch": 3}}, ["unknown key 'local.epoch'", "did you mean 'epochs'"]),
        ({"local": {"lr_user": float("nan")}}, ["local.lr_user"]),
        ({"model": {"dim": ratings()}}, ["model.dim is a DataFrame"]),
        ({"method": {"name": "x", "strategy": "flwr.FedAvg", "options": {"a": None}}}, ["method.options.a"]),
        ({"method": {"name": "x", "strategy": "flwr.FedAvgg"}}, ["did you mean 'FedAvg'"]),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: list[str], folder: Path) -> None:
    with pytest.raises(InputError) as caught:
        fedem.run(**arguments)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
    assert not [path for path in (folder / "runs").glob("*")], "nothing was written"


class MyOwnMF2(FedMF):
    """Stands for a reader's class."""


class Fedem(FedMF):
    """Called as a preset is."""


def test_a_class_is_named_by_its_path() -> None:
    own = f"{__name__}:MyOwnMF2"
    for method in (MyOwnMF2, own):
        assert api.method_section(method) == {"name": "my-own-mf2", "strategy": own}
    for known, name in ((FedEM, "fedem"), (FedMF, "fedmf"), (FedMFElastic, "fedmf-elastic")):
        assert api.method_section(known) == {"name": name}
    assert api.method_section({"name": "mine", "strategy": Fedem})["strategy"] == f"{__name__}:Fedem"
    with pytest.raises(InputError, match="would be called 'fedem' in results"):
        api.method_section(Fedem)

    class Inside(FedMF):
        pass

    with pytest.raises(InputError, match=r"<locals>.Inside is inside a function"):
        api.method_section(Inside)


LIGHT = """
import os, sys, fedem_flwr
heavy = {"torch", "flwr", "pandas", "pydantic", "numpy", "rich"} & set(sys.modules)
assert not heavy, heavy
assert {"run", "load", "resume", "Result", "Recommender"} <= set(dir(fedem_flwr))
from fedem_flwr.cli import main
try:
    main(["--help"])
except SystemExit as stopped:
    assert not stopped.code
heavy = {"torch", "flwr", "pandas", "pydantic", "numpy"} & set(sys.modules)
assert not heavy, heavy
del os.environ["FLWR_TELEMETRY_ENABLED"]  # which the command line has set
fedem_flwr.load
from flwr.supercore import telemetry
assert telemetry.FLWR_TELEMETRY_ENABLED == "0"
"""


def test_importing_and_help_are_light_and_nobody_is_told() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "FLWR_TELEMETRY_ENABLED"}
    command = [sys.executable, "-c", LIGHT]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fedem.nothing  # type: ignore[attr-defined]
