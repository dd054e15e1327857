"""The services of docker-compose.yml as plain processes: what each runs, with what environment, seeing which folders.

`docker-compose config` merges and fills in the files as an engine would see them; nothing here needs an engine. A
container's file system becomes a folder in which every place that is mounted is a link to the folder of its volume, or
to a copy of the project's files.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.proxied import as_root

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = Path(sys.executable).parent
PATH = os.pathsep.join([str(PROGRAMS), os.defpath, "/usr/sbin"])
BASE, INSECURE = "docker-compose.yml", "docker-compose.insecure.yml"
PROFILE = "four"


class ComposeError(Exception):
    """Compose refuses the files; the message is its own."""


@dataclass(frozen=True)
class Process:
    """A service, ready for `subprocess`.

    Attributes:
        argv: the command; its first word is a file of this machine. environment: all of it.
        health: the command of the health check, empty without one.
        mounts: folders of this machine by the places where the service sees them.
        writable: those that it may write to, /tmp among them.
        root: the folder that stands for the container's file system.
    """

    argv: list[str]
    environment: dict[str, str]
    health: list[str]
    mounts: dict[str, Path]
    writable: dict[str, Path]
    root: Path


@dataclass(frozen=True)
class Image:
    """What the last stage of a Dockerfile says of its containers."""

    user: str
    entrypoint: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    folders: frozenset[str] = frozenset()  # made there for volumes, with the user as their owner


def run_compose(*arguments: str, variables: Mapping[str, str] | None = None, folder: Path = ROOT) -> str:
    """Call docker-compose where no variable of the caller's shell and no file .env has a say; returns what it prints.

    Raises:
        ComposeError: it refuses.
    """
    command = [str(PROGRAMS / "docker-compose"), "--env-file", os.devnull, *arguments]
    environment = {"PATH": os.defpath, "HOME": str(folder), **(variables or {})}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise ComposeError(done.stderr.strip())
    return done.stdout


@functools.cache
def _project(overlays: tuple[str, ...], profile: str, variables: tuple[tuple[str, str], ...]) -> str:
    files = [word for name in (BASE, *overlays) for word in ("--file", name)]
    wanted = ["--profile", profile] if profile else []
    return run_compose(*files, *wanted, "config", "--format", "json", variables=dict(variables))


def project(*overlays: str, profile: str = PROFILE, **variables: str) -> dict[str, Any]:
    """The files merged, filled in and validated against the Compose Specification, as Compose itself does it."""
    told = json.loads(_project(overlays, profile, tuple(sorted(variables.items()))))
    found: dict[str, Any] = _plain(told)
    return found


def _plain(value: Any) -> Any:
    """Without the doubling by which Compose marks a dollar sign that is not its own."""
    if isinstance(value, str):
        return value.replace("$$", "$")
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return {key: _plain(part) for key, part in value.items()} if isinstance(value, dict) else value


@functools.cache
def image() -> Image:
    """The image that all services share."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    stage = lines[max(index for index, line in enumerate(lines) if line.startswith("FROM ")) :]

    def last(word: str) -> str:
        return [line.removeprefix(word).strip() for line in stage if line.startswith(f"{word} ")][-1]

    pairs = [pair.partition("=") for line in stage if line.startswith("ENV ") for pair in line.split()[1:]]
    folders = re.search(r"install --directory[^/&]*((?:/\S+\s*)+)", " ".join(stage))
    return Image(
        last("USER"),
        json.loads(last("ENTRYPOINT")),
        {name: value for name, _, value in pairs},
        frozenset(folders[1].split()) if folders else frozenset(),
    )


def process(compose: Mapping[str, Any], name: str, world: Path) -> Process:
    """One service of a project; folders of volumes and of the service are made below `world`.

    Args:
        compose: what `project` returns. name: of the service.
    """
    service = compose["services"][name]
    root = world / "containers" / name
    ours = {mount["target"]: Path(mount["source"]) for mount in service["volumes"] if mount["type"] == "bind"}
    mounts = {mount["target"]: world / "volumes" / mount["source"] for mount in service["volumes"]}
    mounts |= {target: world / "files" / name / target.lstrip("/") for target in ours}
    for target, folder in mounts.items():
        folder.mkdir(parents=True, exist_ok=True)
        link = root / target.lstrip("/")
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(folder, target_is_directory=True)
    writable = {mount["target"]: mounts[mount["target"]] for mount in service["volumes"] if not mount.get("read_only")}
    for place in (told.partition(":")[0] for told in service["tmpfs"]):
        writable[place] = root / place.lstrip("/")
        writable[place].mkdir(parents=True, exist_ok=True)

    tops = "|".join(sorted({path.name for path in root.iterdir()}))
    absolute = re.compile(rf"(?<![\w./$-])/({tops})(?![\w.-])")

    def here(text: str) -> str:
        """A text of the container with the paths of this machine."""
        return absolute.sub(lambda match: f"{root}/{match[1]}", text)

    def command(words: list[str]) -> list[str]:
        program = shutil.which(words[0], path=PATH) or words[0]  # a proxy's may be missing on this machine
        return [program, *map(here, words[1:])]

    for target, files in ours.items():  # files of the project say where things are, too
        for file in files.iterdir() if files.is_dir() else ():
            (mounts[target] / file.name).write_text(as_root(here(file.read_text(encoding="utf-8"))))
    told = {**image().environment, **(service.get("environment") or {})}
    environment = {key: here(value) for key, value in told.items()}
    environment["PATH"] = PATH
    del environment["NUMBA_CACHE_DIR"]  # it is in the image, as what PATH names is
    entrypoint = service.get("entrypoint") or image().entrypoint
    test = (service.get("healthcheck") or {}).get("test") or []
    return Process(
        command([*entrypoint, *(service.get("command") or [])]),
        environment,
        command(test[1:]) if test[:1] == ["CMD"] else [],
        mounts,
        writable,
        root,
    )
