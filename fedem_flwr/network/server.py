"""The server of a networked run as a process of its own: it holds tables and configuration, and never the data."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedem_flwr.config import Config
from fedem_flwr.contract.finding import method_of
from fedem_flwr.contract.sizes import upload_bytes
from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.files import quoted, write_atomically
from fedem_flwr.locking import run_of_parent
from fedem_flwr.network.control import register_nodes
from fedem_flwr.network.grid import NetworkGrid
from fedem_flwr.network.introduction import NetworkWelcome, RunIdentity
from fedem_flwr.network.link import Address, quiet_http
from fedem_flwr.network.server_link import ServerLink
from fedem_flwr.network.trust import Roster
from fedem_flwr.nodes.machine import memory_here
from fedem_flwr.protocol.shards import FEDERATION_FOLDER, Federation
from fedem_flwr.report.run_directory import RunDirectory, plain
from fedem_flwr.runtime.checkpoint import Checkpoints
from fedem_flwr.runtime.consent import read_config
from fedem_flwr.runtime.loop import Outcome
from fedem_flwr.runtime.prepared import PreparedRun
from fedem_flwr.runtime.surroundings import peak_rss_bytes

IDENTITY_FILE = "network.json"  # in the checkpoint folder
OUTCOME_FILE = "outcome.json"  # beside it; what the experimenter's process needs of a finished run
_SMALLEST_LIMIT = 64 << 20  # bytes
_SHARE = 4  # of this machine's memory: the largest limit

log = logging.getLogger("fedem.server")


@dataclass(frozen=True)
class ServerOptions:
    """How a run's server reaches its nodes.

    Attributes:
        address: of the SuperLink. secret: lets it take the run's task.
        signing_key: for all that it says to nodes. roster: the nodes' keys. Both None where anybody is let in.
    """

    address: Address
    secret: bytes
    signing_key: Ed25519PrivateKey | None = None
    roster: Roster | None = None


def serve(directory: RunDirectory, options: ServerOptions) -> Outcome:
    """Carry out the rounds that are left of a prepared run, and note the outcome in its directory.

    Raises:
        InputError: the directory is not one of a networked run, or another process writes there. FedemError: the run
            stops.
    """
    quiet_http()
    with run_of_parent(directory.path):
        return _serve(directory, options)


def _serve(directory: RunDirectory, options: ServerOptions) -> Outcome:
    config = read_config(directory)
    federation = Federation.load(directory.path / FEDERATION_FOLDER)
    run = PreparedRun(directory, config, federation.facts)
    outcome_path(directory).unlink(missing_ok=True)
    point = Checkpoints(directory.checkpoint_dir).load()
    identity = RunIdentity.next(directory.checkpoint_dir / IDENTITY_FILE, point.round if point else 0)
    link = ServerLink(
        options.address,
        options.secret,
        patience=config.network.reconnect,
        largest=largest_message(run, federation),
        signing_key=options.signing_key,
    )
    failure = "interrupted"
    try:
        if options.roster is not None:
            new = register_nodes(link.control, options.roster.entries())
            log.info("registered %s nodes that the SuperLink did not know", new)
        run_id = link.open()
        log.info("carries out run %s at %s", run_id, options.address.place)
        grid = NetworkGrid(link, config.run.round_timeout, options.roster)
        here = grid.await_nodes(len(federation.shards), config.network.join_timeout)
        log.info("%s of %s nodes are there", here, len(federation.shards))
        welcome = NetworkWelcome(
            run_id,
            identity.key,
            identity.resumes,
            for_nodes(config).to_toml(),
            federation,
            options.roster,
            options.signing_key,
        )
        outcome = run.server(lambda line: log.info("round %s done", line["round"]), resume=True, welcome=welcome)(grid)
        outcome.peak_rss_bytes = peak_rss_bytes()
        failure = ""
    except FedemError as error:
        failure = str(error)
        raise
    finally:
        link.close(failure)
    write_atomically(outcome_path(directory), json.dumps(plain(asdict(outcome))), private=True)
    return outcome


def for_nodes(config: Config) -> Config:
    """A run's configuration without where things are on the experimenter's machine."""
    elsewhere = config.changed("data", data_dir=None).changed("evaluation", cache_dir=None)
    return elsewhere.changed("network", superlink="", certs=None).changed("tracking", to="none", uri="")


def outcome_path(directory: RunDirectory) -> Path:
    """Where a finished server leaves what is known beyond the metrics lines."""
    return directory.checkpoint_dir / OUTCOME_FILE


def read_outcome(directory: RunDirectory) -> Outcome:
    """What a finished server left.

    Raises:
        InputError: it has not finished, or the file is damaged.
    """
    path = outcome_path(directory)
    try:
        return Outcome(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}): fedem resume {quoted(directory.path)}") from None


def largest_message(run: PreparedRun, federation: Federation) -> int:
    """Bytes of the largest reply that is taken: twice what the method's uploads can take, if there is room."""
    configured = run.config.network.max_message_mb
    if configured:
        return configured << 20
    users = max(end - first for first, end in federation.shards)
    needed = 2 * upload_bytes(method_of(run.config, run.facts.items), users)
    return max(_SMALLEST_LIMIT, min(needed, memory_here() // _SHARE))
