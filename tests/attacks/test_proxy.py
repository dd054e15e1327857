"""The proxy of docs/deployment.md, nginx itself: what a stranger or a node may not, it does not pass on."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from proxied import as_root, free_port, nginx, rendered, require_nginx

from fedem_flwr.network.key_folder import make_certificates
from fedem_flwr.network.superlink import NODE, OBJECT

pytestmark = pytest.mark.attacks
FLEET = "/v1/fleet/"
# As the real ones, only sooner.
SCALED = {
    "rate=50r/s": "rate=1r/m",
    "burst=400 delay=200": "burst=2 nodelay",
    "client_header_timeout 10s": "client_header_timeout 1s",
    "client_body_timeout 10s": "client_body_timeout 1s",
    "worker_processes 2": "worker_processes 1",
    "worker_connections 8192": "worker_connections 64",
    "# allow 192.0.2.10;": "allow 127.0.0.1;",
}


@dataclass
class Behind:
    """A SuperLink's stand-in, and proxies before it."""

    certs: Path
    port: int
    seen: list[tuple[str, int]] = field(default_factory=list)  # paths and bytes of what has come through

    def at(self, port: int) -> httpx.Client:
        trusted = ssl.create_default_context(cafile=str(self.certs / "ca.crt"))
        return httpx.Client(base_url=f"https://localhost:{port}", verify=trusted, timeout=30)

    def raw(self, port: int | None) -> ssl.SSLSocket:
        """A connection for whoever keeps no rules."""
        trusted = ssl.create_default_context(cafile=str(self.certs / "ca.crt"))
        made = trusted.wrap_socket(socket.create_connection(("127.0.0.1", port or 0)), server_hostname="localhost")
        made.settimeout(30)
        return made

    def changes(self, out: Path, port: int, more: Mapping[str, str]) -> dict[str, str]:
        places = {"server superlink:8000;": f"server 127.0.0.1:{self.port};", "listen 8000": f"listen 127.0.0.1:{port}"}
        return {**places, "/own/": f"{self.certs}/", "/tmp/nginx": f"{out}-", **more}


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    require_nginx()
    certs = tmp_path_factory.mktemp("proxy") / "certs"
    make_certificates(certs, 1)
    seen: list[tuple[str, int]] = []

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            seen.append((self.path, len(body)))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        do_GET = do_POST  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certs / "superlink.crt", certs / "superlink.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Behind(certs, server.server_address[1], seen)
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def ports(behind: Behind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """Of the proxy as it is, and of one with smaller numbers."""
    folder, found = tmp_path_factory.mktemp("nginx"), []
    with ExitStack() as stack:
        for name, more in (("as-it-is", {}), ("scaled", SCALED)):
            port, out = free_port(), folder / name
            stack.enter_context(nginx(rendered(out, behind.changes(out, port, more)) / "nginx.conf", port))
            found.append(port)
        yield found[0], found[1]


@pytest.fixture
def client(behind: Behind, ports: tuple[int, int]) -> Iterator[httpx.Client]:
    behind.seen.clear()
    with behind.at(ports[0]) as made:
        yield made


def test_what_nodes_need_comes_through(behind: Behind, client: httpx.Client) -> None:
    for path, size in (("pull-messages", 100), ("push-messages", NODE), ("push-object", OBJECT), ("pull-object", 100)):
        assert client.post(FLEET + path, content=bytes(size)).status_code == 200
        assert behind.seen.pop() == (FLEET + path, size)
    assert client.get("/health").status_code == 200


def test_bodies_are_capped(behind: Behind, client: httpx.Client) -> None:
    """30,000 announcements in 2 MB; 800 MB at once, and in parts without saying so."""
    assert client.post(f"{FLEET}push-messages", content=bytes(2_000_000)).status_code == 413
    assert client.post(f"{FLEET}push-object", content=bytes(OBJECT + 1)).status_code == 413
    assert client.post(f"{FLEET}pull-messages", content=iter([bytes(NODE)] * 2)).status_code == 413
    with behind.raw(client.base_url.port) as one:
        one.sendall(b"POST /v1/fleet/push-object HTTP/1.1\r\nhost: localhost\r\ncontent-length: 838860800\r\n\r\n")
        assert b"413" in one.recv(100)
    assert not behind.seen, "the SuperLink has heard of none"


def test_nobody_starts_runs_or_registers_nodes(behind: Behind, client: httpx.Client) -> None:
    for path in ("control/start-run", "control/unregister-node", "runtime/acquire-task", "fleet/../control/stop-run"):
        assert client.post(f"/v1/{path}").status_code == 403, path
    for path in ("register-node", "unregister-node"):
        assert client.post(FLEET + path).status_code == 403, path
    for path in ("/", "/docs", "/openapi.json", "/v2/fleet/pull-messages"):
        assert client.post(path).status_code == 404, path
    assert not behind.seen


def test_rates_handshakes_and_slow_bodies_have_limits_and_the_server_its_address(
    behind: Behind, ports: tuple[int, int]
) -> None:
    behind.seen.clear()
    _, port = ports
    hanging = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]  # of 64; no handshake
    slow = behind.raw(port)
    slow.sendall(b"POST /v1/fleet/push-object HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n12345")
    with behind.at(port) as client:
        assert client.post("/v1/control/list-nodes").status_code == 200, "from an address that is allowed"
        assert client.post(f"{FLEET}pull-messages").status_code == 200, "the second of three; the slow one is the first"
        assert client.post(f"{FLEET}pull-messages").status_code == 503
    for one in hanging:
        one.settimeout(30)
        assert one.recv(1) == b"", "given up by the proxy"
        one.close()
    assert slow.recv(100) == b"", "and so is a body that does not come"
    slow.close()
    assert [path for path, _ in behind.seen] == ["/v1/control/list-nodes", f"{FLEET}pull-messages"]


def test_announcements_have_a_rate_of_their_own(behind: Behind, tmp_path: Path) -> None:
    """Each may lock the SuperLink's database for a while."""
    port, out = free_port(), tmp_path / "nginx"
    more = {"rate=5r/s": "rate=1r/m", "burst=50 nodelay": "burst=1 nodelay"}
    with nginx(rendered(out, behind.changes(out, port, more)) / "nginx.conf", port), behind.at(port) as client:
        assert [client.post(f"{FLEET}push-messages").status_code for _ in range(3)] == [200, 200, 503]
        assert client.post(f"{FLEET}pull-messages").status_code == 200


def test_it_believes_no_other_superlink(behind: Behind, tmp_path: Path) -> None:
    """One with a certificate of another authority: what nodes send does not reach it."""
    other = tmp_path / "other"
    make_certificates(other, 1)
    port, out = free_port(), tmp_path / "nginx"
    more = {f"proxy_ssl_trusted_certificate {behind.certs}/ca.crt": f"proxy_ssl_trusted_certificate {other}/ca.crt"}
    behind.seen.clear()
    with nginx(rendered(out, behind.changes(out, port, more)) / "nginx.conf", port), behind.at(port) as client:
        assert client.post(f"{FLEET}pull-messages").status_code == 502
    assert not behind.seen


def test_the_insecure_one_is_the_same_without_tls(behind: Behind, tmp_path: Path) -> None:
    out = tmp_path / "nginx"
    rendered(out, behind.changes(out, free_port(), {}))
    checked = subprocess.run(
        [require_nginx(), "-t", "-e", "stderr", "-c", out / "insecure.conf"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert as_root("daemon off;") in (out / "insecure.conf").read_text()
