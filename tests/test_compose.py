"""The compose files without an engine: valid, hardened, each sees its own things only, commands are accepted."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink

from fedem_flwr.cli import app
from fedem_flwr.network import superlink
from fedem_flwr.network.commands import Trusted, superlink_command
from fedem_flwr.network.link import Address
from tests.compose_world import (
    BASE,
    INSECURE,
    PROFILE,
    ROOT,
    ComposeError,
    Process,
    image,
    process,
    project,
    run_compose,
)

NODES = [f"node-{index}" for index in range(4)]
OVERLAYS: list[tuple[str, ...]] = [(), (INSECURE,)]
LONG_LIVED = {"superlink", "proxy", *NODES}
FORBIDDEN = ("privileged", "cap_add", "devices", "network_mode", "pid", "ipc", "userns_mode", "ports", "env_file")

overlaid = pytest.mark.parametrize("overlays", OVERLAYS, ids=["secure", "insecure"])


def services(*overlays: str, **variables: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = project(*overlays, **variables)["services"]
    return found


def sources(service: dict[str, Any]) -> dict[str, str]:
    return {mount["target"]: mount["source"] for mount in service["volumes"] if mount["type"] == "volume"}


def read_only(service: dict[str, Any]) -> set[str]:
    return {mount["target"] for mount in service["volumes"] if mount.get("read_only")}


def run_here(told: Process, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        told.argv, env={**told.environment, **environment}, capture_output=True, text=True, timeout=240, check=False
    )


@overlaid
@pytest.mark.parametrize("profile", ["", PROFILE])
def test_compose_takes_the_files(overlays: tuple[str, ...], profile: str) -> None:
    expected = {"fetch", "setup", "superlink", "proxy", "server", *(NODES if profile else NODES[:2])}
    assert project(*overlays, profile=profile)["services"].keys() == expected


def test_compose_refuses_what_the_specification_does_not_know(tmp_path: Path) -> None:
    (tmp_path / BASE).write_text("services: {node: {image: 'x:1', restart_policy: always}}")
    with pytest.raises(ComposeError, match="restart_policy"):
        run_compose("config", "--quiet", folder=tmp_path)


@overlaid
def test_nothing_runs_as_root_or_with_rights(overlays: tuple[str, ...]) -> None:
    for name, service in services(*overlays).items():
        assert service["user"] == image().user == "10001:10001", name
        assert service["read_only"] and service["init"], name
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"], name
        assert set(FORBIDDEN) & service.keys() == ({"network_mode"} if name == "setup" else set()), name
        assert {"memory", "pids"} <= service["deploy"]["resources"]["limits"].keys(), name
        assert service["logging"]["options"].keys() >= {"max-size", "max-file"}, name


@overlaid
def test_who_reaches_whom(overlays: tuple[str, ...]) -> None:
    """With keys nobody outside, with all rows and keys nobody at all; nodes the proxy only."""
    compose = project(*overlays)
    assert all(compose["networks"][name]["internal"] for name in ("federation", "inside"))
    found = compose["services"]
    reached = {name: set(service["networks"]) for name, service in found.items() if "networks" in service}
    nodes = {name: {"federation"} for name in NODES}
    behind = {"superlink": {"inside"}, "server": {"inside"}, "proxy": {"federation", "inside"}}
    assert reached == {"fetch": {"outside"}, **behind, **nodes}
    assert found["setup"]["network_mode"] == "none"
    assert all("--superlink=proxy:8000" in found[name]["command"] for name in NODES)


def test_one_image_of_this_version_that_is_built_and_the_proxys() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    found = services()
    assert found["proxy"]["image"].startswith("nginx:")
    ours = {name: service for name, service in found.items() if name != "proxy"}
    assert {service["image"] for service in ours.values()} == {f"fedem-flwr:{version}"}
    assert [name for name, service in found.items() if "build" in service] == ["fetch"]
    assert {service["pull_policy"] for name, service in ours.items() if name != "fetch"} == {"never"}
    pinned = services(FEDEM_PYTHON_IMAGE="python:1@sha256:00", FEDEM_NGINX_IMAGE="nginx:1@sha256:11")
    assert pinned["fetch"]["build"]["args"] == {"PYTHON_IMAGE": "python:1@sha256:00"}
    assert pinned["proxy"]["image"] == "nginx:1@sha256:11"
    (base,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert found["fetch"]["build"]["args"] == {"PYTHON_IMAGE": base}, "the same as without compose"


@overlaid
def test_what_lives_long_is_watched_and_started_again(overlays: tuple[str, ...]) -> None:
    found = services(*overlays)
    assert {name for name, service in found.items() if service["restart"] == "unless-stopped"} == LONG_LIVED
    for name in LONG_LIVED:
        assert found[name]["healthcheck"]["test"][0] == "CMD" and found[name]["stop_grace_period"], name
    assert found["server"]["restart"] == "on-failure:5" and found["server"]["stop_signal"] == "SIGINT"
    assert found["setup"]["restart"] == found["fetch"]["restart"] == "no"


@overlaid
def test_each_sees_its_own_volumes_only(overlays: tuple[str, ...]) -> None:
    found = services(*overlays)
    for name in NODES:
        assert sources(found[name]) == {"/own": f"{name}-own", "/state": f"{name}-state"}
    assert sources(found["superlink"]) == {"/own": "superlink-own", "/state": "superlink-state"}
    assert sources(found["server"]) == {"/own": "server-own", "/runs": "runs"}
    assert sources(found["proxy"]) == {"/own": "proxy-own"} and read_only(found["proxy"]) == {"/own", "/nginx"}
    handed_out = {f"/give/{name}": f"{name}-own" for name in ("superlink", "proxy", "server", *NODES)}
    assert sources(found["setup"]) == {**handed_out, "/setup": "setup", "/data": "data"}
    assert sources(found["fetch"]) == {"/data": "data"} and read_only(found["setup"]) == {"/data"}
    for name in ("superlink", "server", *NODES):
        assert read_only(found[name]) == {"/own"}
    assert set(project(*overlays)["volumes"]) == {
        volume for service in found.values() for volume in sources(service).values()
    }


@overlaid
def test_paths_of_commands_are_mounted_and_owned_by_the_user(overlays: tuple[str, ...], tmp_path: Path) -> None:
    for name, service in services(*overlays).items():
        assert name == "proxy" or sources(service).keys() <= image().folders, name
        words = " ".join(service["command"])
        seen = {mount["target"].split("/")[1] for mount in service["volumes"]} | {"tmp"}
        assert set(re.findall(r"(?<![\w.$*])/(\w+)", words)) <= seen, name
        writable = process(project(*overlays), name, tmp_path).writable.keys()
        written = re.findall(r"--(?:state|database|health|out)[= ](/\w+)", words)
        assert set(written) <= writable, name


def test_a_folder_of_this_machine_can_hold_the_data() -> None:
    found = services(FEDEM_DATA="./datasets", FEDEM_DATASET="ml-100k")
    for name in ("fetch", "setup"):
        (data,) = [mount for mount in found[name]["volumes"] if mount["target"] == "/data"]
        assert data["type"] == "bind" and data["source"] == str(ROOT / "datasets")


@overlaid
def test_no_secret_is_a_variable(overlays: tuple[str, ...]) -> None:
    for name, service in services(*overlays).items():
        known = {**image().environment, **(service.get("environment") or {})}
        assert not [key for key in known if re.search("SECRET|PASSWORD|TOKEN|KEY|CREDENTIAL", key, re.IGNORECASE)], name
        assert known["FLWR_TELEMETRY_ENABLED"] == "0"


def test_only_the_overlay_goes_without_encryption() -> None:
    secure, insecure = services(), services(INSECURE)
    assert "insecure" not in (ROOT / BASE).read_text().replace(INSECURE, "")
    assert not {"compose.override.yml", "docker-compose.override.yml"} & {path.name for path in ROOT.iterdir()}
    for name, service in secure.items():
        changed = {key for key in service.keys() | insecure[name].keys() if service.get(key) != insecure[name].get(key)}
        assert changed <= {"command", "healthcheck", "environment"}, name
        assert bool(changed) == (name not in ("fetch", "setup"))


@overlaid
def test_superlink_takes_its_command(overlays: tuple[str, ...]) -> None:
    service = services(*overlays)["superlink"]
    ours = superlink_command(Address("127.0.0.1:8000"), Trusted(None), Path("secret"), None)
    assert service["entrypoint"] == ["python", *ours[1:3]], "the one with limits; see attacks/test_flooded_superlink.py"
    assert ours[1:3] == ["-m", superlink.__name__] and callable(superlink.main)
    told = _parse_args_run_superlink().parse_args(service["command"])
    assert told.isolation == "process" and told.port == 8000 and told.database.startswith("/state/")
    assert told.superexec_auth_secret_file == "/own/superexec.secret"
    assert told.insecure == bool(overlays)
    assert told.enable_supernode_auth == (not overlays)
    assert bool(told.ssl_certfile and told.ssl_keyfile and told.ssl_ca_certfile) == (not overlays)


def fedem_commands(service: dict[str, Any]) -> list[list[str]]:
    """The arguments of each `fedem` that a service runs; variables have their values, or stand for a word."""
    if not service.get("entrypoint"):
        return [service["command"]]
    known = {"run": "/runs/compose", **(service.get("environment") or {})}
    (script,) = service["command"]
    parts = re.split(r"[;\n]", script.replace("\\\n", " "))
    calls = [match[1] for part in parts if (match := re.search(r"^\s*(?:then )?(?:exec )?fedem (.*)", part))]
    filled = [re.sub(r"\$(\w+)", lambda match: known[match[1]], call) for call in calls]
    return [shlex.split(call) for call in filled]


@overlaid
def test_fedem_takes_its_commands(overlays: tuple[str, ...]) -> None:
    root, seen = typer.main.get_command(app), []
    options = {"FEDEM_RUN_OPTIONS": "--rounds 3", "FEDEM_SHARD_OPTIONS": "--seed 1"}
    options["FEDEM_NODE_OPTIONS"] = "--smallest-sum 3 --allow-individual-uploads"
    for name, service in services(*overlays, **options).items():
        for words in fedem_commands(service) if name not in ("superlink", "proxy") else []:
            context, command, left, path = typer.Context(root), root, words, []
            while hasattr(command, "resolve_command"):
                word, command, left = command.resolve_command(context, left)
                path.append(str(word))
            command.make_context(" ".join(path), list(left), parent=context)  # raises for anything it does not take
            seen.append(" ".join(path))
    assert sorted(seen) == ["data info", "data shard", "deploy certs", *["deploy node"] * 4, "resume", "run"]


@pytest.mark.parametrize(("age", "healthy"), [(0, True), (300, False), (None, False)])
def test_a_node_is_healthy_while_it_has_contact(age: int | None, healthy: bool, tmp_path: Path) -> None:
    told = process(project(), "node-0", tmp_path)
    if age is not None:
        file = told.root / "tmp" / "health"
        file.touch()
        os.utime(file, (time.time() - age,) * 2)
    assert (subprocess.run(told.health, capture_output=True, timeout=60, check=False).returncode == 0) == healthy


def test_server_starts_continues_or_is_done(tmp_path: Path) -> None:
    told = process(project(FEDEM_RUN_OPTIONS="--rounds 3"), "server", tmp_path)
    stand_in = tmp_path / "bin" / "fedem"
    stand_in.parent.mkdir()
    stand_in.write_text("#!/bin/sh\necho fedem $*\n")
    stand_in.chmod(0o755)
    path, run = f"{stand_in.parent}:{told.environment['PATH']}", told.root / "runs" / "compose"
    started = run_here(told, PATH=path).stdout
    assert started.startswith("fedem run --runtime network") and started.endswith(f"--out {run} --rounds 3\n")
    run.mkdir()
    (run / "config.toml").touch()
    assert run_here(told, PATH=path).stdout == f"fedem resume --trust {run}\n"
    (run / "summary.json").touch()
    done = run_here(told, PATH=path)
    assert done.returncode == 0 and "is finished" in done.stdout


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_setup_hands_out_what_each_may_see(tmp_path: Path) -> None:
    rows = [f"{user},{item},{item}" for user in range(8) for item in range(user % 3, 12)]
    compose = project(FEDEM_DATASET="/data/tiny.csv")
    told = process(compose, "setup", tmp_path)
    (told.mounts["/data"] / "tiny.csv").write_text("user,item,time\n" + "\n".join(rows) + "\n")
    given = {name: tmp_path / "volumes" / f"{name}-own" for name in ("superlink", "proxy", "server", *NODES)}
    (given["node-1"] / "certs").mkdir()  # what an interrupted set-up may have left
    done = run_here(told)
    assert done.returncode == 0, done.stderr

    assert files_below(given["superlink"]) == {"ca.crt", "superlink.crt", "superlink.key", "superexec.secret"}
    assert files_below(given["proxy"]) == {"ca.crt", "superlink.crt", "superlink.key"}
    server = files_below(given["server"])
    assert {name for name in server if name.startswith("certs/")} == {
        f"certs/{name}" for name in ("ca.crt", "superexec.secret", "server.key", "server.pub", "roster.json")
    }
    assert {name.split("/")[0] for name in server} == {"certs", "federation"}
    for name in NODES[:2]:
        node = files_below(given[name])
        keys = {"ca.crt", "server.pub", f"nodes/{name}.key", f"nodes/{name}.pub"}
        assert {file for file in node if file.startswith("certs/")} == {f"certs/{key}" for key in keys}
        assert {file.split("/")[0] for file in node} == {"certs", "shard"}
        assert (given[name] / "certs" / "nodes" / f"{name}.key").stat().st_mode & 0o077 == 0
    assert not files_below(given["node-2"]) and not files_below(given["node-3"])
    assert files_below(told.mounts["/setup"]) == {"made"}, "no keys, and not all rows"
    assert not list(tmp_path.rglob("ca.key")), "nobody signs anything any more"

    before = (given["superlink"] / "ca.crt").read_bytes()
    assert run_here(told).returncode == 0 and (given["superlink"] / "ca.crt").read_bytes() == before
    refused = run_here(process(project(FEDEM_DATASET="/data/tiny.csv", FEDEM_NODES="4"), "setup", tmp_path))
    assert refused.returncode == 2 and "down --volumes" in refused.stderr and len(refused.stderr.splitlines()) == 1
