"""What is installed is what was looked at: lock files, hashes, and an image that takes nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
LOCK, TORCH, TOOLS = (ROOT / f"requirements{part}.lock" for part in ("", "-torch", "-tools"))
ENTRY = re.compile(r"([a-z0-9-]+)==([^ \n]+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n")


def locked(path: Path) -> dict[str, Version]:
    """Versions by canonical name; whatever is no exact version with hashes fails here."""
    text = "".join(line for line in path.read_text().splitlines(keepends=True) if not line.startswith("#"))
    assert not ENTRY.sub("", text), "something beside versions and hashes"
    return {canonicalize_name(match[1]): Version(match[2]) for match in ENTRY.finditer(text)}


def pinned() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line[:1] != "#")
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def needed() -> Iterator[str]:
    """Everything that the package needs on this machine, however indirectly, by canonical name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [Requirement(line) for line in project["dependencies"]]
    seen: set[str] = set()
    while waiting:
        found = waiting.pop()
        for extra in ("", *found.extras):
            key = canonicalize_name(f"{found.name}-{extra}" if extra else found.name)
            if key in seen:
                continue
            seen.add(key)
            yield canonicalize_name(found.name)
            asked = [Requirement(line) for line in metadata.requires(found.name) or ()]
            waiting += [one for one in asked if one.marker is None or one.marker.evaluate({"extra": extra})]


def test_the_lock_has_the_tested_versions_of_all_that_is_needed() -> None:
    ours, torch = locked(LOCK), locked(TORCH)
    assert {name: version for name, version in ours.items() if pinned()[name] != version} == {}
    assert torch["torch"] == pinned()["torch"] and "torch" not in ours
    assert not (torch.keys() - {"torch"}) & pinned().keys(), "beside torch only what its build for GPUs brings"
    assert set(needed()) - {"torch"} <= ours.keys()


def test_kernels_are_tested_with_the_triton_of_torchs_gpu_build() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["kernels"] == [f"triton=={locked(TORCH)['triton']}"]
    assert "triton" not in pinned(), "the image would bring it"


def test_the_tools_are_locked_too() -> None:
    assert {"cyclonedx-bom", "pip-audit"} <= locked(TOOLS).keys()


def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text().replace("\\\n", " ")


def test_the_image_installs_nothing_without_a_hash_but_for_torch_which_it_says() -> None:
    calls = re.findall(r"pip install ([^&;\n]*)", dockerfile())
    assert len(calls) == 6
    unchecked = [call.strip() for call in calls if "--require-hashes" not in call]
    assert unchecked == ['--no-deps --torch-backend "$TORCH_BACKEND" "$version"', "--no-deps --no-build-isolation ."]
    assert all("--no-deps" in call for call in calls), "and nothing comes along"


@pytest.mark.parametrize(
    ("backend", "sha256", "calls", "warned"),
    [
        ("pypi", "", "--require-hashes --no-deps --only-binary :all: --requirements requirements-torch.lock", False),
        ("cpu", "00ff", "--require-hashes --no-deps --torch-backend cpu --requirements torch.lock", False),
        ("cpu", "", "--no-deps --torch-backend cpu torch==VERSION", True),
    ],
)
def test_how_the_image_gets_torch(backend: str, sha256: str, calls: str, warned: bool, tmp_path: Path) -> None:
    """The very lines of the Dockerfile, with a stand-in for the installer."""
    (script,) = re.findall(r"^RUN (version=.*)$", dockerfile(), re.MULTILINE)
    shutil.copy(TORCH, tmp_path)
    (tmp_path / "uv").write_text('#!/bin/sh\necho "$*"\ncat torch.lock 2>/dev/null || true\n')
    (tmp_path / "uv").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.defpath}", "TORCH_BACKEND": backend, "TORCH_SHA256": sha256}
    command = ["sh", "-euc", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    version = str(pinned()["torch"])
    expected = [f"pip install {calls.replace('VERSION', version)}"]
    assert done.stdout.splitlines() == expected + ([f"torch=={version} --hash=sha256:{sha256}"] if sha256 else [])
    assert ("unchecked" in done.stderr) == warned


def test_the_images_installer_comes_from_the_lock(tmp_path: Path) -> None:
    (script,) = re.findall(r"^RUN (sed [^&]*)&&", dockerfile(), re.MULTILINE)
    shutil.copy(LOCK, tmp_path)
    subprocess.run(["sh", "-euc", script], cwd=tmp_path, check=True)
    assert locked(tmp_path / "uv.lock") == {"uv": pinned()["uv"]}


def test_what_is_not_pinned_by_its_bytes_is_said() -> None:
    """No registry can be asked here: whoever builds fills the digests in."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    command = [make, "--no-print-directory", "docker-pins"]
    environment = {"PATH": os.environ.get("PATH", os.defpath), "FEDEM_NGINX_IMAGE": f"nginx:1@sha256:{'0' * 64}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    base, proxy, how = done.stdout.splitlines()
    assert base.startswith("NOT pinned by its bytes: python:3.11") and "imagetools inspect python:3.11" in base
    assert proxy.startswith("pinned by its bytes: nginx:1@sha256:") and "FEDEM_PYTHON_IMAGE" in how
