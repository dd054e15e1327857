"""A networked node's side of a run: its shard, its state folder, and the runs it has been introduced to.

    STATE/draws.key                           keys its users' draws in every run (see `nodes.secret`)
    STATE/runs/KEY/run.json, config.toml      the run as its server introduced it
    STATE/runs/KEY/nodes/node-000003/...      private state, one file a round (see `runtime.state_store`)

A node carries out what a server asks only after that server has introduced the run, signed where the node knows the
server's key. A run that is resumed is introduced anew: what the node stored after the server's checkpoint is forgotten.
"""

from __future__ import annotations

import json
import logging
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from flwr.app import ConfigRecord, Context, Message

from fedem_flwr.config import Config, build
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.errors import FedemError
from fedem_flwr.files import own_folder, private_folder, write_atomically
from fedem_flwr.network.introduction import GREETING, Introduction
from fedem_flwr.nodes.ceilings import Ceilings
from fedem_flwr.nodes.host import NodeHost, node_name
from fedem_flwr.nodes.policy import NodePolicy
from fedem_flwr.nodes.secret import SECRET_FILE
from fedem_flwr.nodes.state_store import DiskStateStore
from fedem_flwr.protocol.split import Split

RUNS = "runs"
_RUN_FILE, _CONFIG_FILE, _NODES = "run.json", "config.toml", "nodes"

log = logging.getLogger("fedem.node")


@dataclass
class ShardHost(NodeHost):
    """One node's users in one run.

    `run_dir` is the run's folder in the node's state; `nodes` is 1, as nobody else lives here.

    Attributes:
        shard: the node's data. settings: of the run, but for the device, which is the node's.
    """

    shard: Split | None = None
    settings: Config | None = None

    @property
    def config(self) -> Config:
        """See `settings`."""
        assert self.settings is not None
        return self.settings

    @property
    def split(self) -> Split:
        """The shard."""
        assert self.shard is not None
        return self.shard

    def users(self, node: int) -> np.ndarray:
        """All users of the shard."""
        return self.split.codes

    def keep(self, node: int, round_: int, cohort: Cohort, *, durable: bool, keep_from: Sequence[int]) -> None:
        """Store the state of every round: this process may be killed in any."""
        super().keep(node, round_, cohort, durable=True, keep_from=keep_from)

    def secret_file(self, node: int) -> Path:
        """Of the node, not of the run: new decoys in every run would tell the history when runs are compared."""
        return self.run_dir.parents[1] / SECRET_FILE

    @property
    def state_dir(self) -> Path:
        """Inside the run's folder."""
        return self.run_dir / _NODES


@dataclass
class ShardHosts:
    """What a node knows of its runs; `nodes.answering.build_client_app` asks it for a run's host.

    Attributes:
        shard_dir: the node's data, made by `fedem data shard`. state_dir: its own, nobody else's.
        server_key: whose introductions are believed; None believes any.
        threads, device: what this node computes with.
        policy: what may go up, whatever a run asks for. ceilings: how much work and memory a run may take.
        resident: keep cohorts in memory between messages; for processes that live on.
        keep_runs: of how many runs the state is kept, the newest ones.
    """

    shard_dir: Path
    state_dir: Path
    server_key: Ed25519PublicKey | None = None
    threads: int = 0
    device: str = "auto"
    policy: NodePolicy = field(default_factory=NodePolicy.networked)
    ceilings: Ceilings = field(default_factory=Ceilings.of_machine, kw_only=True)
    resident: bool = True
    keep_runs: int = 5
    _hosts: dict[int, ShardHost] = field(default_factory=dict, repr=False)  # by Flower's number of the run
    _largest: int | None = field(default=None, repr=False)  # message; None: another run was introduced since

    @cached_property
    def shard(self) -> Split:
        """The node's data, mapped.

        Raises:
            InputError: they are missing or damaged.
        """
        return Split.load(self.shard_dir)

    def node(self, context: Context) -> int:
        """Which node this is: told by its data, so that its state is named alike on every start."""
        return 0

    def of(self, message: Message, context: Context) -> ShardHost:
        """The host for a message's run.

        Raises:
            FedemError: its server has not introduced it, or introduced it again under another number since.
        """
        run_id = message.metadata.run_id
        if run_id not in self._hosts:
            self._hosts = {run_id: self._open(self._folder_of(run_id))}
        return self._hosts[run_id]

    def welcome(self, message: Message, context: Context) -> dict[str, np.ndarray]:
        """Take in a server's introduction of its run.

        Returns:
            `stored` (1,): the newest round that this node has a state of; 0: it knows nothing of the run.

        Raises:
            FedemError: the introduction is old, not the known server's, or asks for what this node does not do.
        """
        record = dict(message.content.config_records.get(GREETING, ConfigRecord()))
        run_id = message.metadata.run_id
        told = Introduction.read(record, run_id, self.server_key)
        config = self._acceptable(told)
        folder = self.state_dir / RUNS / told.key
        store = DiskStateStore(folder / _NODES)
        known = self._known(folder)
        if known is not None and len(told.resumes) < known["resumes"]:
            raise FedemError("an introduction from before the run was last resumed: refused")
        missed = told.resumes[known["resumes"] if known is not None else 0 :]
        if missed:
            store.drop_after(min(missed))
        own_folder(self.state_dir, "the state folder")
        private_folder(folder)
        write_atomically(folder / _CONFIG_FILE, told.config)
        write_atomically(folder / _RUN_FILE, json.dumps({"run": run_id, "resumes": len(told.resumes)}))
        self._forget_old(folder)
        self._hosts, self._largest = {run_id: self._host(folder, config)}, None
        return {"stored": np.array([store.newest(node_name(0)) or 0], np.int64)}

    def _forget_old(self, current: Path) -> None:
        """Delete the state of runs that were introduced long before others: a disk is finite, and runs are many."""
        others = [folder for folder in current.parent.iterdir() if folder != current and (folder / _RUN_FILE).exists()]
        others.sort(key=lambda folder: (folder / _RUN_FILE).stat().st_mtime)
        for folder in others[: max(0, len(others) - self.keep_runs + 1)]:
            shutil.rmtree(folder, ignore_errors=True)

    def largest_message(self) -> int:
        """Bytes that a message may have, and may inflate to: what the runs that this node was told of need."""
        if self._largest is None:
            users, items, runs = len(self.shard.codes), self.shard.items, self.state_dir / RUNS
            self._largest = self.ceilings.message_bytes(None, users, items)
            for folder in sorted(runs.iterdir()) if runs.is_dir() else ():
                if self._known(folder) is None:
                    continue  # it was never introduced, or is introduced anew
                try:
                    needed = self.ceilings.message_bytes(self._read(folder), users, items)
                except Exception as error:  # of a method from elsewhere, any; no message would come in
                    log.warning("%s does not count for the size of messages: %s", folder, error)
                    continue
                self._largest = max(self._largest, needed)
        return self._largest

    def _acceptable(self, told: Introduction) -> Config:
        self._refuse(self.ceilings.objection_to_text(told.config))
        try:
            tree = tomllib.loads(told.config)
            _refuse_paths(tree)
            config = build(tree, "the server's configuration")
        except tomllib.TOMLDecodeError as error:
            raise FedemError(f"the server's configuration is no TOML: {error}") from None
        self._refuse(self.ceilings.objection(config, len(self.shard.codes), self.shard.items))
        self.policy.check(config)
        shard = self.shard
        facts = {"dataset": shard.dataset, "protocol": shard.protocol, "users": shard.users, "items": shard.items}
        wrong = [name for name, value in facts.items() if told.facts.get(name) != value]
        if wrong:
            name = wrong[0]
            raise FedemError(
                f"the run is over data with {name} = {told.facts.get(name)!r}, this node's shard has "
                f"{name} = {facts[name]!r}: use shards and federation of the same `fedem data shard`"
            )
        return config

    def _folder_of(self, run_id: int) -> Path:
        """The folder of the run with a number of Flower's."""
        runs = self.state_dir / RUNS
        for folder in sorted(runs.iterdir()) if runs.is_dir() else ():
            known = self._known(folder)
            if known is not None and known["run"] == run_id:
                return folder
        raise FedemError("this node has not been introduced to the run: its server must meet it first")

    def _known(self, folder: Path) -> Mapping[str, Any] | None:
        try:
            record = json.loads((folder / _RUN_FILE).read_text(encoding="utf-8"))
            return {"run": int(record["run"]), "resumes": int(record["resumes"])}
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return None  # not there, or cut short: the server introduces itself anew

    def _refuse(self, objection: str) -> None:
        if objection:
            raise FedemError(objection)

    def _open(self, folder: Path) -> ShardHost:
        config = self._read(folder)
        self._refuse(self.ceilings.objection(config, len(self.shard.codes), self.shard.items))
        self.policy.check(config)  # anew, as this node may have been started with another policy since
        return self._host(folder, config)

    def _read(self, folder: Path) -> Config:
        try:
            text = (folder / _CONFIG_FILE).read_text(encoding="utf-8")
            return build(tomllib.loads(text), str(folder / _CONFIG_FILE))
        except (OSError, ValueError) as error:
            raise FedemError(f"{folder / _CONFIG_FILE} is damaged: {error}") from None

    def _host(self, folder: Path, config: Config) -> ShardHost:
        config = config.changed("run", device=self.device)
        return ShardHost(folder, 1, self.threads, self.resident, self.policy, shard=self.shard, settings=config)


def _refuse_paths(tree: Mapping[str, Any]) -> None:
    """A server names methods that are installed here; what it could import by a path of its choice is no method.

    Raises:
        FedemError: a strategy or a client is named by its path.
    """
    method = tree.get("method", {})
    for key in ("strategy", "client"):
        named = str(method.get(key, "")) if isinstance(method, Mapping) else ""
        if ":" in named:
            raise FedemError(
                f"the server names method.{key} = '{named}' by a path: this node takes names only; install the package "
                "with its entry point here"
            )
