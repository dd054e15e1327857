"""A SuperLink and nodes on this machine that outlive the command that started them.

DIR/deployment.json     where the SuperLink listens, and how many nodes there are
DIR/federation/, shards/node-0 ...      the data, cut up (see `protocol.shards`)
DIR/certs/, superexec.secret            keys; the latter alone where there is no TLS
DIR/state/node-0 ..., superlink.db      what the processes keep
DIR/logs/NAME.log, pids/NAME.json       what they said, and which process each is
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedem_flwr.config import resolve
from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.files import own_folder, private_folder, quoted, refuse_links, write_atomically
from fedem_flwr.locking import born, lock_beside
from fedem_flwr.network.certificates import general_name
from fedem_flwr.network.commands import Trusted, node_command, superlink_command
from fedem_flwr.network.control import control_client, register_nodes, remedy, shut_out
from fedem_flwr.network.key_folder import make_certificates
from fedem_flwr.network.link import Address, Patience
from fedem_flwr.network.processes import GRACE, Child, await_listening, free_port, wait_until
from fedem_flwr.network.trust import Roster, write_private
from fedem_flwr.protocol.files import replaced_folder
from fedem_flwr.protocol.shards import FEDERATION_FOLDER, SHARDS_FOLDER, Federation, write_shards
from fedem_flwr.report.progress import task_progress
from fedem_flwr.runtime.inputs import check_shards, split_into

_RECORD, _SUPERLINK = "deployment.json", "superlink"
_REGISTER_SECONDS = 10.0
HOST, PORT, NODES = "127.0.0.1", 8000, 2  # of a new one, where nothing else is said
_ANYWHERE = ("0.0.0.0", "::")

log = logging.getLogger("fedem.network")


@dataclass(frozen=True)
class Row:
    """One process: its name and number, whether it runs, its resident bytes, and what it said last."""

    name: str
    pid: int
    state: str
    memory: int
    said: str


@dataclass(frozen=True)
class Deployment:
    """A deployment's folder.

    Attributes:
        folder: absolute. address: where the SuperLink listens. nodes: how many.
        individual_uploads: whether the nodes let uploads of single users go.
    """

    folder: Path
    address: Address
    nodes: int
    insecure: bool
    individual_uploads: bool = False

    @classmethod
    def open(cls, folder: Path) -> Deployment | None:
        """The deployment that a folder holds; None where there is none.

        Raises:
            InputError: the folder holds something else, is damaged, or another user of the machine can change it.
        """
        folder = folder.resolve()
        record = folder / _RECORD
        if not record.exists():
            if folder.exists() and any(folder.iterdir()):
                raise InputError(f"{folder} is not empty and holds no deployment: choose another --dir")
            return None
        own_folder(folder, "the deployment")  # keys, interactions, private state, and the numbers of processes to end
        refuse_links(folder)
        try:
            told = json.loads(record.read_text(encoding="utf-8"))
            insecure = bool(told["insecure"])
            ca = None if insecure else (folder / "certs" / "ca.crt").read_bytes()
            individual = bool(told.get("individual_uploads", False))
            return cls(folder, Address(str(told["address"]), ca), int(told["nodes"]), insecure, individual)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{record} is damaged ({error}): remove {folder} and start anew") from None

    @classmethod
    def existing(cls, folder: Path) -> Deployment:
        """The same, where there must be one.

        Raises:
            InputError: there is none.
        """
        found = cls.open(folder)
        if found is None:
            raise InputError(f"{folder} holds no deployment: `fedem deploy up --dir {quoted(folder)}` makes one")
        return found

    @classmethod
    def create(
        cls,
        folder: Path,
        options: Mapping[str, Any],
        nodes: int,
        host: str,
        port: int,
        *,
        insecure: bool,
        quiet: bool,
    ) -> Deployment:
        """Split and cut the data, and make the keys; a folder is there whole or not at all.

        Args:
            options: of the configuration: data, seed and privacy.

        Raises:
            InputError: the data cannot be had or cut up so, the host is none of this machine's, or the port is taken.
        """
        folder, host = folder.resolve(), host.strip("[]")
        general_name(host)
        port = free_port(port, host)
        address = Address(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        config = resolve({}, options, "options")
        check_shards(config)
        with lock_beside(folder), replaced_folder(folder) as work:
            if cls.open(folder) is not None:
                raise InputError(f"{folder} has just been made by somebody else: start again to use it")
            split = split_into(work / "whole", config)
            with task_progress("writing shards", nodes, in_bytes=False, quiet=quiet) as advance:
                write_shards(split, nodes, work, lambda: advance(1))
            shutil.rmtree(work / "whole")
            if insecure:
                write_private(work / "superexec.secret", secrets.token_bytes(32))
            else:
                make_certificates(work / "certs", nodes, () if host in _ANYWHERE else (host,))
            record = {"address": address.place, "nodes": nodes, "insecure": insecure, **config.privacy.model_dump()}
            write_atomically(work / _RECORD, json.dumps(record, indent=2) + "\n")
        return cls.existing(folder)

    @property
    def trusted(self) -> Trusted:
        """Where its keys are."""
        return Trusted(None if self.insecure else self.folder / "certs")

    @property
    def local(self) -> Address:
        """How processes of this machine reach the SuperLink."""
        if self.address.host not in _ANYWHERE:
            return self.address
        return Address(f"127.0.0.1:{self.address.port}", self.address.ca)

    def children(self) -> list[Child]:
        """What it consists of, the SuperLink first."""
        secret = (self.trusted.folder or self.folder) / "superexec.secret"
        home = {"FLWR_HOME": str(self.folder / "flower")}
        command = superlink_command(self.address, self.trusted, secret, self.folder / "superlink.db")
        made = [Child(_SUPERLINK, command, self.folder / "logs" / f"{_SUPERLINK}.log", home)]
        for node in range(self.nodes):
            name = f"node-{node}"
            shard, state = self.folder / SHARDS_FOLDER / name, self.folder / "state" / name
            individual = self.individual_uploads
            command = node_command(self.local, self.trusted, node, shard, state, threads=1, individual=individual)
            made.append(Child(name, command, self.folder / "logs" / f"{name}.log", {**home, "OMP_NUM_THREADS": "1"}))
        return made

    def start(self) -> list[str]:
        """Start what does not run; returns the names.

        Raises:
            InputError: the port is taken. FedemError: the SuperLink does not start.
        """
        started = []
        for child in self.children():
            if self._pid(child.name):
                continue
            if child.name == _SUPERLINK:
                free_port(self.address.port, self.address.host)
            child.start(outlive=True)
            write_atomically(self._pid_file(child.name), json.dumps({"pid": child.pid, "born": born(child.pid)}))
            started.append(child.name)
            if child.name == _SUPERLINK:
                await_listening(child, self.local)
                self._register()
        return started

    def _register(self) -> None:
        """Make the nodes known to the SuperLink; it forgets none, so most are."""
        if self.trusted.folder is not None:
            patience = Patience(self.local, _REGISTER_SECONDS, threading.Event())
            entries = Roster.load(self.trusted.folder / "roster.json").entries()
            client = control_client(self.local, patience)
            register_nodes(client, entries)
            if names := shut_out(client, entries):
                log.warning(remedy(names))

    def stop(self) -> list[str]:
        """End what runs, nodes first; returns the names."""
        names = [child.name for child in reversed(self.children())]
        pids = {name: pid for name in names if (pid := self._pid(name))}
        for pid in pids.values():
            _signal(pid, signal.SIGTERM)
            _signal(pid, signal.SIGCONT)
        wait_until(lambda: not any(map(self._pid, pids)), GRACE)
        for name in pids:
            if pid := self._pid(name):
                _signal(pid, signal.SIGKILL)
        for name in names:
            self._pid_file(name).unlink(missing_ok=True)
        return list(pids)

    def remove(self) -> None:
        """Delete the folder."""
        for _ in range(3):  # a process that has just ended may still write its log
            shutil.rmtree(self.folder, ignore_errors=True)
            if not self.folder.exists():
                return
            time.sleep(0.2)
        raise FedemError(f"cannot delete all of {self.folder}: does another process write there?")

    def status(self) -> list[Row]:
        """Every process."""
        rows = []
        for child in self.children():
            pid = self._pid(child.name)
            known = self._pid_file(child.name).exists()
            state = "runs" if pid else ("has ended" if known else "not started")
            said = child.last_words(of_failure=not pid) if known else ""
            rows.append(Row(child.name, pid, state, _memory(pid), said))
        return rows

    def run_command(self) -> str:
        """How to carry out a run here."""
        words = ["fedem", "run", "--superlink", self.local.place, "--federation", str(self.folder / FEDERATION_FOLDER)]
        words += (
            ["--insecure", "--certs", str(self.folder)] if self.insecure else ["--certs", str(self.folder / "certs")]
        )
        return shlex.join(words)

    def federation(self) -> Federation:
        """What is known of its data."""
        return Federation.load(self.folder / FEDERATION_FOLDER)

    def _pid_file(self, name: str) -> Path:
        folder = self.folder / "pids"
        return private_folder(folder) / f"{name}.json"

    def _pid(self, name: str) -> int:
        """Of a process that runs; 0 if it does not. A number that was given to another process since does not count."""
        try:
            told = json.loads(self._pid_file(name).read_text(encoding="utf-8"))
            pid = int(told["pid"])
            return pid if told["born"] is not None and born(pid) == told["born"] else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0


def _memory(pid: int) -> int:
    if not pid:
        return 0
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
