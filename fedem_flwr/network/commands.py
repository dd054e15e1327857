"""The command line of each process of a network, for whoever starts it: this machine's launcher, containers, tests."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from fedem_flwr.network.link import Address
from fedem_flwr.network.processes import FEDEM
from fedem_flwr.nodes.ceilings import EPOCHS


@dataclass(frozen=True)
class Trusted:
    """Where certificates and keys are; None: plain HTTP, and anybody is let in."""

    folder: Path | None

    @property
    def address_flags(self) -> list[str]:
        """For nodes and servers."""
        return ["--insecure"] if self.folder is None else ["--certs", str(self.folder)]


def superlink_command(address: Address, trusted: Trusted, secret: Path, database: Path | None) -> list[str]:
    """Flower's SuperLink, with limits (see `superlink.py`)."""
    command = [
        sys.executable,
        "-m",
        "fedem_flwr.network.superlink",
        "--host",
        address.host,
        "--port",
        str(address.port),
    ]
    if trusted.folder is None:
        command += ["--insecure"]
    else:
        files = {"certfile": "superlink.crt", "keyfile": "superlink.key", "ca-certfile": "ca.crt"}
        for option, name in files.items():
            command += [f"--ssl-{option}", str(trusted.folder / name)]
        command += ["--enable-supernode-auth"]
    command += ["--isolation", "process", "--superexec-auth-secret-file", str(secret)]
    command += ["--disable-runtime-dependency-installation"]
    return command + (["--database", str(database)] if database else [])


def node_command(
    address: Address,
    trusted: Trusted,
    node: int,
    shard: Path,
    state: Path,
    *,
    threads: int,
    individual: bool,
    epochs: int = EPOCHS,
    device: str = "auto",
) -> list[str]:
    """One of our nodes.

    Args:
        individual: whether it lets uploads of single users go. epochs: how many it trains at the most.
    """
    command = [*FEDEM, "deploy", "node", "--superlink", address.place, "--shard", str(shard), "--state", str(state)]
    command += [*trusted.address_flags, "--name", f"node-{node}", "--threads", str(threads), "--device", device]
    command += ["--max-epochs", str(epochs)] if epochs != EPOCHS else []
    return command + (["--allow-individual-uploads"] if individual else [])


def server_command(run_dir: Path, address: Address, trusted: Trusted, secret: Path) -> list[str]:
    """The server of a prepared run."""
    command = [*FEDEM, "deploy", "server", str(run_dir), "--superlink", address.place, *trusted.address_flags]
    return command + (["--secret", str(secret)] if trusted.folder is None else [])
