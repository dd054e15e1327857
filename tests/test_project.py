"""The project's own files agree with each other: configurations, pins, commands, containers, set limits."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("fedem_flwr", "strategies", "clients")
MAX_LINES = 300
CONFIGS = sorted((ROOT / "configs").rglob("*.toml"))
PINS = sorted(ROOT.glob("constraints*.txt"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Where packages come from is the machine's business: no option or address of an index belongs in the project.
INDEX = re.compile(
    r"""--(extra-)?index[-_]url | --find[-_]links | \bindex[-_]url\s*= | (PIP|UV)_[A-Z_]*INDEX
        | pypi\.org | pythonhosted\.org | download\.pytorch\.org | https?://[^\s"')>]+/(simple|whl)\b""",
    re.VERBOSE,
)


def source_files() -> list[Path]:
    """The project's files: what git tracks or would track; in an unpacked archive, everything visible."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if shutil.which("git") and (ROOT / ".git").exists():
        names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True, text=True).stdout
        found = [ROOT / name for name in names.split("\0") if name]
    else:
        found = [path for path in ROOT.rglob("*") if not any(p[0] == "." for p in path.relative_to(ROOT).parts)]
    return [path for path in found if path.is_file()]


def pins(path: Path = ROOT / "constraints.txt") -> dict[str, Version]:
    """Constraints by canonical name; a line that is not an exact public pin fails here."""
    lines = [line for line in path.read_text().splitlines() if line[:1] != "#"]
    matches = [re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line) for line in lines]
    assert all(matches), [line for line, match in zip(lines, matches, strict=True) if not match]
    return {canonicalize_name(match[1]): Version(match[2]) for match in matches if match}


def direct_dependencies() -> list[Requirement]:
    """What pyproject.toml asks for, extras included but for `kernels`, which pins what is not to be in an image."""
    project = PYPROJECT["project"]
    extras = [x for name, group in project["optional-dependencies"].items() if name != "kernels" for x in group]
    return [Requirement(line) for line in project["dependencies"] + extras]


def test_there_are_configurations() -> None:
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_configuration_parses(path: Path) -> None:
    assert tomllib.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("target", ["run", "test"])
def test_readme_commands_are_targets(target: str) -> None:
    assert re.search(rf"^\s*\$?\s*make {target}\b", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_make_without_a_python_says_so_in_one_line(tmp_path: Path) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(
        [make, "run", "PYTHON="],
        cwd=tmp_path,
        env={"PATH": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    complaints = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert done.returncode != 0
    assert len(complaints) == 1 and "Python 3.11 or newer" in complaints[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_stay_short(package: str) -> None:
    modules = sorted((ROOT / package).rglob("*.py"))
    assert modules
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_with_modules_is_a_package(package: str) -> None:
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    assert [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_no_file_names_a_package_index() -> None:
    found = []
    for path in source_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # not a text file
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in INDEX.finditer(text)]
    assert found == []


@pytest.mark.parametrize("path", PINS, ids=lambda path: path.stem)
@pytest.mark.parametrize("requirement", direct_dependencies(), ids=lambda requirement: requirement.name)
def test_direct_dependency_is_pinned_inside_its_range(requirement: Requirement, path: Path) -> None:
    pinned = pins(path)
    assert canonicalize_name(requirement.name) in pinned
    assert pinned[canonicalize_name(requirement.name)] in requirement.specifier


def test_every_admitted_release_of_flower_has_pins() -> None:
    (flower,) = (found for found in direct_dependencies() if found.name == "flwr")
    minors = [f"1.{minor}" for minor in range(100) if flower.specifier.contains(f"1.{minor}.0")]
    pinned = {path.name: "{0.major}.{0.minor}".format(pins(path)["flwr"]) for path in PINS}
    assert sorted(pinned.values()) == minors
    beside = {name for name in pinned if name != "constraints.txt"}
    assert beside == {f"constraints-flwr-{pinned[name]}.txt" for name in beside}


def test_installed_versions_are_the_pinned_ones() -> None:
    if Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        pytest.skip("not the project's own environment (.venv): other versions may be wanted here")
    installed = {canonicalize_name(found.name): Version(found.version) for found in metadata.distributions()}
    differing = {
        name: f"pinned {pin}, installed {installed[name]}"
        for name, pin in pins().items()
        if name in installed and Version(installed[name].public) != pin
    }
    assert differing == {}


def test_version_is_said_once() -> None:
    init = (ROOT / "fedem_flwr" / "version.py").read_text()
    version = PYPROJECT["project"]["version"]
    assert f'__version__ = "{version}"' in init
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
    assert str(yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]) == version


@pytest.mark.parametrize(
    "room", ["data", "protocol", "models", "engine", "methods", "config", "aggregation", "evaluation", "report"]
)
def test_the_pure_core_does_not_know_flower(room: str) -> None:
    files = sorted((ROOT / "fedem_flwr" / room).glob("*.py"))
    assert files
    for path in files:
        imports = [line for line in path.read_text().splitlines() if re.match(r"\s*(from|import) flwr\b", line)]
        assert not imports, f"{path.name}: {imports}"
