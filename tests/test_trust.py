"""Keys and certificates: what is written, who is believed, and what is refused."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, uses_nist_ec_curve

from fedem_flwr.errors import InputError
from fedem_flwr.network.key_folder import add_nodes, make_certificates, renew_certificate
from fedem_flwr.network.trust import (
    NodeTrust,
    Roster,
    ServerTrust,
    load_server_key,
    own_keys,
    sign_introduction,
    verify_introduction,
)

PRIVATE = ("ca.key", "superlink.key", "superexec.secret", "server.key", "nodes/node-0.key", "nodes/node-1.key")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("trust") / "certs"
    make_certificates(made, 2, ["superlink", "*.example.org", "192.0.2.7", "2001:db8::1"])
    return made


def test_private_files_are_private(folder: Path) -> None:
    assert {name: (folder / name).stat().st_mode & 0o777 for name in PRIVATE} == dict.fromkeys(PRIVATE, 0o600)
    assert folder.stat().st_mode & 0o077 == 0 and (folder / "nodes").stat().st_mode & 0o077 == 0


def test_the_certificate_names_its_hosts(folder: Path) -> None:
    certificate = x509.load_pem_x509_certificate((folder / "superlink.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "superlink", "*.example.org"]
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    assert addresses == ["127.0.0.1", "::1", "192.0.2.7", "2001:db8::1"]
    ca = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    certificate.verify_directly_issued_by(ca)
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def handshake(folder: Path, ca: Path, name: str) -> str:
    """What the client's side of a TLS connection comes to."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(folder / "superlink.crt", folder / "superlink.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            link, _ = listener.accept()
            try:
                serving.wrap_socket(link, server_side=True).close()
            except (ssl.SSLError, OSError):
                link.close()

        thread = threading.Thread(target=serve)
        thread.start()
        trusting = ssl.create_default_context(cafile=str(ca))
        trusting.verify_flags |= ssl.VERIFY_X509_STRICT
        try:
            plain = socket.create_connection(listener.getsockname(), timeout=10)
            with plain, trusting.wrap_socket(plain, server_hostname=name) as link:
                return str(link.version())
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
        finally:
            thread.join(timeout=10)


def test_tls_with_these_files(folder: Path, tmp_path: Path) -> None:
    for name in ("localhost", "127.0.0.1", "superlink", "a.example.org"):
        assert handshake(folder, folder / "ca.crt", name).startswith("TLSv1."), name
    assert "not valid for 'elsewhere'" in handshake(folder, folder / "ca.crt", "elsewhere")
    make_certificates(tmp_path / "other", 0)
    assert "unable to get local issuer" in handshake(folder, tmp_path / "other" / "ca.crt", "localhost")


def test_flower_reads_the_nodes_keys(folder: Path) -> None:
    trust = NodeTrust.load(folder, "node-1")
    private = load_ssh_private_key((folder / "nodes" / "node-1.key").read_bytes(), None)
    public = load_ssh_public_key((folder / "nodes" / "node-1.pub").read_bytes())
    assert isinstance(private, ec.EllipticCurvePrivateKey) and isinstance(public, ec.EllipticCurvePublicKey)
    assert uses_nist_ec_curve(public)
    assert (
        public_key_to_bytes(private.public_key()) == public_key_to_bytes(public) == public_key_to_bytes(trust.keys[1])
    )
    server = ServerTrust.load(folder)
    assert server.roster.shard_of(public_key_to_bytes(public)) == 1
    stranger = ec.generate_private_key(ec.SECP384R1()).public_key()
    assert server.roster.shard_of(public_key_to_bytes(stranger)) is None
    assert trust.ca == server.ca and len(server.secret) >= 32
    fields = {"key": "k", "resumes": [1, 2]}
    assert verify_introduction(trust.server_key, fields, sign_introduction(server.signing_key, fields))


def test_signatures_hold_for_exactly_these_fields() -> None:
    key, fields = Ed25519PrivateKey.generate(), {"a": "1", "b": [2, 3], "c": 1.5}
    signature, public = sign_introduction(key, fields), key.public_key()
    assert verify_introduction(public, dict(reversed(fields.items())), signature), "whatever their order"
    for other in ({**fields, "a": 1}, {**fields, "b": [23]}, {"a": "1"}, {**fields, "d": ""}):
        assert not verify_introduction(public, other, signature)
    assert not verify_introduction(Ed25519PrivateKey.generate().public_key(), fields, signature)
    for bad in ("", "x", "é", signature[:-4], signature + "AAAA", "AAAA"):
        assert not verify_introduction(public, fields, bad)


def test_a_deployment_grows(tmp_path: Path) -> None:
    make_certificates(tmp_path / "certs", 1)
    before = Roster.load(tmp_path / "certs" / "roster.json")
    add_nodes(tmp_path / "certs", 2)
    after = Roster.load(tmp_path / "certs" / "roster.json")
    assert after.nodes[:1] == before.nodes
    assert [(name, shard) for name, shard, _ in after.nodes] == [("node-0", 0), ("node-1", 1), ("node-2", 2)]
    assert NodeTrust.load(tmp_path / "certs", "node-2").ca


def test_a_shard_whose_node_was_shut_out_gets_a_new_key(tmp_path: Path) -> None:
    certs = tmp_path / "certs"
    make_certificates(certs, 3)
    before = json.loads((certs / "roster.json").read_text())["nodes"]
    (certs / "roster.json").write_text(json.dumps({"nodes": [before[0], before[2]]}))
    add_nodes(certs, 2)
    after = {one["shard"]: one for one in json.loads((certs / "roster.json").read_text())["nodes"]}
    assert list(after) == [0, 2, 1, 3] and [after[0], after[2]] == [before[0], before[2]]
    assert after[1]["name"] == "node-1" and after[1]["public_key"] != before[1]["public_key"]
    assert (certs / "nodes" / "node-1.pub").read_text().strip() == after[1]["public_key"]


def test_an_addition_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    certs = tmp_path / "certs"
    make_certificates(certs, 1)
    roster = (certs / "roster.json").read_text()
    add_nodes(certs, 1)
    (certs / "roster.json").write_text(roster)  # killed before it was written
    first = (certs / "nodes" / "node-1.pub").read_text()
    add_nodes(certs, 1)
    names = [name for name, _, _ in Roster.load(certs / "roster.json").nodes]
    assert names == ["node-0", "node-1"] and (certs / "nodes" / "node-1.pub").read_text() != first
    assert NodeTrust.load(certs, "node-1").keys[0].key_size == 384


def test_a_certificate_is_renewed_and_the_ca_stays(tmp_path: Path) -> None:
    certs = tmp_path / "certs"
    make_certificates(certs, 1, ["old.example.org"])
    kept = {path: path.read_bytes() for path in certs.rglob("*") if path.is_file() and path.name != "superlink.crt"}
    old = x509.load_pem_x509_certificate((certs / "superlink.crt").read_bytes())
    for hosts, expected in (([], "old.example.org"), (["new.example.org"], "new.example.org"), ([], "new.example.org")):
        renew_certificate(certs, hosts)
        made = x509.load_pem_x509_certificate((certs / "superlink.crt").read_bytes())
        names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == ["localhost", expected]
        assert made.serial_number != old.serial_number and made.not_valid_after_utc >= old.not_valid_after_utc
        made.verify_directly_issued_by(x509.load_pem_x509_certificate((certs / "ca.crt").read_bytes()))
    assert all(path.read_bytes() == content for path, content in kept.items())
    (certs / "ca.key").unlink()
    with pytest.raises(InputError, match=r"cannot read .*ca\.key"):
        renew_certificate(certs)


def test_a_node_without_keys_makes_its_own_once(tmp_path: Path) -> None:
    one = own_keys(tmp_path / "node.key")
    assert (tmp_path / "node.key").stat().st_mode & 0o777 == 0o600
    again = own_keys(tmp_path / "node.key")
    assert one[0].private_numbers() == again[0].private_numbers()
    (tmp_path / "node.key").write_text("cut sho")
    other = own_keys(tmp_path / "node.key")
    assert other[0].private_numbers() != one[0].private_numbers()
    with pytest.raises(InputError, match="cannot write"):
        own_keys(tmp_path / "nowhere" / "node.key")


def test_what_is_not_right_is_told(tmp_path: Path) -> None:
    certs = tmp_path / "certs"
    for host in ("bad host", "a..b", "-x", "http://x", "x:8000", "", "300.1.1.1", "10.0.0"):
        with pytest.raises(InputError, match="is no name or address of a host"):
            make_certificates(certs, 1, [host])
        assert not certs.exists()
    make_certificates(certs, 1)
    with pytest.raises(InputError, match="keys are never overwritten"):
        make_certificates(certs, 1)
    with pytest.raises(InputError, match=r"cannot read .*node-7\.key"):
        NodeTrust.load(certs, "node-7")
    with pytest.raises(InputError, match="cannot be a node's name"):
        NodeTrust.load(certs, "../ca")
    (certs / "nodes" / "node-0.key").chmod(0o640)
    with pytest.raises(InputError, match="chmod 600"):
        NodeTrust.load(certs, "node-0")
    (certs / "nodes" / "node-0.key").chmod(0o600)
    (certs / "nodes" / "node-0.key").write_text("no key")
    with pytest.raises(InputError, match="is damaged, or no key of the right kind"):
        NodeTrust.load(certs, "node-0")
    (certs / "superexec.secret").chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        ServerTrust.load(certs)
    with pytest.raises(InputError, match="is no public key of a server"):
        load_server_key(certs / "ca.crt")
    told = json.loads((certs / "roster.json").read_text())
    (certs / "roster.json").write_text(json.dumps({"nodes": told["nodes"] * 2}))
    with pytest.raises(InputError, match="twice"):
        Roster.load(certs / "roster.json")
    (certs / "roster.json").write_text("{}")
    with pytest.raises(InputError, match="is no roster"):
        Roster.load(certs / "roster.json")
