"""`fedem run --runtime network`: the processes of a run on this machine, started, watched and stopped.

This process is the experimenter's: it may have the data, cuts them into shards, watches and reports. The server that it
starts has tables and configuration only, each node has its own shard only.

    RUN_DIR/federation/                 what the server knows of the data
    RUN_DIR/network/certs/              keys and certificates
    RUN_DIR/network/shards/node-0 ...   the nodes' data, and network/nodes/node-0/ their private state
    RUN_DIR/network/logs/               what each process said
"""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fedem_flwr.config import Config
from fedem_flwr.config.sections import NetworkConfig
from fedem_flwr.contract.finding import uploads_single_users
from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.files import own_folder, private_folder, quoted
from fedem_flwr.network import NETWORK_FOLDER
from fedem_flwr.network.commands import Trusted, node_command, server_command, superlink_command
from fedem_flwr.network.host import RUNS
from fedem_flwr.network.keeper import Keeper
from fedem_flwr.network.key_folder import make_certificates
from fedem_flwr.network.link import Address, read_secret
from fedem_flwr.network.processes import Child, await_listening, free_port, require_linux, running
from fedem_flwr.network.server import read_outcome
from fedem_flwr.network.trust import ServerTrust, refuse_changed_keys, write_private
from fedem_flwr.nodes.ceilings import EPOCHS
from fedem_flwr.nodes.host import STATE_FOLDER, node_name
from fedem_flwr.protocol.shards import FEDERATION_FOLDER, SHARDS_FOLDER, Federation, write_shards
from fedem_flwr.report.run_directory import METRICS, RunDirectory
from fedem_flwr.runtime.lines import Line
from fedem_flwr.runtime.loop import Outcome
from fedem_flwr.runtime.prepared import PreparedRun

_LOOK = 0.1  # seconds between looks at processes and lines

log = logging.getLogger("fedem.network")


@dataclass
class Launched:
    """The processes of a run; those that run elsewhere are not among them."""

    server: Child
    superlink: Child | None
    nodes: list[Child]

    @property
    def all(self) -> list[Child]:
        """In the order in which they are asked to end."""
        return [self.server, *self.nodes, *([self.superlink] if self.superlink else [])]


def carry_out_network(run: PreparedRun, on_line: Callable[[Line], None]) -> Outcome:
    """Run the rounds that are left over networked processes.

    Raises:
        InputError: the run lacks what it needs. FedemError: the server failed; the run can be resumed.
    """
    folder = run.directory.path.resolve() / NETWORK_FOLDER
    own_folder(folder, "the run's folder")  # keys, interactions, private state, and what crosses the SuperLink
    nodes = _spread(run, folder)
    try:
        launched = _started_elsewhere(run, folder) if run.config.network.superlink else _start_here(run, folder, nodes)
    except OSError as error:
        raise FedemError(f"a process cannot be started: {error}") from error
    with running(launched.all):
        _watch(launched, _Lines(run.directory, on_line))
    if not run.config.network.superlink:
        _lend_states(run, folder, nodes)
    return read_outcome(run.directory)


def _spread(run: PreparedRun, folder: Path) -> int:
    """Write shards and federation where they are not there yet; returns the number of nodes."""
    place = run.directory.path / FEDERATION_FOLDER
    if place.is_dir():
        return len(Federation.load(place).shards)
    if (run.directory.path / STATE_FOLDER).exists():
        raise InputError(
            f"{run.directory.path} is a run of `flwr run`, whose nodes keep their state in it: go on with "
            + shlex.join(["flwr", "run", ".", "--run-config", f'run-dir="{run.directory.path.resolve()}"'])
        )
    if run.config.network.superlink:
        raise InputError("nodes that run elsewhere hold shards of their own: name their description with --federation")
    federation = write_shards(run.split, run.nodes, folder)
    (folder / FEDERATION_FOLDER).rename(place)
    return len(federation.shards)


def _start_here(run: PreparedRun, folder: Path, nodes: int) -> Launched:
    """SuperLink, nodes and server, all on this machine."""
    network = run.config.network
    trusted = Trusted(None if network.insecure else folder / "certs")
    secret = folder / "superexec.secret" if trusted.folder is None else trusted.folder / "superexec.secret"
    if trusted.folder is not None and not trusted.folder.is_dir():
        make_certificates(trusted.folder, nodes)
    elif trusted.folder is None and not secret.exists():
        write_private(secret, secrets.token_bytes(32))
    ca = (trusted.folder / "ca.crt").read_bytes() if trusted.folder else None
    address = Address(f"127.0.0.1:{free_port()}", ca)
    logs, database = folder / "logs", folder / "superlink.db"
    for old in folder.glob("superlink.db*"):  # of a run that is resumed: its messages are nobody's any more
        old.unlink()
    command = superlink_command(address, trusted, secret, database if network.database else None)
    home = {"FLWR_HOME": str(folder / "flower")}
    superlink = Child("SuperLink", command, logs / "superlink.log", home)
    threads = max(1, run.config.run.threads)
    individual = run.config.privacy.individual_uploads
    children = []
    for node in range(nodes):
        shard, state = folder / SHARDS_FOLDER / f"node-{node}", folder / "nodes" / f"node-{node}"
        command = node_command(
            address,
            trusted,
            node,
            shard,
            state,
            threads=threads,
            individual=individual,
            epochs=max(EPOCHS, run.config.local.epochs, run.config.merge.epochs),
            device=run.config.run.device,
        )
        few = {"OMP_NUM_THREADS": str(threads)}
        children.append(Child(f"node-{node}", command, logs / f"node-{node}.log", {**home, **few}))
    launched = Launched(_server(run, folder, address, trusted, secret), superlink, children)
    try:
        superlink.start()
        for child in (*children, launched.server):  # they import while the SuperLink starts
            child.start()
        await_listening(superlink, address)
    except BaseException:
        with running(launched.all):
            raise
    return launched


def _started_elsewhere(run: PreparedRun, folder: Path) -> Launched:
    """The server alone: SuperLink and nodes run already."""
    network = run.config.network
    address = Address(network.superlink)
    if network.insecure and not address.loopback:
        log.warning("--insecure: what crosses between here and %s can be read and changed on the way", address.place)
    trusted, secret = _keys_elsewhere(network)
    server = _server(run, folder, address, trusted, secret)
    server.start()
    return Launched(server, None, [])


def _server(run: PreparedRun, folder: Path, address: Address, trusted: Trusted, secret: Path) -> Child:
    """It writes into the run's directory as this process does: what holds that directory is handed on."""
    command = server_command(run.directory.path.resolve(), address, trusted, secret)
    environment, files = run.lock.hand_on() if run.lock else ({}, ())
    environment = {"FLWR_HOME": str(folder / "flower"), **environment}
    return Child("server", command, folder / "logs" / "server.log", environment, files)


def _keys_elsewhere(network: NetworkConfig) -> tuple[Trusted, Path]:
    """Where the keys are for a SuperLink that runs already, and the secret that lets us take a run's part there."""
    folder = Path(network.certs or ".").resolve()
    return Trusted(None if network.insecure else folder), folder / "superexec.secret"


def check_network(network: NetworkConfig) -> None:
    """Refuse what cannot work, before anything is written.

    Raises:
        InputError: no address, no keys or damaged ones; keys for what makes its own.
    """
    if not network.superlink:
        require_linux()
        if network.certs is not None:
            raise InputError("--certs goes with --superlink: a SuperLink that is started here gets keys of its own")
        return
    Address(network.superlink)
    if not network.insecure and network.certs is None:
        raise InputError("give the folder with the server's keys (--certs), or --insecure to go without")
    trusted, secret = _keys_elsewhere(network)
    if trusted.folder is not None:
        refuse_changed_keys(trusted.folder)
        ServerTrust.load(trusted.folder)
    else:
        read_secret(secret)


def check_privacy(config: Config) -> None:
    """Refuse what the nodes that would be started here do not send, before anything is written.

    Raises:
        InputError: every upload would be a single user's, and that is not allowed.
    """
    if config.ldp.seeded:
        raise InputError("ldp.seeded = true: its noise is known to the server; networked nodes refuse it; leave it out")
    if config.network.superlink or config.privacy.individual_uploads:
        return
    if uploads_single_users(config):
        reason = f"method '{config.method.name}' uploads single users' own values"
    elif config.run.users_per_node == 1:
        reason = "run.users_per_node = 1 makes every upload a single user's"
    elif config.local.negatives < 1:
        reason = "local.negatives = 0 makes the rows that training touches the histories"
    else:
        return
    raise InputError(
        f"{reason}, which networked nodes refuse: allow it for those that this run starts, with "
        "--set privacy.individual_uploads=true, or use another runtime"
    )


def _watch(launched: Launched, lines: _Lines) -> None:
    """Until the server has ended; nodes and SuperLinks that die are started anew.

    Raises:
        InputError, FedemError: the server failed, the SuperLink keeps dying, or every node does.
    """
    keeper = Keeper(launched.superlink, launched.nodes)
    while launched.server.alive:
        lines.look()
        keeper.look()
        time.sleep(_LOOK)
    lines.look()
    code = launched.server.ended()
    if code:
        reason = launched.server.reason() if code in (1, 2) else f"it was ended by signal {-code}"
        kind = InputError if code == 2 else FedemError
        raise kind(f"the server stopped: {reason}; continue with `fedem resume {quoted(lines.directory.path)}`")


@dataclass
class _Lines:
    """Finished metrics lines, as they come."""

    directory: RunDirectory
    on_line: Callable[[Line], None]
    seen: int = -1  # the last round that was shown
    size: int = -1  # of the file when it was read

    def look(self) -> None:
        """Hand on what is new."""
        with suppress(FedemError, OSError):  # not there yet; a line that is being written is left out
            size = (self.directory.path / METRICS).stat().st_size
            if size == self.size:
                return
            self.size = size
            for line in self.directory.read_metrics():
                if line["round"] > self.seen:
                    self.seen = line["round"]
                    self.on_line(line)


def _lend_states(run: PreparedRun, folder: Path, nodes: int) -> None:
    """Link the nodes' private states to where a run in one process has them: recommendations look there."""
    place = run.directory.path.resolve() / STATE_FOLDER
    for node in range(nodes):
        found = sorted((folder / "nodes" / f"node-{node}" / RUNS).glob(f"*/nodes/{node_name(0)}"))
        target = place / node_name(node)
        if not found or target.is_dir():
            continue
        private_folder(place)
        target.symlink_to(os.path.relpath(found[-1], place), target_is_directory=True)
