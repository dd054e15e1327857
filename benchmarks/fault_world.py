"""A small federation in which things go wrong on purpose: nodes in network namespaces, a relay, saboteurs in nodes.

The hub's namespace holds the SuperLink, the relay and this process, which is the server of every run. Each node has a
namespace of its own behind a pair of virtual interfaces, so that its network can be cut. Without the right to make
namespaces everything shares the loopback interface, and nothing can be cut.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.relay import Relay
from fedem_flwr.config import Config
from fedem_flwr.network.commands import Trusted, node_command, server_command, superlink_command
from fedem_flwr.network.key_folder import make_certificates
from fedem_flwr.network.link import Address
from fedem_flwr.network.processes import Child, await_listening, stop_all
from fedem_flwr.network.server import ServerOptions, serve
from fedem_flwr.network.trust import ServerTrust
from fedem_flwr.protocol.shards import FEDERATION_FOLDER, Federation, write_shards
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.inputs import load_interactions, split_of
from fedem_flwr.runtime.loop import Outcome
from fedem_flwr.runtime.prepared import PreparedRun

HUB, NET = "fedem-hub", "10.77.0"
SABOTAGE = Path(__file__).parent / "sabotage"


def in_hub() -> bool:
    """Whether this process runs in the hub's namespace."""
    return os.environ.get("FEDEM_HUB") == "1"


def namespaces_allowed() -> bool:
    """Whether this process may make network namespaces."""
    name = f"fedem-probe-{os.getpid()}"
    try:
        made = subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True).returncode == 0
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
    except OSError:
        return False
    return made


def _ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True)


@contextmanager
def hub(nodes: int) -> Iterator[None]:
    """Make the namespaces; they are gone afterwards, whatever happens."""
    names = [HUB, *(f"fedem-node-{node}" for node in range(nodes))]
    try:
        for name in names:
            _ip("netns", "del", name, check=False)
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", HUB, "link", "add", "br0", "type", "bridge")
        _ip("-n", HUB, "addr", "add", f"{NET}.1/24", "dev", "br0")
        _ip("-n", HUB, "link", "set", "br0", "up")
        for node in range(nodes):
            name = f"fedem-node-{node}"
            _ip("-n", HUB, "link", "add", f"v{node}", "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("-n", HUB, "link", "set", f"v{node}", "master", "br0", "up")
            _ip("-n", name, "addr", "add", f"{NET}.{10 + node}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
        yield
    finally:
        for name in names:
            _ip("netns", "del", name, check=False)


def run_in_hub(arguments: list[str]) -> int:
    """Run this program once more, inside the hub."""
    command = ["ip", "netns", "exec", HUB, sys.executable, *arguments]
    return subprocess.run(command, check=False, env={**os.environ, "FEDEM_HUB": "1"}).returncode


@dataclass
class FaultWorld:
    """A SuperLink and nodes that live through many runs, and are started anew when they die."""

    folder: Path
    config: Config
    nodes: int
    database: bool = False
    relayed: bool = True
    insecure: bool = False  # plain HTTP, which a relay can read
    watched: bool = False  # processes note the files that they open, in opened-NAME.txt
    relay: Relay | None = None
    superlink: Child | None = None
    children: list[Child] = field(default_factory=list)
    keep_up: bool = True
    busy: threading.Thread | None = None  # what goes on beside a run
    small_state: int | None = None  # a node whose state lies on a file system of its own, of 4 MiB

    def build(self) -> None:
        """Data, keys, processes."""
        host = f"{NET}.1" if in_hub() else "127.0.0.1"
        self.folder.mkdir(parents=True)
        split = split_of(self.config, load_interactions(self.config))
        write_shards(split, self.nodes, self.folder)
        if self.insecure:
            (self.folder / "superexec.secret").write_bytes(b"a secret of this world")
        else:
            make_certificates(self.folder / "certs", self.nodes, (host,))
        with socket.create_server((host, 0)) as probe:
            port = probe.getsockname()[1]
        ca = None if self.insecure else (self.folder / "certs" / "ca.crt").read_bytes()
        self.address = Address(f"{host}:{port}", ca)
        self.relay = Relay(host, (host, port))
        self.trusted = Trusted(None if self.insecure else self.folder / "certs")
        database = self.folder / "superlink.db" if self.database else None
        home = {"FLWR_HOME": str(self.folder / "flower")}
        command = superlink_command(self.address, self.trusted, self.secret, database)
        self.superlink = Child("superlink", command, self.folder / "logs" / "superlink.log", home)
        self.superlink.start()
        await_listening(self.superlink, self.address)
        self.through = Address(self.relay.place, ca) if self.relayed else self.address
        for node in range(self.nodes):
            state = self.folder / "state" / f"node-{node}"
            state.mkdir(parents=True)
            if node == self.small_state:
                mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(state)]
                subprocess.run(mount, check=True, capture_output=True)
            self.children.append(self.child(node))
            self.children[-1].start()
        threading.Thread(target=self._tend, daemon=True).start()

    def child(self, node: int) -> Child:
        """A node's process."""
        name = f"node-{node}"
        shard, state = self.folder / "shards" / name, self.folder / "state" / name
        command = node_command(self.through, self.trusted, node, shard, state, threads=1, individual=True)
        if in_hub():
            command = ["ip", "netns", "exec", f"fedem-{name}", *command]
        environment = {"FLWR_HOME": str(self.folder / "flower"), "OMP_NUM_THREADS": "1"}
        if self.relayed:  # where things are to go wrong
            environment["FEDEM_SABOTAGE"] = str(self.order_file(node))
        return Child(name, command, self.folder / "logs" / f"{name}.log", {**environment, **self.watching(name)})

    @property
    def secret(self) -> Path:
        """What lets a server take its task."""
        return (self.trusted.folder or self.folder) / "superexec.secret"

    def watching(self, name: str) -> dict[str, str]:
        """The environment of a process with a saboteur in it, who may also take notes."""
        notes = {"FEDEM_OPENED": str(self.folder / f"opened-{name}.txt")} if self.watched else {}
        found = os.environ.get("PYTHONPATH", "").split(os.pathsep)  # a checkout that is not installed, say
        return {"PYTHONPATH": os.pathsep.join(filter(None, [str(SABOTAGE), *found])), **notes}

    def _tend(self) -> None:
        """Start anew what has ended, as `restart: unless-stopped` does."""
        while True:
            time.sleep(0.2)
            for child in (self.superlink, *self.children):
                if self.keep_up and child is not None and child.ended() is not None:
                    with suppress(OSError):
                        child.start()

    def order_file(self, node: int) -> Path:
        """Where a node's saboteur looks."""
        return self.folder / f"order-{node}.json"

    def order(self, node: int, round_: int, do: str) -> None:
        """Something goes wrong in a node in a round."""
        self.order_file(node).write_text(json.dumps({"round": round_, "do": do}))

    def pid_of(self, node: int) -> int:
        """The node's own process (`ip netns exec` becomes it)."""
        return self.children[node].pid

    def cut(self, node: int, up: bool) -> None:
        """Take a node off the network, or put it back."""
        _ip("link", "set", f"v{node}", "up" if up else "down")

    def prepare(self, path: Path, config: Config) -> RunDirectory:
        """A new run over the federation."""
        federation = Federation.load(self.folder / FEDERATION_FOLDER)
        directory = RunDirectory(path).create()
        PreparedRun.create(directory, config, federation, "fault matrix")
        return directory

    def options(self) -> ServerOptions:
        """For a server in this process."""
        if self.insecure:
            return ServerOptions(self.address, self.secret.read_bytes())
        trust = ServerTrust.load(self.folder / "certs")
        return ServerOptions(self.address, trust.secret, trust.signing_key, trust.roster)

    def serve(self, directory: RunDirectory) -> Outcome:
        """Carry out what is left of a run, with the server in this process."""
        return serve(directory, self.options())

    def server_process(self, directory: RunDirectory) -> Child:
        """A server of its own, for runs whose server dies."""
        command = server_command(directory.path, self.address, self.trusted, self.secret)
        environment = {"FLWR_HOME": str(self.folder / "flower"), **self.watching("server")}
        child = Child("server", command, directory.path / "server.log", environment)
        child.start()
        return child

    def close(self) -> None:
        """Stop everything."""
        self.keep_up = False
        children = [*self.children, *([self.superlink] if self.superlink else [])]
        stop_all(children)
        if self.small_state is not None:
            state = self.folder / "state" / f"node-{self.small_state}"
            subprocess.run(["umount", str(state)], check=False, capture_output=True)

    def left(self) -> list[int]:
        """Processes of this federation that still run."""
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                other = entry.name.isdigit() and int(entry.name) != os.getpid()
                if other and str(self.folder).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return found


def stop_and_go(pid: int, seconds: float) -> None:
    """SIGSTOP a process, and SIGCONT it later."""
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
