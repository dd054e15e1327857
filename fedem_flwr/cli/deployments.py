"""What `fedem deploy` does."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from rich.table import Table

from fedem_flwr.errors import InputError
from fedem_flwr.terminal import console
from fedem_flwr.text import SafeFormatter

_out = console()


def certs(out: Path, nodes: int, hosts: list[str], *, add: bool, rekey: list[str], renew: bool) -> None:
    """Make the folder of keys and certificates, more nodes in it, or keys or the SuperLink's certificate anew."""
    from fedem_flwr.network.key_folder import add_nodes, make_certificates, rekey_nodes, renew_certificate

    if rekey and (add or renew or hosts):
        raise InputError("--rekey makes new keys of nodes only: give --add, --renew and --host by themselves")
    if add and (renew or hosts):
        raise InputError("--add makes keys of nodes only: names of the SuperLink go with --renew --host, by itself")
    if add or renew or rekey:
        _check_keys(out)
    if rekey:
        rekey_nodes(out, rekey)
        files = ", ".join(f"nodes/{name}.key" for name in rekey)
        _out.print(f"{out}: new {files} and roster.json; start these nodes and the server with them", soft_wrap=True)
        return
    if renew:
        renew_certificate(out, hosts)
        _out.print(f"{out / 'superlink.crt'}: signed anew; start the SuperLink with it", soft_wrap=True)
        return
    if add:
        add_nodes(out, nodes)
    else:
        make_certificates(out, nodes, hosts)
    _out.print(f"{out}: {'added' if add else 'a CA, the SuperLink, the server and'} {nodes} node keys", soft_wrap=True)
    _out.print(
        "keep ca.key offline; superlink.* go to the SuperLink, superexec.secret, server.key and roster.json to the "
        "server, ca.crt, server.pub and one key of nodes/ to each node",
        soft_wrap=True,
    )


def up(
    directory: Path,
    data: Mapping[str, Any],
    nodes: int | None,
    seed: int | None,
    host: str | None,
    port: int | None,
    *,
    insecure: bool,
    individual_uploads: bool,
    quiet: bool,
) -> None:
    """Start a deployment, made anew where there is none."""
    from fedem_flwr.network.deployment import HOST, NODES, PORT, Deployment
    from fedem_flwr.network.processes import require_linux

    require_linux()
    deployment = Deployment.open(directory)
    new = deployment is None
    if deployment is None:
        given = {"data": {key: value for key, value in data.items() if value is not None}}
        given["privacy"] = {"individual_uploads": individual_uploads}
        if seed is not None:
            given["run"] = {"seed": seed}
        where = HOST if host is None else host, PORT if port is None else port
        deployment = Deployment.create(directory, given, nodes or NODES, *where, insecure=insecure, quiet=quiet)
    else:
        has = deployment.address
        asked = {"--nodes": (nodes, deployment.nodes), "--host": (host and host.strip("[]"), has.host)}
        asked |= {"--port": (port or None, has.port), "--insecure": (insecure or None, deployment.insecure)}
        asked |= {"--allow-individual-uploads": (individual_uploads or None, deployment.individual_uploads)}
        differs = [f"{option} {there}" for option, (want, there) in asked.items() if want not in (None, there)]
        differs += ["data of its own"] if any(value is not None for value in (*data.values(), seed)) else []
        if differs:
            raise InputError(f"{directory} holds a deployment with {differs[0]}: `fedem deploy down --remove` first")
    try:
        started = deployment.start()
    except InputError:
        if new:  # what could not be started even once is not kept; after other errors its logs are looked at
            deployment.stop()
            deployment.remove()
        raise
    _out.print(f"started {', '.join(started)}" if started else "everything runs already", soft_wrap=True)
    _out.print(f"a run over it: {deployment.run_command()}", soft_wrap=True)


def status(directory: Path) -> None:
    """A table of the processes."""
    from fedem_flwr.network.deployment import Deployment

    deployment = Deployment.existing(directory)
    table = Table(title=f"{directory}: SuperLink at {deployment.address.place}")
    for column in ("process", "pid", "state", "memory", "last word"):
        table.add_column(column, overflow="fold", justify="right" if column in ("pid", "memory") else "left")
    rows = deployment.status()
    for row in rows:
        memory = f"{row.memory / 1e6:,.0f} MB" if row.memory else "-"
        table.add_row(row.name, str(row.pid or "-"), row.state, memory, row.said)
    _out.print(table)
    if any(row.state != "runs" for row in rows):
        sys.exit(1)


def down(directory: Path, *, remove: bool) -> None:
    """Stop a deployment."""
    from fedem_flwr.network.deployment import Deployment

    deployment = Deployment.existing(directory)
    stopped = deployment.stop()
    _out.print(f"stopped {', '.join(stopped)}" if stopped else "nothing ran", soft_wrap=True)
    if remove:
        deployment.remove()
        _out.print(f"removed {directory}", soft_wrap=True)


def node(
    superlink: str,
    shard: Path,
    state: Path,
    certs_folder: Path | None,
    name: str,
    *,
    insecure: bool,
    threads: int,
    device: str,
    policy: Mapping[str, Any],
    keep_runs: int,
    admission: float,
    health: Path | None,
    max_memory: int,
    max_epochs: int,
    max_seconds: float,
) -> None:
    """One node, in this process.

    Args:
        policy: see `NodePolicy.networked`.
    """
    from fedem_flwr.engine.device import resolve_device
    from fedem_flwr.network.host import ShardHosts
    from fedem_flwr.network.link import Address, quiet_http
    from fedem_flwr.network.node import NodeOptions, run_node
    from fedem_flwr.network.trust import NodeTrust
    from fedem_flwr.nodes.ceilings import Ceilings
    from fedem_flwr.nodes.machine import limit_memory
    from fedem_flwr.nodes.policy import NodePolicy

    own = NodePolicy.networked(**policy)
    ceilings = Ceilings.of_machine(max_memory, max_epochs, max_seconds)
    _log_to_stderr(name)
    quiet_http()
    if not shard.is_dir():
        raise InputError(f"{shard} is no folder: --shard is one of those that `fedem data shard` makes")
    _check_security(certs_folder, insecure)
    _check_keys(certs_folder)
    trust = None if certs_folder is None else NodeTrust.load(certs_folder, name)
    address = Address(superlink, None if trust is None else trust.ca)
    if trust is None:
        _warn_of_plaintext(address)
    if resolve_device(device).type == "cpu":  # a GPU's driver takes room of its own
        limit_memory(ceilings.memory)
    server_key = None if trust is None else trust.server_key
    hosts = ShardHosts(shard, state, server_key, threads, device, own, keep_runs=keep_runs, ceilings=ceilings)
    keys = None if trust is None else trust.keys
    run_node(NodeOptions(address, keys, hosts, admission=admission, health=health), _stop_on_signals())


def server(run_dir: Path, superlink: str, certs_folder: Path | None, secret: Path | None, *, insecure: bool) -> None:
    """The server of a run, in this process."""
    from fedem_flwr.network.link import Address, read_secret
    from fedem_flwr.network.server import ServerOptions, serve
    from fedem_flwr.network.trust import ServerTrust
    from fedem_flwr.report.run_directory import RunDirectory

    _log_to_stderr("server")
    _check_security(certs_folder, insecure)
    _check_keys(certs_folder)
    if certs_folder is None:
        if secret is None:
            raise InputError("give the secret that lets this server take its run: --secret FILE")
        options = ServerOptions(Address(superlink), read_secret(secret))
        _warn_of_plaintext(options.address)
    else:
        trust = ServerTrust.load(certs_folder)
        options = ServerOptions(Address(superlink, trust.ca), trust.secret, trust.signing_key, trust.roster)
    serve(RunDirectory(run_dir).open(), options)


def _check_security(certs_folder: Path | None, insecure: bool) -> None:
    if certs_folder is None and not insecure:
        raise InputError(
            "give --certs (`fedem deploy certs` makes the folder), or --insecure to go without TLS and keys"
        )
    if certs_folder is not None and insecure:
        raise InputError("--certs and --insecure exclude each other: leave one out")


def _check_keys(folder: Path | None) -> None:
    """Whoever could put another public key there would be believed."""
    from fedem_flwr.network.trust import refuse_changed_keys

    if folder is not None:
        refuse_changed_keys(folder)


def _warn_of_plaintext(address: Any) -> None:
    if not address.loopback:
        logging.getLogger("fedem").warning(
            "--insecure: what crosses between here and %s can be read and changed on the way", address.place
        )


def _log_to_stderr(name: str) -> None:
    """One line an event, with its time; Flower's own lines only where something is wrong."""
    handler = logging.StreamHandler()
    handler.setFormatter(SafeFormatter(f"%(asctime)s {name} %(levelname).1s %(message)s"))
    logger = logging.getLogger("fedem")
    for each in (logger, logging.getLogger("flwr")):
        each.handlers = [handler]  # in the place of the one that every command has, and of Flower's
    level = os.environ.get("FEDEM_LOG", "INFO").upper()
    try:
        logger.setLevel(level)
    except ValueError:
        raise InputError(f"FEDEM_LOG={level} is no level: DEBUG, INFO, WARNING or ERROR") from None
    logging.getLogger("flwr").setLevel(logging.ERROR)


def _stop_on_signals() -> threading.Event:
    """Set by SIGTERM and SIGINT: work ends at the next batch, without an answer; a second signal kills at once."""
    stopped = threading.Event()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()
        for one in numbers:
            signal.signal(one, signal.SIG_DFL)

    for number in numbers:
        signal.signal(number, stop)
    return stopped
