"""The code of docs/extending.md, taken out of the page and run as another package's would be."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedem_flwr.cli import main
from fedem_flwr.config import resolve
from fedem_flwr.config.registry import find, names
from fedem_flwr.errors import InputError
from fedem_flwr.models.mf import initial_table

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
MAX_LINES = 40
ROUNDS = 2
TINY = (
    f"--quiet --rounds {ROUNDS} --device cpu --set data.synthetic.users=24 --set data.synthetic.items=40 "
    "--set data.synthetic.mean_interactions=14 --set run.users_per_node=8 --set run.threads=1 "
    "--set evaluation.local_only=false --set evaluation.controls=false"
)


@dataclass(frozen=True)
class Block:
    """A fenced block whose first line is a comment with a file's name."""

    language: str
    name: str
    text: str

    @property
    def lines(self) -> int:
        return sum(bool(line.strip()) for line in self.text.splitlines())


def blocks() -> list[Block]:
    found = re.findall(r"^```(python|toml)\n# (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return [Block(language, name, text) for language, name, text in found]


def packages() -> dict[str, dict[str, Any]]:
    """The page's pyproject.toml blocks by distribution name."""
    parsed = [tomllib.loads(block.text) for block in blocks() if block.name == "pyproject.toml"]
    return {tree["project"]["name"]: tree["project"] for tree in parsed}


def commands() -> list[str]:
    """The page's shell lines."""
    return [line for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.M | re.S) for line in block.splitlines()]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for sys.path that holds the page's modules and packages as if they had been installed there."""
    folder = tmp_path_factory.mktemp("site")
    for block in blocks():
        if block.name != "pyproject.toml":
            (folder / block.name).write_text(block.text, encoding="utf-8")
    for name, project in packages().items():
        installed = folder / f"{name.replace('-', '_')}-{project['version']}.dist-info"
        installed.mkdir()
        (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {project['version']}\n")
        groups = [
            f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
            for group, entries in project["entry-points"].items()
        ]
        (installed / "entry_points.txt").write_text("\n".join(groups))
    return folder


@pytest.fixture
def here(site: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process, in which the page's modules and packages are installed; what it imports of them goes again."""
    monkeypatch.chdir(site)
    monkeypatch.syspath_prepend(site)
    for block in blocks():
        if block.name.endswith(".py"):
            monkeypatch.delitem(sys.modules, block.name.removesuffix(".py"), raising=False)
    return site


def arguments_of(command: str, out: Path, more: Sequence[str]) -> list[str]:
    """Of `fedem`, for a command of the page on a tiny world."""
    program, *arguments = shlex.split(command)
    assert program == "fedem"
    return [*arguments, *shlex.split(TINY), *more, "--out", str(out)]


def in_a_process(site: Path, out: Path, command: str, *more: str) -> tuple[int, str]:
    """Exit code of a process of its own, and what it says of errors."""
    path = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "fedem_flwr.cli", *arguments_of(command, out, more)],
        cwd=site,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
    )
    return done.returncode, done.stderr


def carry_out(out: Path, command: str, *more: str) -> tuple[int, str]:
    """The same in this process, where everything is imported already."""
    with redirect_stderr(io.StringIO()) as said, pytest.raises(SystemExit) as stopped:
        main(arguments_of(command, out, more))
    return int(stopped.value.code or 0), said.getvalue()


def finished(out: Path, command: str, *more: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Summary and the server's last checkpoint of a run that must succeed."""
    assert carry_out(out, command, *more) == (0, "")
    return results(out)


def results(out: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The same of one that has."""
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["rounds"] == ROUNDS and summary["users"] == 24 and summary["failures"] == 0
    (checkpoint,) = (out / "checkpoint" / "server").glob("*.safetensors")
    return summary, load_file(checkpoint)


def configured(out: Path) -> dict[str, Any]:
    method: dict[str, Any] = tomllib.loads((out / "config.toml").read_text(encoding="utf-8"))["method"]
    return method


def start_of(out: Path, items: int) -> np.ndarray:
    """The item table that a run started from."""
    tree = tomllib.loads((out / "config.toml").read_text(encoding="utf-8"))
    return initial_table(items, tree["model"]["dim"], tree["model"]["init_std"], tree["run"]["seed"]).numpy()


def test_the_page_has_the_examples() -> None:
    assert {block.name for block in blocks() if block.language == "python"} == {
        "biased_fedmf.py",
        "clipped_fedmf.py",
        "least_squares.py",
        "cautious_average.py",
    }
    assert set(packages()) == {"biased-fedmf"}
    assert len(commands()) == 9 and all(shlex.split(line)[:2] == ["fedem", "run"] for line in commands())


def test_examples_are_short() -> None:
    lines = {block.name: block.lines for block in blocks() if block.language == "python"}
    assert all(count < MAX_LINES for count in lines.values()), lines
    first = next(block for block in blocks() if block.name == "pyproject.toml")
    assert lines["biased_fedmf.py"] + first.lines < MAX_LINES


def test_entry_points_are_found(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(site)  # also invalidates importlib's caches
    assert {"biased-fedmf", "fedem", "fedials-order"} <= set(names("strategies"))
    assert find("strategies", "biased-fedmf").__name__ == "BiasedFedMF"
    assert find("strategies", "least_squares:LeastSquares").__name__ == "LeastSquares"
    config = resolve({}, {"method": {"name": "biased-fedmf"}})
    assert config.method.strategy == "biased-fedmf" and config.local.epochs == 3
    with pytest.raises(InputError, match="did you mean 'biased-fedmf'"):
        find("strategies", "baised-fedmf")


@pytest.mark.slow
def test_a_method_of_another_package(here: Path, tmp_path: Path) -> None:
    """Its options are typed, both sides get them, and it stands beside another method."""
    alone, beside, changed = commands()[:3]
    assert in_a_process(here, tmp_path / "alone", alone) == (0, "")
    summary, state = results(tmp_path / "alone")
    assert summary["method"] == "biased-fedmf"
    assert configured(tmp_path / "alone")["options"] == {"lr_bias": 0.05}
    assert state["items"].shape == (40, 16) and np.abs(state["bias"]).max() > 0.01
    _, other = finished(tmp_path / "changed", changed)
    assert configured(tmp_path / "changed")["options"] == {"lr_bias": 0.2}
    assert other["items"].shape == (40, 8) and np.abs(other["bias"]).max() > np.abs(state["bias"]).max()
    finished(tmp_path / "beside", beside)
    assert (tmp_path / "beside" / "against" / "biased-fedmf" / "summary.json").exists()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("method.options.lr_bais=0.2", "unknown key 'method.options.lr_bais'; did you mean 'lr_bias'?"),
        ("method.options.lr_bias=-1", "method.options.lr_bias = -1: input should be greater than 0"),
    ],
)
def test_options_that_it_does_not_have_give_one_line(tmp_path: Path, setting: str, says: str) -> None:
    code, error = carry_out(tmp_path / "run", commands()[0], "--set", setting)
    assert code == 2 and says in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("here")
def test_a_stage_before_the_sum(tmp_path: Path) -> None:
    command = next(line for line in commands() if "clipped.toml" in line)
    summary, state = finished(tmp_path / "clipped", command)
    assert summary["method"] == "clipped-fedmf"
    moved = np.linalg.norm(state["items"] - start_of(tmp_path / "clipped", len(state["items"])), axis=1)
    radius = configured(tmp_path / "clipped")["options"]["radius"]
    assert 0 < moved.max() <= radius * ROUNDS * (1 + 1e-4)
    _, still = finished(tmp_path / "still", command, "--set", "method.options.radius=0.0")
    np.testing.assert_allclose(still["items"], start_of(tmp_path / "still", len(still["items"])), rtol=0, atol=1e-6)
    _, one = finished(tmp_path / "one-node", command, "--set", "run.users_per_node=0")
    np.testing.assert_allclose(one["items"], state["items"], rtol=0, atol=1e-5)  # it holds for users, not for nodes


@pytest.mark.usefixtures("here")
def test_an_upload_of_its_own(tmp_path: Path) -> None:
    command = next(line for line in commands() if "least_squares" in line)
    summary, state = finished(tmp_path / "three-nodes", command)
    assert summary["method"] == "least-squares" and summary["nodes"] == 3
    assert not (tmp_path / "three-nodes" / "checkpoint" / "nodes").exists()  # clients keep nothing
    lines = [json.loads(line) for line in (tmp_path / "three-nodes" / "metrics.jsonl").read_text().splitlines()]
    assert lines[1]["train_loss"] < lines[0]["train_loss"]
    _, alone = finished(tmp_path / "one-node", command, "--set", "run.users_per_node=0")
    np.testing.assert_allclose(alone["table"], state["table"], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("here")
def test_stock_strategies(tmp_path: Path) -> None:
    median_run, trimmed_run, average_run = (line for line in commands() if "median" in line or "trimmed" in line)
    _, median = finished(tmp_path / "median", median_run)
    assert configured(tmp_path / "median")["strategy"] == "flwr.FedMedian"
    # With three nodes, trimming 0.4 at either side leaves the middle one: that is the median.
    summary, trimmed = finished(tmp_path / "trimmed", trimmed_run, "--set", "method.options.beta=0.4")
    assert summary["nodes"] == 3 and configured(tmp_path / "trimmed")["strategy"] == "flwr.FedTrimmedAvg"
    np.testing.assert_allclose(trimmed["item_table"], median["item_table"], rtol=0, atol=1e-5)
    summary, average = finished(tmp_path / "average", average_run)
    assert summary["method"] == "fedavg" and configured(tmp_path / "average")["strategy"] == "flwr.FedAvg"
    assert np.abs(average["item_table"] - median["item_table"]).max() > 1e-3


@pytest.mark.usefixtures("here")
def test_a_flower_strategy_and_client_of_ones_own(tmp_path: Path) -> None:
    command = next(line for line in commands() if "cautious" in line)
    _, state = finished(tmp_path / "half", command)
    _, still = finished(tmp_path / "still", command, "--set", "method.options.way=0.0")
    start = start_of(tmp_path / "still", 40)
    np.testing.assert_allclose(still["item_table"], start, rtol=0, atol=1e-6)
    assert np.abs(state["item_table"] - start).max() > 0.01
