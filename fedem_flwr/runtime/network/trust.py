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
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fedem_flwr.errors import InputError
from fedem_flwr.protocol.files import replaced_folder
from fedem_flwr.report.run_directory import write_atomically
from fedem_flwr.runtime.network.certificates import authority, general_name, server_certificate
from fedem_flwr.runtime.network.link import read_secret

_LOCAL: Final = ("localhost", "127.0.0.1", "::1")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SIGNED = b"fedem-flwr introduction 1\n"  # what else the key may sign one day begins otherwise
_ROSTER = "roster.json"


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
        if len(set(keys)) < len(keys) or len({shard for _, shard, _ in nodes}) < len(nodes):
            raise InputError(f"{path} names a key or a shard twice: each shard has one node")
        return roster

    def entries(self) -> list[tuple[str, bytes]]:
        """Name and public key of each node, in the form that a SuperLink knows keys by."""
        return [(name, _key_bytes(text)) for name, _, text in self.nodes]

    def shard_of(self, public_key: bytes) -> int | None:
        """The shard that a key stands for; None for a stranger's."""
        return next((shard for _, shard, text in self.nodes if _key_bytes(text) == public_key), None)


@dataclass(frozen=True)
class NodeTrust:
    """What a node needs: whom it believes, and what proves who it is."""

    ca: bytes
    keys: tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey]
    server_key: Ed25519PublicKey

    @classmethod
    def load(cls, folder: Path, name: str) -> NodeTrust:
        """Read a node's part of the folder.

        Raises:
            InputError: a file is missing, damaged, or a private key that others may read.
        """
        if not _NAME.fullmatch(name):
            raise InputError(f"'{name}' cannot be a node's name: use letters, digits, '.', '_' and '-'")
        path = folder / "nodes" / f"{name}.key"
        private = _private(
            path, lambda text: serialization.load_ssh_private_key(text, None), ec.EllipticCurvePrivateKey
        )
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
        signing = _private(
            folder / "server.key", lambda text: serialization.load_pem_private_key(text, None), Ed25519PrivateKey
        )
        return cls(read_secret(folder / "ca.crt"), read_secret(secret), signing, Roster.load(folder / _ROSTER))


def make_certificates(folder: Path, nodes: int, hosts: Sequence[str] = ()) -> None:
    """Make a deployment's keys and certificates; the folder is there whole or not at all.

    Args:
        nodes: key pairs for so many, of the shards 0, 1, ...
        hosts: names and addresses of the SuperLink, beside those of the loopback interface.

    Raises:
        InputError: the folder holds keys already, or a host is no name or address.
    """
    names = [general_name(host) for host in dict.fromkeys((*_LOCAL, *hosts))]
    if (folder / "ca.crt").exists() or (folder.exists() and any(folder.iterdir())):
        raise InputError(
            f"{folder} holds files already, and keys are never overwritten: choose another --out, or delete it"
        )
    with replaced_folder(folder) as new:
        new.chmod(0o700)
        ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        ca = authority(ca_key)
        certificate = server_certificate(key, ca, ca_key, names)
        pem = serialization.Encoding.PEM
        (new / "ca.crt").write_bytes(ca.public_bytes(pem))
        (new / "superlink.crt").write_bytes(certificate.public_bytes(pem))
        _write_private(new / "ca.key", _pem(ca_key))
        _write_private(new / "superlink.key", _pem(key))
        _write_private(new / "superexec.secret", secrets.token_hex(32).encode())
        signing = Ed25519PrivateKey.generate()
        _write_private(new / "server.key", _pem(signing))
        info = serialization.PublicFormat.SubjectPublicKeyInfo
        (new / "server.pub").write_bytes(signing.public_key().public_bytes(pem, info))
        write_atomically(new / _ROSTER, json.dumps({"nodes": _node_keys(new, range(nodes))}, indent=2) + "\n")


def add_nodes(folder: Path, count: int) -> None:
    """Make key pairs for further nodes of a folder that is there; their shards follow the last.

    Raises:
        InputError: there is no such folder.
    """
    roster = Roster.load(folder / _ROSTER)
    first = 1 + max((shard for _, shard, _ in roster.nodes), default=-1)
    known = [{"name": name, "shard": shard, "public_key": text} for name, shard, text in roster.nodes]
    more = _node_keys(folder, range(first, first + count))
    write_atomically(folder / _ROSTER, json.dumps({"nodes": [*known, *more]}, indent=2) + "\n")


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
        raise InputError(f"{path} can be read by others (mode {mode & 0o777:o}): chmod 600 {path}")


def _canonical(fields: Mapping[str, Any]) -> bytes:
    return _SIGNED + json.dumps(dict(fields), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _private(path: Path, load: Callable[[bytes], object], kind: type[Any]) -> Any:
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


def _node_keys(folder: Path, shards: range) -> list[dict[str, Any]]:
    """Write key pairs; returns their entries of the roster."""
    place = folder / "nodes"
    place.mkdir(mode=0o700, exist_ok=True)
    entries = []
    ssh, none = serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    for shard in shards:
        key = ec.generate_private_key(ec.SECP384R1())
        _write_private(place / f"node-{shard}.key", key.private_bytes(serialization.Encoding.PEM, ssh, none))
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        (place / f"node-{shard}.pub").write_bytes(public + b"\n")
        entries.append({"name": f"node-{shard}", "shard": shard, "public_key": public.decode()})
    return entries


def _write_private(path: Path, content: bytes) -> None:
    """A new file that nobody else can read, not even for a moment."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def _pem(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    pkcs8, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, pkcs8, none)
