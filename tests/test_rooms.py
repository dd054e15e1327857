"""Another project's `clients`, `strategies` and `configs` are its own, and ours are found whatever lies around."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from worlds import TINY_OPTIONS

import fedem_flwr
from fedem_flwr.rooms import FORMER, presets

ROOT = Path(__file__).resolve().parent.parent
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
ENGINE = "--set=run.engine=torch"  # nothing is compiled once more
FOREIGN = ("clients", "strategies", "configs")
PROGRAM = """
import sys
import configs, clients, strategies
from fedem_flwr.config import preset_names, resolve
from fedem_flwr.config.registry import by_path, client_of
assert "fedem" in preset_names("methods") and "ml-100k" in preset_names("datasets")
config = resolve({}, {"method": {"name": "fedem"}})
own = client_of(config.method.strategy, "")
assert own.__module__ == "fedem_flwr.clients.method", own
assert by_path("clients.method:MethodClient") is own  # the path that was documented
assert [module.__name__ for module in (configs, clients, strategies)] == ["configs", "clients", "strategies"]
assert all(module.whose == "theirs" for module in (configs, clients, strategies))
import clients.table
assert not hasattr(clients.table, "TableClient")
assert by_path("strategies.mine:Mine").whose == "theirs"
assert by_path("strategies.tables:Theirs").whose == "theirs"  # a module that we have, too, without that name
"""

INSTALLED = """
import sys
sys.meta_path[:] = [each for each in sys.meta_path if "editable" not in str(each).lower()]  # the checkout's
import fedem_flwr
"""
FORMERLY = """
import clients.method, strategies.base
import clients, strategies, fedem_flwr.clients.method, fedem_flwr.strategies.base
assert clients.method is fedem_flwr.clients.method and clients is fedem_flwr.clients
assert strategies.base is fedem_flwr.strategies.base and strategies is fedem_flwr.strategies
assert clients.method.__spec__.name == clients.method.__name__ == "fedem_flwr.clients.method"
"""


def installed(folder: Path) -> Path:
    """What a wheel lays into site-packages, as pyproject.toml says."""
    for package in SETUPTOOLS["packages"]:
        source = ROOT / SETUPTOOLS["package-dir"].get(package, package.replace(".", "/"))
        target = folder / package.replace(".", "/")
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def foreign(folder: Path) -> Path:
    for name in FOREIGN:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("whose = 'theirs'\n")
    (folder / "clients" / "table.py").touch()
    (folder / "strategies" / "mine.py").write_text("class Mine: whose = 'theirs'\n")
    (folder / "strategies" / "tables.py").write_text("class Theirs: whose = 'theirs'\n")
    (folder / "configs" / "methods").mkdir()
    (folder / "configs" / "methods" / "fedem.toml").write_text("not = [toml")
    return folder


def program(text: str, *path: Path, at: Path, arguments: tuple[str, ...] = ()) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *(["-c", text] if text else []), *arguments]
    done = subprocess.run(command, cwd=at, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_beside_a_project_with_packages_of_the_same_names(tmp_path: Path) -> None:
    program(PROGRAM, tmp_path / "project", ROOT, at=foreign(tmp_path / "project"))


def test_an_installed_copy_carries_out_a_run_there(tmp_path: Path) -> None:
    """With the project's own packages first on the path."""
    project, site = foreign(tmp_path / "project"), installed(tmp_path / "site")
    run = ("-m", "fedem_flwr.cli", "run", *TINY_OPTIONS, "--method=fedem", "--rounds=1", "--quiet", "--out=run", ENGINE)
    program("", site, at=project, arguments=run)
    assert (project / "run" / "summary.json").exists()


@pytest.mark.parametrize("how", ["wheel", "checkout"])
def test_a_former_name_means_the_same_modules(how: str, tmp_path: Path) -> None:
    """In a wheel once `fedem_flwr` is imported, which whoever is named in a configuration can rely on."""
    ours = installed(tmp_path / "site") if how == "wheel" else ROOT
    program((INSTALLED if how == "wheel" else "") + FORMERLY, ours, at=tmp_path)


def test_pyproject_names_every_package() -> None:
    beside = {f"fedem_flwr.{name}" for name in (*FORMER, "presets")}
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "fedem_flwr").rglob("__init__.py")}
    assert sorted(SETUPTOOLS["packages"]) == sorted(found | beside)
    assert {ROOT / name for name in SETUPTOOLS["package-dir"].values()} == {
        presets(),
        ROOT / "clients",
        ROOT / "strategies",
    }
    assert Path(fedem_flwr.__file__).parent.parent == ROOT
