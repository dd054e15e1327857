"""The federation of docker-compose.yml, not in containers: its commands in network namespaces that see each other only.

Each service gets a namespace with one interface, all of them on a bridge that is in a namespace too. There is no route
out: nothing that is sent here leaves these namespaces. Volumes are folders (see `compose_world`), and what a container
could not write to, its process cannot write to here.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.compose_world import INSECURE, PATH, Process, process, project

SERVICES = ("superlink", "server", "node-0", "node-1", "proxy")
PROXY = shutil.which("nginx", path=PATH) is not None  # else nodes find the SuperLink where the proxy should be
SUBNET = "10.89.47"  # exists inside the namespaces only
HOSTS = Path("/etc/netns")  # `ip netns exec` shows a namespace the files below here as its /etc
READY, RUN, STOP = 90.0, 150.0, 30.0  # seconds
ROUNDS = 5
ALONE = "--set evaluation.controls=false --set evaluation.local_only=false"
VARIABLES = {"FEDEM_DATASET": "/data/tiny.csv", "FEDEM_RUN_OPTIONS": f"--rounds {ROUNDS} --quiet {ALONE}"}
# `ip netns exec` gives its command mounts of its own, so nobody else sees these.
SEAL = 'while [ "$1" != -- ]; do mount --bind "$1" "$1"; shift; done; shift; mount -o remount,bind,ro /; exec "$@"'


def call(*command: str, check: bool = True) -> str:
    return subprocess.run(command, check=check, capture_output=True, text=True, timeout=20).stdout


def ip(*words: str) -> None:
    call("ip", *words)


@dataclass
class Lan:
    """Namespaces that can reach each other and nothing else, and what runs in them."""

    prefix: str
    logs: Path
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def space(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def inside(self, name: str) -> list[str]:
        """What a command begins with."""
        return ["ip", "netns", "exec", self.space(name)]

    def add(self, name: str, address: str) -> None:
        """A namespace with an address, or without one the bridge's."""
        space, switch = self.space(name), self.space("switch")
        ip("netns", "add", space)
        ip("-n", space, "link", "set", "lo", "up")
        if not address:
            ip("-n", space, "link", "add", "bridge", "type", "bridge")
            ip("-n", space, "link", "set", "bridge", "up")
            return
        ip("link", "add", "eth0", "netns", space, "type", "veth", "peer", "name", name, "netns", switch)
        ip("-n", switch, "link", "set", name, "master", "bridge", "up")
        ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        ip("-n", space, "link", "set", "eth0", "up")
        folder = HOSTS / space
        folder.mkdir(parents=True)
        proxy = SERVICES.index("proxy") + 1 if PROXY else 1
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{SUBNET}.1 superlink\n{SUBNET}.{proxy} proxy\n")

    def start(self, name: str, told: Process) -> None:
        """Run a service's command until it ends, or `stop`."""
        with open(self.logs / f"{name}.log", "ab") as log:
            self.running[name] = subprocess.Popen(
                [*self.inside(name), "sh", "-euc", SEAL, "sh", *map(str, told.writable.values()), "--", *told.argv],
                env=told.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def healthy(self, name: str, told: Process) -> bool:
        """What the health check says."""
        done = subprocess.run(
            [*self.inside(name), *told.health], env=told.environment, capture_output=True, timeout=20, check=False
        )
        return done.returncode == 0

    def await_healthy(self, name: str, told: Process) -> None:
        deadline = time.monotonic() + READY
        while not self.healthy(name, told):
            assert self.running[name].poll() is None and time.monotonic() < deadline, f"{name}:\n{self.log(name)}"
            time.sleep(0.3)

    def stop(self, name: str, signal_: int = signal.SIGTERM) -> int:
        """Ask a service to end, as `docker compose stop` does; its exit status."""
        child = self.running.pop(name)
        child.send_signal(signal_)
        return child.wait(timeout=STOP)

    def log(self, name: str) -> str:
        return (self.logs / f"{name}.log").read_text(errors="replace")[-3000:]

    def end(self) -> None:
        """End whatever runs here, and remove the namespaces: their interfaces go with them."""
        for name in (*SERVICES, "switch"):
            space = self.space(name)
            for pid in call("ip", "netns", "pids", space, check=False).split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            if name in self.running:
                self.running.pop(name).wait(timeout=STOP)
            with suppress(subprocess.CalledProcessError):
                ip("netns", "delete", space)
            shutil.rmtree(HOSTS / space, ignore_errors=True)


@contextmanager
def lan(logs: Path) -> Iterator[Lan]:
    """The namespaces of all services; skips where this machine does not allow them."""
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need the program `ip` (iproute2)")
    net = Lan(f"fedem{os.getpid()}", logs)
    made_hosts = not HOSTS.exists()
    with ExitStack() as stack:
        if made_hosts:
            stack.callback(lambda: HOSTS.rmdir() if HOSTS.is_dir() and not any(HOSTS.iterdir()) else None)
        stack.callback(net.end)
        try:
            net.add("switch", "")
            for number, name in enumerate(SERVICES, start=1):
                net.add(name, f"{SUBNET}.{number}")
            call(*net.inside("switch"), "sh", "-euc", SEAL, "sh", "--", "true")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here: {error.stderr.strip()}")
        except PermissionError as error:
            pytest.skip(f"network namespaces are not allowed here: {error}")
        yield net


def tiny_data(path: Path) -> None:
    rows = [f"{user},{(user * 7 + step * 3) % 40},{step}" for user in range(30) for step in range(10)]
    path.write_text("user,item,time\n" + "\n".join(rows) + "\n")


def finished_rounds(run: Path) -> int:
    with suppress(FileNotFoundError):
        return max((json.loads(line)["round"] for line in (run / "metrics.jsonl").read_text().splitlines()), default=-1)
    return -1


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the service `setup` hands out; no overlay changes it."""
    world = tmp_path_factory.mktemp("setup")
    setup = process(project(**VARIABLES), "setup", world)
    tiny_data(setup.mounts["/data"] / "tiny.csv")
    made = subprocess.run(setup.argv, env=setup.environment, capture_output=True, text=True, timeout=READY, check=False)
    assert made.returncode == 0, made.stderr
    return world / "volumes"


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("overlays", [(), (INSECURE,)], ids=["secure", "insecure"])
def test_the_commands_of_compose_train_over_a_network(overlays: tuple[str, ...], volumes: Path, tmp_path: Path) -> None:
    variables = dict(VARIABLES)
    if overlays:  # one of the two: uploads of single users; and nothing is compiled in each container once more
        variables["FEDEM_RUN_OPTIONS"] = f"--rounds 2 --quiet {ALONE} --set run.engine=torch"
        variables |= {"FEDEM_METHOD": "fedem", "FEDEM_NODE_OPTIONS": "--allow-individual-uploads"}
    compose = project(*overlays, **variables)
    assert compose["services"]["setup"] == project(**VARIABLES)["services"]["setup"]
    shutil.copytree(volumes, tmp_path / "volumes")
    told = {name: process(compose, name, tmp_path) for name in SERVICES}
    run = told["server"].mounts["/runs"] / compose["services"]["server"]["environment"]["FEDEM_RUN"]
    with lan(tmp_path) as net:
        net.start("superlink", told["superlink"])
        net.await_healthy("superlink", told["superlink"])
        if PROXY:
            net.start("proxy", told["proxy"])
            net.await_healthy("proxy", told["proxy"])
        for name in ("node-0", "node-1", "server"):
            net.start(name, told[name])
        if not overlays:  # once is enough: what `docker compose stop server` does, and `up` after it
            deadline = time.monotonic() + RUN
            while finished_rounds(run) < 1:
                assert net.running["server"].poll() is None and time.monotonic() < deadline, net.log("server")
                time.sleep(0.05)
            net.stop("server", signal.SIGINT)
            assert not (run / "summary.json").exists()
            net.start("server", told["server"])
        status = net.running["server"].wait(timeout=RUN)
        assert status == 0, "\n".join(net.log(name) for name in SERVICES)
        assert json.loads((run / "summary.json").read_text())
        assert finished_rounds(run) == (2 if overlays else ROUNDS)
        for name in ("node-0", "node-1"):
            assert net.healthy(name, told[name])
            assert any(told[name].mounts["/state"].iterdir()), "a node keeps its private state"

        if not overlays:
            net.start("server", told["server"])  # a finished run stays as it is
            assert net.running["server"].wait(timeout=READY) == 0
            assert "is finished" in net.log("server")
        assert [net.stop(name) for name in ("node-0", "node-1")] == [0, 0]
        if PROXY:
            assert net.stop("proxy") == 0
            # nodes look whether they may start runs; else it had nothing to complain of
            said = net.log("proxy").splitlines()
            assert all("forbidden by rule" in line and "POST /v1/control/list-runs" in line for line in said), said
        assert net.stop("superlink") in (0, -signal.SIGTERM)  # Flower's; it ends in order, and then by the signal
