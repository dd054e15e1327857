"""How a server introduces its run to a node: the configuration, and what tells this run from any other.

The message that carries it belongs to a run of the SuperLink, whose number is part of what is signed. Only who holds
that run's task can send its messages, so a node that believes the introduction believes the run.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from flwr.app import ConfigRecord, RecordDict

from fedem_flwr.errors import FedemError
from fedem_flwr.files import private_folder, write_atomically
from fedem_flwr.network.trust import Roster, Session, sign_introduction, verify_introduction
from fedem_flwr.protocol.shards import Federation

GREETING: Final = "introduction"
KEY: Final = re.compile(r"[0-9a-f]{32}")
_FACTS: Final = ("dataset", "protocol", "users", "items")


@dataclass(frozen=True)
class Introduction:
    """What a node is told of a run.

    Attributes:
        key: names the run, however often it is resumed. run_id: its number at the SuperLink, new with each resumption.
        resumes: after which rounds it was resumed.
        config: its configuration, as TOML. facts: of the data it is over.
        round: the last one that is done.
    """

    key: str
    run_id: int
    resumes: tuple[int, ...]
    config: str
    facts: Mapping[str, Any]
    round: int

    def _fields(self) -> dict[str, Any]:
        facts = json.dumps(dict(self.facts), sort_keys=True)
        resumes = [int(round_) for round_ in self.resumes]
        return {
            "key": self.key,
            "run": str(self.run_id),  # beyond the range of signed numbers
            "resumes": resumes,
            "config": self.config,
            "facts": facts,
            "round": self.round,
        }

    def record(self, signing_key: Ed25519PrivateKey | None) -> ConfigRecord:
        """For a message."""
        fields = self._fields()
        signature = sign_introduction(signing_key, fields) if signing_key else ""
        return ConfigRecord({**fields, "signature": signature})

    @classmethod
    def read(cls, record: Mapping[str, Any], run_id: int, server_key: Ed25519PublicKey | None) -> Introduction:
        """Out of a message.

        Args:
            run_id: of the message that carries it.
            server_key: whose signature it must bear; None: anybody's will do.

        Raises:
            FedemError: it is none, or not this server's.
        """
        try:
            key, facts = str(record["key"]), dict(json.loads(str(record["facts"])))
            resumes = tuple(int(round_) for round_ in record["resumes"])
            told = cls(key, int(record["run"]), resumes, str(record["config"]), facts, int(record["round"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise FedemError("the server does not introduce its run: it must be `fedem`'s") from None
        if told.run_id != run_id or not KEY.fullmatch(key):
            raise FedemError("an introduction of another run: refused")
        signature = str(record.get("signature", ""))
        if server_key is not None and not verify_introduction(server_key, told._fields(), signature):
            raise FedemError("an introduction that the known server has not signed: refused")
        return told


@dataclass
class NetworkWelcome:
    """What our server tells nodes, and which users each may host; see `messages.admission.Admission`.

    Attributes:
        roster: which key belongs to which shard; None: whoever comes first.
        signing_key: signs introductions; None where nodes believe anybody.
    """

    run_id: int
    key: str
    resumes: tuple[int, ...]
    config: str
    federation: Federation
    roster: Roster | None = None
    signing_key: Ed25519PrivateKey | None = None

    def greeting(self, round_: int) -> RecordDict:
        """The introduction."""
        facts = {name: getattr(self.federation.facts, name) for name in _FACTS}
        told = Introduction(self.key, self.run_id, self.resumes, self.config, facts, round_)
        return RecordDict({GREETING: told.record(self.signing_key)})

    def objection(self, session: Hashable, users: np.ndarray) -> str:
        """A node may host the users of the shard that its key stands for."""
        if self.roster is None:
            return ""
        shard = self.roster.shard_of(session.public_key) if isinstance(session, Session) else None
        if shard is None:
            return "its key is not in the roster: refused"
        first, end = self.federation.shards[shard] if shard < len(self.federation.shards) else (0, 0)
        if not np.array_equal(users, np.arange(first, end)):
            return f"claims users {users[0]}–{users[-1]}, its key is for users {first}–{end - 1}: refused"
        return ""


@dataclass(frozen=True)
class RunIdentity:
    """A run's name towards its nodes, and its history: `checkpoint/network.json` in the run's directory."""

    key: str
    resumes: tuple[int, ...] = ()

    @classmethod
    def next(cls, path: Path, done: int) -> RunIdentity:
        """A new run's, or that of one that is resumed after `done` rounds; written down before it is used."""
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            known: Sequence[int] = [int(round_) for round_ in record["resumes"]]
            identity = cls(str(record["key"]), (*known, done))
            if not KEY.fullmatch(identity.key):
                raise ValueError(identity.key)
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            identity = cls(secrets.token_hex(16))  # nodes know nothing of it, and say so
        private_folder(path.parent)
        write_atomically(path, json.dumps({"key": identity.key, "resumes": identity.resumes}), private=True)
        return identity
