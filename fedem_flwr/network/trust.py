"""Who is believed: a CA for TLS, a key pair for every node, the server's signature, and the roster.

DIR/ca.crt, ca.key                the authority that signs the SuperLink's certificate
DIR/superlink.crt, superlink.key  what the SuperLink shows
DIR/superexec.secret              lets its holder take the server's part at the SuperLink
DIR/server.key, server.pub        Ed25519: signs the introduction of a run to the nodes
DIR/nodes/NAME.key, NAME.pub      EC P-384: what a node proves to be (OpenSSH's formats, as Flower reads them)
DIR/roster.json                   which key stands for which shard
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fedem_flwr.errors import InputError
from fedem_flwr.files import quoted, refuse_changeable
from fedem_flwr.network.link import read_secret

NodeKeys = tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SIGNED = b"fedem-flwr introduction 1\n"  # what else the key may sign one day begins otherwise
ROSTER = "roster.json"


@dataclass(frozen=True)
class Session:
    """A node as the SuperLink sees it now; one that was started anew has another session.

    Attributes:
        public_key: the node's, which it has proved to hold. since: when it became active.
    """

    public_key: bytes
    since: str


@dataclass(frozen=True)
class Roster:
    """Which node key stands for which shard.

    Attributes:
        nodes: name, shard and OpenSSH public key of each.
    """

    nodes: tuple[tuple[str, int, str], ...]

    @classmethod
    def load(cls, path: Path) -> Roster:
        """Read it.

        Raises:
            InputError: it is missing or damaged, or a key or a shard stands in it twice.
        """
        try:
            told = json.loads(read_secret(path))
            nodes = tuple((str(one["name"]), int(one["shard"]), str(one["public_key"])) for one in told["nodes"])
            roster = cls(nodes)
            keys = [key for _, key in roster.entries()]
        except (ValueError, KeyError, TypeError, UnsupportedAlgorithm) as error:
            raise InputError(f"{path} is no roster ({error}): `fedem deploy certs` makes one") from None
        names, shards = {name for name, _, _ in nodes}, {shard for _, shard, _ in nodes}
        if min(len(names), len(shards), len(set(keys))) < len(nodes):
            raise InputError(f"{path} names a node, a key or a shard twice: each shard has one node")
        return roster

    def entries(self) -> list[tuple[str, bytes]]:
        """Name and public key of each node, in the form that a SuperLink knows keys by."""
        return [(name, _key_bytes(text)) for name, _, text in self.nodes]

    def shard_of(self, public_key: bytes) -> int | None:
        """The shard that a key stands for; None for a stranger's."""
        return self._shards.get(public_key)

    @cached_property
    def _shards(self) -> dict[bytes, int]:
        return {_key_bytes(text): shard for _, shard, text in self.nodes}


@dataclass(frozen=True)
class NodeTrust:
    """What a node needs: whom it believes, and what proves who it is."""

    ca: bytes
    keys: NodeKeys
    server_key: Ed25519PublicKey

    @classmethod
    def load(cls, folder: Path, name: str) -> NodeTrust:
        """Read a node's part of the folder.

        Raises:
            InputError: a file is missing, damaged, or a private key that others may read.
        """
        if not _NAME.fullmatch(name):
            raise InputError(f"'{name}' cannot be a node's name: use letters, digits, '.', '_' and '-'")
        private = load_node_key(folder / "nodes" / f"{name}.key")
        return cls(
            read_secret(folder / "ca.crt"), (private, private.public_key()), load_server_key(folder / "server.pub")
        )


@dataclass(frozen=True)
class ServerTrust:
    """What the server of a run needs."""

    ca: bytes
    secret: bytes
    signing_key: Ed25519PrivateKey
    roster: Roster

    @classmethod
    def load(cls, folder: Path) -> ServerTrust:
        """Read the server's part of the folder.

        Raises:
            InputError: a file is missing, damaged, or a secret that others may read.
        """
        secret = folder / "superexec.secret"
        check_private(secret)
        signing = private_key(
            folder / "server.key", partial(serialization.load_pem_private_key, password=None), Ed25519PrivateKey
        )
        return cls(read_secret(folder / "ca.crt"), read_secret(secret), signing, Roster.load(folder / ROSTER))


def load_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A node's private key.

    Raises:
        InputError: the file is missing, damaged, or others may read it.
    """
    load = partial(serialization.load_ssh_private_key, password=None)
    key: ec.EllipticCurvePrivateKey = private_key(path, load, ec.EllipticCurvePrivateKey)
    return key


def open_ssh(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A node's private key in the form that Flower reads."""
    ssh, none = serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, ssh, none)


def own_keys(path: Path) -> NodeKeys:
    """A node's key pair where nobody has given it one: made at its first start, so that it is known again later.

    Raises:
        InputError: the file cannot be written.
    """
    with suppress(InputError):
        key = load_node_key(path)
        return key, key.public_key()
    made = ec.generate_private_key(ec.SECP384R1())
    new = path.with_suffix(".new")
    try:
        new.unlink(missing_ok=True)
        write_private(new, open_ssh(made))
        new.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    return made, made.public_key()


def load_server_key(path: Path) -> Ed25519PublicKey:
    """The key whose introductions a node believes.

    Raises:
        InputError: the file is missing or damaged.
    """
    key: object = None
    with suppress(ValueError, UnsupportedAlgorithm):
        key = serialization.load_pem_public_key(read_secret(path))
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{path} is no public key of a server: take server.pub of `fedem deploy certs`")
    return key


def sign_introduction(key: Ed25519PrivateKey, fields: Mapping[str, Any]) -> str:
    """The server's signature over all fields."""
    return base64.b64encode(key.sign(_canonical(fields))).decode()


def verify_introduction(key: Ed25519PublicKey, fields: Mapping[str, Any], signature: str) -> bool:
    """Whether the server signed exactly these fields."""
    try:
        key.verify(base64.b64decode(signature, validate=True), _canonical(fields))
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def check_private(path: Path) -> None:
    """Refuse a secret that other users of the machine may read.

    Raises:
        InputError: they may, or it is missing.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; `fedem deploy certs` makes it") from None
    if mode & 0o077:
        raise InputError(f"{path} can be read by others (mode {mode & 0o777:o}): chmod 600 {quoted(path)}")


def refuse_changed_keys(folder: Path) -> None:
    """Refuse a folder of keys in which other users of the machine could put theirs.

    Raises:
        InputError: they could change the folder, or one of the files that say who is believed.
    """
    for place in (folder, *(folder / name for name in ("ca.crt", "server.pub", ROSTER))):
        refuse_changeable(place)


def _canonical(fields: Mapping[str, Any]) -> bytes:
    return _SIGNED + json.dumps(dict(fields), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def private_key(path: Path, load: Callable[[bytes], object], kind: type[Any]) -> Any:
    """A private key that nobody else may read.

    Args:
        load: makes the key of the file's bytes. kind: what it must be.

    Raises:
        InputError: the file is missing, damaged, another kind of key, or others may read it.
    """
    check_private(path)
    key: object = None
    with suppress(ValueError, TypeError, UnsupportedAlgorithm):
        key = load(read_secret(path))
    if not isinstance(key, kind):
        raise InputError(f"{path} is damaged, or no key of the right kind: `fedem deploy certs` makes it")
    return key


def _key_bytes(text: str) -> bytes:
    key = serialization.load_ssh_public_key(text.encode())
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("a node's key is on an elliptic curve of NIST's")
    return public_key_to_bytes(key)


def write_private(path: Path, content: bytes) -> None:
    """A new file that nobody else can read, not even for a moment."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
