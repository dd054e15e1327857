"""Makes the folder of keys and certificates of a deployment, adds nodes to it, and renews what runs out or is burnt."""

from __future__ import annotations

import itertools
import json
import secrets
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedem_flwr.errors import InputError
from fedem_flwr.files import write_atomically
from fedem_flwr.locking import lock_beside
from fedem_flwr.network.certificates import authority, general_name, server_certificate
from fedem_flwr.network.link import read_secret
from fedem_flwr.network.trust import ROSTER, Roster, open_ssh, private_key, write_private
from fedem_flwr.protocol.files import replaced_folder

_LOCAL: Final = ("localhost", "127.0.0.1", "::1")


def make_certificates(folder: Path, nodes: int, hosts: Sequence[str] = ()) -> None:
    """Make a deployment's keys and certificates; the folder is there whole or not at all.

    Args:
        nodes: key pairs for so many, of the shards 0, 1, ...
        hosts: names and addresses of the SuperLink, beside those of the loopback interface.

    Raises:
        InputError: the folder holds keys already, or a host is no name or address.
    """
    names = [general_name(host) for host in dict.fromkeys((*_LOCAL, *hosts))]
    with lock_beside(folder), replaced_folder(folder) as new:
        if (folder / "ca.crt").exists() or (folder.exists() and any(folder.iterdir())):
            raise InputError(
                f"{folder} holds files already, and keys are never overwritten: choose another --out, or delete it"
            )
        new.chmod(0o700)
        ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        ca = authority(ca_key)
        certificate = server_certificate(key, ca, ca_key, names)
        pem = serialization.Encoding.PEM
        (new / "ca.crt").write_bytes(ca.public_bytes(pem))
        (new / "superlink.crt").write_bytes(certificate.public_bytes(pem))
        write_private(new / "ca.key", _pem(ca_key))
        write_private(new / "superlink.key", _pem(key))
        write_private(new / "superexec.secret", secrets.token_hex(32).encode())
        signing = Ed25519PrivateKey.generate()
        write_private(new / "server.key", _pem(signing))
        info = serialization.PublicFormat.SubjectPublicKeyInfo
        (new / "server.pub").write_bytes(signing.public_key().public_bytes(pem, info))
        write_atomically(new / ROSTER, json.dumps({"nodes": _node_keys(new, range(nodes))}, indent=2) + "\n")


def renew_certificate(folder: Path, hosts: Sequence[str] = ()) -> None:
    """Sign the SuperLink's certificate anew: its time starts again, for the same names or for others.

    Nodes and server go on as they are: they believe the CA, which stays.

    Args:
        hosts: names and addresses beside those of the loopback interface; none: those of the old certificate.

    Raises:
        InputError: the CA's or the SuperLink's key is not here or damaged, or a host is no name or address.
    """
    pem = partial(serialization.load_pem_private_key, password=None)
    ca_key = private_key(folder / "ca.key", pem, ec.EllipticCurvePrivateKey)
    key = private_key(folder / "superlink.key", pem, ec.EllipticCurvePrivateKey)
    ca, old = (_certificate(folder / name) for name in ("ca.crt", "superlink.crt"))
    names = [general_name(host) for host in dict.fromkeys((*_LOCAL, *hosts))]
    if not hosts:
        names = list(old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    made = server_certificate(key, ca, ca_key, names).public_bytes(serialization.Encoding.PEM)
    write_atomically(folder / "superlink.crt", made.decode())


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(read_secret(path))
    except ValueError:
        raise InputError(
            f"{path} is no certificate: restore it, or make a new folder with `fedem deploy certs`"
        ) from None


def add_nodes(folder: Path, count: int) -> None:
    """Make key pairs for further nodes of a folder that is there.

    They are for the first shards that no node of the roster has: of one that was taken out of it, or after the last.

    Raises:
        InputError: there is no such folder.
    """
    roster = Roster.load(folder / ROSTER)
    known = [{"name": name, "shard": shard, "public_key": text} for name, shard, text in roster.nodes]
    taken = {shard for _, shard, _ in roster.nodes}
    names = {name for name, _, _ in roster.nodes}
    free = (shard for shard in itertools.count() if shard not in taken and f"node-{shard}" not in names)
    more = _node_keys(folder, islice(free, count))
    write_atomically(folder / ROSTER, json.dumps({"nodes": [*known, *more]}, indent=2) + "\n")


def rekey_nodes(folder: Path, names: Sequence[str]) -> None:
    """Make new key pairs for nodes that have one: of keys that leaked, or that a SuperLink takes no more.

    Their shards stay theirs. A server knows the new keys from its next start on, and the old ones no longer.

    Raises:
        InputError: there is no such folder, or no such node in its roster.
    """
    roster = Roster.load(folder / ROSTER)
    known = [name for name, _, _ in roster.nodes]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"{folder / ROSTER} has no node '{unknown[0]}': it has {', '.join(known) or 'none'}")
    made = {name: _key_pair(folder / "nodes", name) for name in names}
    entries = [{"name": name, "shard": shard, "public_key": made.get(name, text)} for name, shard, text in roster.nodes]
    write_atomically(folder / ROSTER, json.dumps({"nodes": entries}, indent=2) + "\n")


def _node_keys(folder: Path, shards: Iterable[int]) -> list[dict[str, Any]]:
    """Write key pairs; returns their entries of the roster."""
    place = folder / "nodes"
    place.mkdir(mode=0o700, exist_ok=True)
    entries = []
    for shard in shards:
        name = f"node-{shard}"
        entries.append({"name": name, "shard": shard, "public_key": _key_pair(place, name)})
    return entries


def _key_pair(place: Path, name: str) -> str:
    """Write a node's new key pair; returns the public key."""
    key = ec.generate_private_key(ec.SECP384R1())
    (place / f"{name}.key").unlink(missing_ok=True)  # of an attempt that was cut short, or shut out
    write_private(place / f"{name}.key", open_ssh(key))
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    (place / f"{name}.pub").write_bytes(public + b"\n")
    return public.decode()


def _pem(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    pkcs8, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, pkcs8, none)
