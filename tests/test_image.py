"""The Dockerfile without an engine: linted, pinned, and its build context holds what the package is built from."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path

from tests.compose_world import PROGRAMS, ROOT, image

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def lint(text: str) -> subprocess.CompletedProcess[str]:
    command = [str(PROGRAMS / "hadolint"), "--no-color", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)


def test_linter_finds_nothing() -> None:
    done = lint(DOCKERFILE)
    assert done.returncode == 0 and done.stdout == "", done.stdout
    assert "hadolint ignore" not in DOCKERFILE


def test_linter_finds_what_is_wrong() -> None:
    assert "DL3007" in lint("FROM python:latest\n").stdout


def test_image_is_pinned_and_says_its_version() -> None:
    (base,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm(@sha256:[0-9a-f]{64})?", base)
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"${PYTHON_IMAGE}"}
    (version,) = re.findall(r'image\.version="([^"]+)"', DOCKERFILE)
    assert version == PYPROJECT["project"]["version"]
    assert not re.search(r"apt-get|build-essential|\bgcc\b", DOCKERFILE)


def test_image_runs_fedem_as_nobody_in_particular() -> None:
    assert image().entrypoint == ["fedem"]
    assert image().user.split(":")[0].isdigit() and int(image().user.split(":")[0]) >= 10000
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    assert quiet.items() <= image().environment.items()


def test_what_is_compiled_ahead_is_where_containers_look() -> None:
    """And it is root's, and nobody else's to write, as it has to be to be read."""
    found = re.search(r'RUN export NUMBA_CACHE_DIR="\$VIRTUAL_ENV(/\S+)"(.*?)\n\n', DOCKERFILE, re.DOTALL)
    home = re.search(r"VIRTUAL_ENV=(\S+)", DOCKERFILE)
    assert found and home and image().environment["NUMBA_CACHE_DIR"] == home[1] + found[1]
    assert f"\nCOPY --from=build {home[1]} {home[1]}\n" in DOCKERFILE
    assert 'chmod -R u=rwX,go=rX "$NUMBA_CACHE_DIR"' in found[2]
    assert "for method in fedem fedncf" in found[2] and "for mode in replace elastic" in found[2]
    sources = [file.read_text() for file in (ROOT / "fedem_flwr" / "engine" / "fused").glob("*.py")]
    entries = {name for text in sources for name in re.findall(r"^@entry\ndef (\w+)", text, re.MULTILINE)}
    by_these = {"train_plain", "train_through_merge", "merge_tables", "train_layers", "train_merged_layers"}
    assert entries == by_these, "let a run in the Dockerfile use what is new"


def test_installer_knows_the_options() -> None:
    done = subprocess.run(
        [PROGRAMS / "uv", "pip", "install", "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    calls = re.findall(r"uv pip install([^&;\n]*)", DOCKERFILE.replace("\\\n", " "))
    options = set(re.findall(r"--[a-z-]+", " ".join(calls)))
    assert {"--torch-backend", "--require-hashes", "--requirements", "--no-build-isolation"} <= options
    assert [option for option in options if not re.search(rf"{option}\b", done.stdout)] == []
    backends = re.search(r"--torch-backend .*?possible values: ([^\]]*)", " ".join(done.stdout.split()))
    (default,) = re.findall(r"^ARG TORCH_BACKEND=(\w+)", DOCKERFILE, re.MULTILINE)
    assert default == "cpu" and backends and default in backends[1].split(", ")


def in_context(path: Path) -> bool:
    """Whether a file reaches the engine: the last pattern that fits it, or a folder above it, decides."""
    whole = path.relative_to(ROOT)
    names = [str(part) for part in (whole, *whole.parents) if part.name]
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        fits = {pattern, pattern.removeprefix("**/")}
        anywhere = pattern.startswith("**/")
        tried = [*names, *(name.rsplit("/", 1)[-1] for name in names)] if anywhere else names
        if any(fnmatch(name, one) and ("/" in one or "/" not in name) for name in tried for one in fits):
            sent = line.startswith("!")
    return sent


def test_context_is_what_the_package_is_built_from(tmp_path: Path) -> None:
    context = tmp_path / "context"
    ours = [
        path for path in ROOT.rglob("*") if path.is_file() and path.relative_to(ROOT).parts[0] not in {".venv", ".git"}
    ]
    sent = [path for path in ours if in_context(path)]
    tops = {path.relative_to(ROOT).parts[0] for path in sent}
    packages = {"fedem_flwr", "strategies", "clients", "configs"}
    assert tops == {"pyproject.toml", "requirements.lock", "requirements-torch.lock", "README.md", "LICENSE", *packages}
    assert not in_context(ROOT / ".venv" / "bin" / "python") and not in_context(ROOT / "runs" / "a" / "config.toml")
    for path in sent:
        assert path.suffix not in {".key", ".secret", ".pyc"}
        target = context / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", tmp_path, context], check=True, capture_output=True, timeout=240)
    (wheel,) = tmp_path.glob("*.whl")
    built = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {str(path.relative_to(ROOT)) for path in sent if path.relative_to(ROOT).parts[0] in packages}
    inside = {
        "strategies/": "fedem_flwr/strategies/",
        "clients/": "fedem_flwr/clients/",
        "configs/": "fedem_flwr/presets/",
    }
    for folder, installed in inside.items():  # nothing of ours lies at the top of site-packages
        expected = {re.sub(f"^{folder}", installed, name) for name in expected}
    assert built == expected
