"""The code of docs/extending.md, taken out of the page and run as another package's would be."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

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


def carry_out(site: Path, out: Path, command: str, *more: str) -> subprocess.CompletedProcess[str]:
    """Run a `fedem` command of the page on a tiny world, in a process of its own."""
    program, *arguments = shlex.split(command)
    assert program == "fedem"
    path = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "fedem_flwr.cli", *arguments, *shlex.split(TINY), *more, "--out", str(out)],
        cwd=site,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
    )


def finished(site: Path, out: Path, command: str, *more: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Summary and the server's last checkpoint of a run that must succeed."""
    done = carry_out(site, out, command, *more)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
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
        "clipped_fedmf.py",
        "least_squares.py",
        "least_squares_client.py",
    }
    assert set(packages()) == {"clipped-fedmf", "least-squares"}
    assert [shlex.split(line)[:3] for line in commands()] == [
        ["fedem", "run", name]
        for name in ("clipped.toml", "median.toml", "trimmed.toml", "median.toml", "least_squares.toml")
    ]


def test_examples_are_short() -> None:
    lines = {block.name: block.lines for block in blocks() if block.language == "python"}
    assert all(count < MAX_LINES for count in lines.values()), lines
    first = next(block for block in blocks() if block.name == "pyproject.toml")
    assert lines["clipped_fedmf.py"] + first.lines < MAX_LINES


def test_entry_points_are_found(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(site)  # also invalidates importlib's caches
    assert {"clipped-fedmf", "least-squares", "fedem"} <= set(names("strategies"))
    assert find("strategies", "clipped-fedmf").__name__ == "ClippedFedMF"
    assert find("clients", "least-squares").__name__ == "LeastSquaresClient"
    with pytest.raises(InputError, match="did you mean 'clipped-fedmf'"):
        find("strategies", "cliped-fedmf")


@pytest.mark.slow
def test_a_strategy_of_another_package(site: Path, tmp_path: Path) -> None:
    command = commands()[0]
    summary, state = finished(site, tmp_path / "clipped", command)
    assert summary["method"] == "clipped-fedmf" and configured(tmp_path / "clipped")["strategy"] == "clipped-fedmf"
    table = state["table"]
    moved = np.linalg.norm(table - start_of(tmp_path / "clipped", len(table)), axis=1)
    radius = configured(tmp_path / "clipped")["options"]["radius"]
    assert 0 < moved.max() <= radius * ROUNDS * (1 + 1e-4)

    _, still = finished(site, tmp_path / "still", command, "--set", "method.options.radius=0.0")
    np.testing.assert_allclose(still["table"], start_of(tmp_path / "still", len(table)), rtol=0, atol=1e-6)


def test_a_configuration_it_refuses_gives_one_line(site: Path, tmp_path: Path) -> None:
    done = carry_out(site, tmp_path / "run", commands()[0], "--set", "aggregate.weights=average")
    assert done.returncode == 2
    assert done.stderr.startswith("fedem: clipped-fedmf averages rows") and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_stock_strategies(site: Path, tmp_path: Path) -> None:
    _, median_run, trimmed_run, average_run, _ = commands()
    _, median = finished(site, tmp_path / "median", median_run)
    assert configured(tmp_path / "median")["strategy"] == "flwr.FedMedian"
    # With three nodes, trimming 0.4 at either side leaves the middle one: that is the median.
    summary, trimmed = finished(site, tmp_path / "trimmed", trimmed_run, "--set", "method.options.beta=0.4")
    assert summary["nodes"] == 3 and configured(tmp_path / "trimmed")["strategy"] == "flwr.FedTrimmedAvg"
    np.testing.assert_allclose(trimmed["item_table"], median["item_table"], rtol=0, atol=1e-5)
    summary, average = finished(site, tmp_path / "average", average_run)
    assert summary["method"] == "fedavg" and configured(tmp_path / "average")["strategy"] == "flwr.FedAvg"
    assert np.abs(average["item_table"] - median["item_table"]).max() > 1e-3


@pytest.mark.slow
def test_a_method_with_its_own_upload_and_client(site: Path, tmp_path: Path) -> None:
    command = commands()[-1]
    summary, state = finished(site, tmp_path / "three-nodes", command)
    assert summary["method"] == "least-squares" and summary["nodes"] == 3
    assert configured(tmp_path / "three-nodes")["client"] == "least-squares"
    assert not (tmp_path / "three-nodes" / "checkpoint" / "nodes").exists()  # the client is stateless
    lines = [json.loads(line) for line in (tmp_path / "three-nodes" / "metrics.jsonl").read_text().splitlines()]
    assert lines[1]["train_loss"] < lines[0]["train_loss"]
    _, alone = finished(site, tmp_path / "one-node", command, "--set", "run.users_per_node=0")
    np.testing.assert_allclose(alone["table"], state["table"], rtol=1e-4, atol=1e-4)
