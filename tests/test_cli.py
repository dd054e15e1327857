"""The command line: what good commands write and show, and that bad ones get one line and an exit code."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from worlds import ITEMS, TINY_OPTIONS, USERS

from fedem_flwr import __version__
from fedem_flwr.cli import main

Fedem = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parent.parent
HEADLINE = ("hr@10", "ndcg@10")


@pytest.fixture
def fedem(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fedem:
    """Run the command line in this process, in a folder of its own; gives code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        screen = capsys.readouterr()
        return int(stopped.value.code or 0), screen.out, screen.err

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of fedem beside fedmf, with all controls."""
    folder = tmp_path_factory.mktemp("cli")
    options = [o for o in TINY_OPTIONS if "evaluation" not in o] + [f"--set=evaluation.cache_dir={folder / 'cache'}"]
    with pytest.raises(SystemExit) as stopped:
        main(["run", *options, "--rounds=3", "--method=fedem", "--against=fedmf", f"--out={folder / 'run'}", "--quiet"])
    assert not stopped.value.code
    return folder / "run"


# ---- good commands


def assert_figures(entry: dict[str, object]) -> None:
    for where in (entry, entry["sampled99"]):
        assert isinstance(where, dict) and all(0 <= where[metric] <= 1 for metric in HEADLINE)


def test_a_run_writes_what_is_promised(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    wanted = {"dataset": "synthetic", "method": "fedem", "protocol": "strict", "runtime": "inprocess", "seed": 0}
    assert {key: summary[key] for key in wanted} == wanted
    assert (summary["rounds"], summary["users"], summary["items"]) == (3, USERS, ITEMS)
    assert summary["interactions"] > 400
    for name in ("best_validation", "best_test", "last"):
        assert 1 <= summary["metrics"][name]["round"] <= 3
        assert_figures(summary["metrics"][name])
    for name in ("random", "popularity", "ease", "local_only"):
        assert_figures(summary["controls"][name])
    for name in ("seconds_per_round", "bytes_up", "bytes_down", "peak_rss_bytes"):
        assert summary[name] > 0
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert line["seconds"] > 0 and line["train_loss"] > 0
        assert_figures(line["validation"])
        assert_figures(line["test"])
    assert lines[-1]["rho"].keys() >= {"mean", "std"} and 0 < lines[-1]["rho"]["mean"] < 1
    best = max(lines, key=lambda line: line["validation"]["ndcg@10"])
    assert summary["metrics"]["best_validation"] == {"round": best["round"], **best["test"]}
    config = tomllib.loads((finished / "config.toml").read_text())
    assert config["run"]["rounds"] == 3 and config["merge"]["mode"] == "elastic" and config["local"]["epochs"] == 2
    page = (finished / "report.html").read_text()
    assert "<html" in page and "fedmf" in page and "http://" not in page.replace("http://www.w3.org", "")
    diagnostics = json.loads((finished / "diagnostics.json").read_text())
    assert sum(group["users"] for group in diagnostics["groups"]) == USERS and diagnostics["failures"] == []
    assert len(diagnostics["weights"]["sample"]) == USERS and diagnostics["rho"]["histograms"]
    assert json.loads((finished / "against" / "fedmf" / "summary.json").read_text())["method"] == "fedmf"


@pytest.mark.parametrize("method", ["fedem", "fedmf"])
def test_recommend(method: str, finished: Path, fedem: Fedem) -> None:
    run = finished if method == "fedem" else finished / "against" / method
    code, out, err = fedem("recommend", run, "--user", "7", "--top", 5, "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    items, scores = ([entry[key] for entry in answer["items"]] for key in ("item", "score"))
    assert answer["user"] == "7" and len(set(items)) == 5 and scores == sorted(scores, reverse=True)
    everything = json.loads(fedem("recommend", run, "--user", "7", "--top", 10**6, "--json")[1])["items"]
    assert 5 < len(everything) < ITEMS - 10 and all(abs(entry["score"]) < 1e3 for entry in everything)
    code, out, _ = fedem("recommend", run, "--user", "7", "--top", 5)
    assert code == 0 and all(item in out for item in items)


@pytest.mark.usefixtures("undrawn")
def test_experiment_file_options_and_settings(fedem: Fedem, tmp_path: Path) -> None:
    """The example of a stock strategy: options win over the file, --set over options."""
    experiment = tmp_path / "stock.toml"
    experiment.write_text(
        '[method]\nname = "fedavg"\nstrategy = "flwr.FedAvg"\nclient = "table"\n'
        "[run]\nrounds = 5\nseed = 3\n[local]\nepochs = 9\n"
    )
    out = tmp_path / "run"
    code, _, err = fedem("run", experiment, *TINY_OPTIONS, "--rounds", 2, "--out", out, "--set=local.lr_user=0.05")
    assert (
        code == 0 and "fedavg on synthetic (40 users, 60 items" in err and "Traceback" not in err and "INFO" not in err
    )
    config = tomllib.loads((out / "config.toml").read_text())
    assert (config["run"]["rounds"], config["run"]["seed"]) == (2, 3)
    assert (config["local"]["epochs"], config["local"]["lr_user"]) == (2, 0.05)
    assert json.loads((out / "summary.json").read_text())["method"] == "fedavg"


@pytest.mark.usefixtures("undrawn")
def test_a_file_of_ones_own_and_overwriting(fedem: Fedem, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(
        "who,what,when\n" + "".join(f"u{u},i{(u * 7 + j * 3) % 50},{j}\n" for u in range(12) for j in range(11))
    )
    options = ["run", "--dataset", path, "--rounds", 1, "--out", tmp_path / "run", *TINY_OPTIONS, "-q"]
    options += ["--set", "model.dim=8"]
    code, out, err = fedem(*options)
    assert (code, err) == (0, "") and "fedials on mine" in out
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["users"] == 12
    code, _, err = fedem(*options)
    assert code == 2 and "already holds a run" in err
    assert fedem(*options, "--overwrite", "--protocol", "paper")[0] == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["protocol"] == "paper"


@pytest.mark.usefixtures("undrawn")
def test_default_directory_is_named_after_the_run(fedem: Fedem, tmp_path: Path) -> None:
    assert fedem("run", *TINY_OPTIONS, "--rounds", 1, "-q")[0] == 0
    (path,) = (tmp_path / "runs").iterdir()
    assert path.name.startswith("synthetic-fedials-strict-")


def test_data_commands(fedem: Fedem, tmp_path: Path) -> None:
    code, out, _ = fedem("data", "list", "--data-dir", tmp_path)
    assert code == 0 and all(name in out for name in ("synthetic", "filmtrust", "ml-100k", "ml-1m", "lastfm-2k"))
    synthetic = [option for option in TINY_OPTIONS if "synthetic" in option]
    code, out, _ = fedem("data", "info", "synthetic", *synthetic)
    assert code == 0 and "protocol strict keeps" in out and "40 users" in out


def test_audit(fedem: Fedem, tmp_path: Path) -> None:
    options = ["--rounds", 1, "--out", tmp_path / "audit", *(o for o in TINY_OPTIONS if o.startswith("--set"))]
    code, out, _ = fedem("audit", "--dataset", "synthetic", *options, "--quiet")
    rows = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert code == 0 and {row["method"] for row in rows} >= {"random", "popularity", "local-only", "fedmf", "fedials"}
    figures = [row[f"{protocol} HR@10"] for row in rows for protocol in ("paper", "strict") if len(row) > 3]
    assert len(figures) >= 2 * 7 and all(0 <= figure <= 1 for figure in figures)
    assert "audit.md" in out


def test_version_and_help(fedem: Fedem) -> None:
    assert fedem("--version")[1].strip() == __version__
    for command in ("run", "resume", "audit", "recommend", "data"):
        code, out, err = fedem(command, "--help")
        assert (code, err) == (0, "") and "Usage" in out
    assert fedem()[0] == 2


# ---- bad commands: one line, exit code 2


def one_line(answer: tuple[int, str, str], *words: str, code: int = 2) -> None:
    assert answer[0] == code and answer[1] == ""
    assert answer[2].startswith("fedem: ") and answer[2].count("\n") == 1, answer[2]
    assert all(word in answer[2] for word in words), answer[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset", "ml-100"], ["ml-100", "did you mean 'ml-100k'"]),
        (["--dataset", "nowhere/data.csv"], ["nowhere/data.csv", "neither a known data set nor a file"]),
        (["--method", "fedme"], ["unknown method 'fedme'", "did you mean"]),
        (["--against", "fedfm"], ["unknown method 'fedfm'", "did you mean 'fedmf'"]),
        (["--protocol", "strickt"], ["data.protocol", "strickt", "'paper', 'strict' or 'temporal'"]),
        (["--runtime", "rya"], ["run.runtime", "rya", "'ray'"]),
        (["--rounds", "-3"], ["run.rounds", "-3", "greater than or equal to 1"]),
        (["--rounds", "many"], ["--rounds", "many"]),
        (["--users-per-node", "-1"], ["run.users_per_node"]),
        (["--seed", "-1"], ["run.seed"]),
        (["--device", "cud"], ["run.device", "'cuda'"]),
        (["--set", "local.epoch=3"], ["unknown key 'local.epoch'", "did you mean 'epochs'"]),
        (["--set", "locl.epochs=3"], ["unknown section [locl]", "did you mean 'local'"]),
        (["--set", "epochs=3"], ["section.key=value"]),
        (["--set", "local.epochs"], ["section.key=value"]),
        (["--set", "local.epochs=three"], ["local.epochs", "three"]),
        (["--set", "local.lr_user=nan"], ["local.lr_user"]),
        (["--set", "data.synthetic.user=3"], ["data.synthetic.user", "did you mean 'users'"]),
        (["--set", "data.synthetic.users=1"], ["data.synthetic.users"]),
        (["--set", "method.strategy=flwr.FedAvgg"], ["did you mean 'FedAvg'"]),
        (["--method", "fedmf", "--set", "aggregate.fraction=0.5"], ["aggregate.fraction", "run.participants"]),
        (["--method", "fedem", "--set", "aggregate.weights=rows"], ["aggregate.weights"]),
        (["--set", "run=3"], ["section.key=value"]),
        (["missing.toml"], ["missing.toml"]),
        (["--bogus"], ["--bogus"]),
    ],
)
def test_bad_options(arguments: list[str], words: list[str], fedem: Fedem, tmp_path: Path) -> None:
    one_line(fedem("run", *TINY_OPTIONS[:3], *arguments), *words)
    assert not list(tmp_path.glob("runs/*")), "nothing was written"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[local]\nepoch = 3\n", ["unknown key 'local.epoch'", "did you mean 'epochs'"]),
        ("[lokal]\nepochs = 3\n", ["unknown section [lokal]", "did you mean 'local'"]),
        ("[local\nepochs = 3\n", ["not valid TOML", "line 1"]),
        ("[local]\nepochs = 3\nepochs = 4\n", ["not valid TOML"]),
        ("rounds = 3\n", ["rounds"]),
        ("[run]\nrounds = 0\n", ["run.rounds", "greater than or equal to 1"]),
        ("[merge]\nmode = 'elastisch'\n", ["merge.mode", "'elastic'"]),
        ("[merge]\nhidden = [0]\n", ["merge.hidden"]),
        ("[data]\nprotocol = 3\n", ["data.protocol"]),
    ],
)
def test_bad_experiment_files(text: str, words: list[str], fedem: Fedem, tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(text)
    one_line(fedem("run", path), "experiment.toml", *words)
    assert not (tmp_path / "runs").exists()


ROWS = "".join(f"{u}\t{i}\t{3 + u % 3}\t{100 * i + u}\n" for u in range(20) for i in range(12))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ROWS[:-9] + "\n", ["line 240", "columns, expected 4", "truncated?"]),
        (ROWS.replace("\t4\t304\n", "\tfour\t304\n"), ["line", "four", "not a finite number"]),
        (ROWS.replace("\t4\t304\n", "\tnan\t304\n"), ["not a finite number"]),
        ("".join(line for line in ROWS.splitlines(True) if int(line.split("\t")[1]) < 9), ["10"]),
        ("", ["empty"]),
        ("one\ntwo\n", ["column"]),
    ],
)
def test_bad_data(text: str, words: list[str], fedem: Fedem, tmp_path: Path) -> None:
    path = tmp_path / "data.tsv"
    path.write_text(text)
    one_line(fedem("run", "--dataset", path, "--rounds", 1, "-q"), *words)
    one_line(fedem("run", "--dataset", path, "--out", tmp_path / "run", "-q"), *words)
    assert not (tmp_path / "run" / "config.toml").exists(), "the directory can be used once the data is mended"


def test_bad_directories(finished: Path, fedem: Fedem, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    one_line(fedem("run", "--out", tmp_path / "file" / "run"), "cannot write the run directory", "--out")
    one_line(fedem("run", "--out", finished), "already holds a run", "fedem resume")
    one_line(fedem("resume", tmp_path), "holds no run")
    one_line(fedem("resume", tmp_path / "nothing"), "is no directory")
    one_line(fedem("recommend", tmp_path, "--user", 1), "holds no run")
    one_line(fedem("recommend", finished, "--user", "u7"), "user 'u7' is not in synthetic")
    one_line(fedem("recommend", finished, "--user", 1, "--top", 0), "--top")
    one_line(fedem("data", "info", "filmtrsut"), "did you mean 'filmtrust'")
    one_line(fedem("data", "fetch", "nothing-like-it"), "nothing-like-it")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda(fedem: Fedem, tmp_path: Path) -> None:
    one_line(fedem("run", "--device", "cuda", "--out", tmp_path / "run"), "no CUDA device", "--device cpu")
    assert not (tmp_path / "run").exists()


def test_the_program_itself(tmp_path: Path) -> None:
    """As a process: exit code, one line, no traceback."""
    command = [sys.executable, "-m", "fedem_flwr.cli", "run", "--method", "fedme", "--out", str(tmp_path / "run")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    one_line((ended.returncode, ended.stdout, ended.stderr), "unknown method 'fedme'")
