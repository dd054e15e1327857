"""Downloads against a server on the loopback interface that misbehaves on request."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from zipped import leftovers, zipped

from fedem_flwr.data import KNOWN_DATASETS, fetch_dataset, find_dataset, load_dataset
from fedem_flwr.data import known as known_module
from fedem_flwr.data.download import checksum_mismatch, download
from fedem_flwr.errors import InputError

BODY = bytes(range(256)) * 4096  # 1 MiB, several blocks
SHA256 = "sha256:" + hashlib.sha256(BODY).hexdigest()
MD5 = "md5:" + hashlib.md5(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `body`; `ranges`, `status`, `cut_first`: how well; `asked`: the Range of each request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = BODY
        self.ranges = True
        self.status: list[int] = []  # answers to give before behaving
        self.cut_first = 0  # how many answers stop half way
        self.version: str | None = None  # the ETag
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        if server.status:
            self.send_error(server.status.pop(0))
            return
        same = self.headers.get("If-Range") in (None, server.version)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges and same else 0
        if start >= len(server.body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = server.body[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        self.send_header("Content-Length", str(len(content)))
        if server.version:
            self.send_header("ETag", server.version)
        self.end_headers()
        if server.cut_first:
            server.cut_first -= 1
            content = content[: len(content) // 2]
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@contextmanager
def serving() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


def fetch(server: Server, target: Path, **options: object) -> str:
    return download(server.url, target, timeout=5, pause_seconds=0.0, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("checksum", [None, SHA256, MD5])
def test_whole_file(server: Server, tmp_path: Path, checksum: str | None) -> None:
    told: list[tuple[int, int | None]] = []
    target = tmp_path / "new" / "file.bin"
    seen = fetch(server, target, checksum=checksum, progress=lambda done, total: told.append((done, total)))
    assert target.read_bytes() == BODY
    assert f"sha256:{seen}" == SHA256
    assert leftovers(target.parent) == ["file.bin"]
    assert told[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_verified_file_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "file.bin"
    fetch(server, target, checksum=SHA256)
    fetch(server, target, checksum=SHA256)
    assert len(server.asked) == 1
    target.write_bytes(b"damaged")
    fetch(server, target, checksum=SHA256)
    assert target.read_bytes() == BODY
    assert len(server.asked) == 2


def test_a_file_put_there_by_hand_is_taken(server: Server, tmp_path: Path) -> None:
    server.status = [404] * 2
    (tmp_path / "file.bin").write_bytes(BODY)
    assert f"sha256:{fetch(server, tmp_path / 'file.bin', checksum=MD5)}" == SHA256
    assert f"sha256:{fetch(server, tmp_path / 'file.bin')}" == SHA256
    assert server.asked == []
    (tmp_path / "file.bin").write_bytes(b"damaged")
    with pytest.raises(InputError, match="the file there now is another: expected md5"):
        fetch(server, tmp_path / "file.bin", checksum=MD5)


def test_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.body = BODY[:-1] + b"!"
    found = hashlib.md5(server.body).hexdigest()
    with pytest.raises(InputError, match=f"expected {MD5.replace(':', ' ')}, found {found}") as caught:
        fetch(server, tmp_path / "file.bin", checksum=MD5)
    assert "\n" not in str(caught.value)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("checksum", [None, SHA256])
def test_broken_transfer_resumes_with_a_range(server: Server, tmp_path: Path, checksum: str | None) -> None:
    server.cut_first = 1
    fetch(server, tmp_path / "file.bin", checksum=checksum)
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert server.asked == [None, f"bytes={len(BODY) // 2}-"]


def test_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.cut_first, server.ranges = 1, False
    fetch(server, tmp_path / "file.bin", checksum=SHA256)
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert len(server.asked) == 2


def test_a_transfer_that_stays_truncated_fails_and_the_next_call_continues(server: Server, tmp_path: Path) -> None:
    server.cut_first = 3
    with pytest.raises(InputError, match=r"truncated: \d+ of \d+ bytes, tried 3 times"):
        fetch(server, tmp_path / "file.bin", checksum=SHA256)
    assert leftovers(tmp_path) == ["file.bin.part"]
    fetch(server, tmp_path / "file.bin", checksum=SHA256)
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert server.asked[-1] == f"bytes={len(BODY) * 7 // 8}-"


def test_an_old_part_is_trusted_only_with_a_checksum(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "file.bin.part"
    part.write_bytes(BODY[:1000])
    fetch(server, tmp_path / "file.bin", checksum=SHA256)
    assert server.asked == ["bytes=1000-"]
    part.write_bytes(b"x" * 1000)
    fetch(server, tmp_path / "other.bin", checksum=None)
    (tmp_path / "third.bin.part").write_bytes(b"x" * 1000)
    fetch(server, tmp_path / "third.bin", checksum=None)
    assert (tmp_path / "third.bin").read_bytes() == BODY


@pytest.mark.parametrize("old", [BODY, BODY + b"too long"])
def test_range_past_the_end(server: Server, tmp_path: Path, old: bytes) -> None:
    """416: the part was complete already, or it is not ours and is dropped."""
    (tmp_path / "file.bin.part").write_bytes(old)
    fetch(server, tmp_path / "file.bin", checksum=SHA256)
    assert (tmp_path / "file.bin").read_bytes() == BODY


def test_passing_server_errors_are_retried_and_lasting_ones_are_not(server: Server, tmp_path: Path) -> None:
    server.status = [503, 500]
    fetch(server, tmp_path / "file.bin")
    assert len(server.asked) == 3
    server.status = [404] * 3
    with pytest.raises(InputError, match=r"HTTP 404.*fetch it by hand and put it at .*other\.bin"):
        fetch(server, tmp_path / "other.bin")
    assert len(server.asked) == 4
    server.status = [503] * 3
    with pytest.raises(InputError, match=r"HTTP 503.*tried 3 times"):
        fetch(server, tmp_path / "other.bin")


def test_no_server_says_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as reserved:  # bound but not listening: connections are refused
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}/x.zip"
        with pytest.raises(InputError, match=re.escape(f"put it at {tmp_path / 'x.zip'}")) as caught:
            download(url, tmp_path / "x.zip", timeout=2, pause_seconds=0)
    assert "\n" not in str(caught.value)
    assert leftovers(tmp_path) == []


def test_other_schemes_and_unwritable_targets(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only http and https"):
        download(f"file://{tmp_path}/x", tmp_path / "y")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot save"):
        fetch(server, tmp_path / "file" / "x.bin")


def test_checksum_kinds(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(BODY)
    assert checksum_mismatch(path, SHA256) is None
    assert checksum_mismatch(path, MD5.upper().replace("MD5", "md5")) is None
    assert checksum_mismatch(path, "md5:00") is not None
    with pytest.raises(ValueError, match="checksum must be"):
        checksum_mismatch(path, "crc:00")


@pytest.mark.parametrize("published", [True, False])
def test_fetch_a_known_dataset(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: bool
) -> None:
    archive = zipped(tmp_path / "served.zip", {"ml-100k/u.data": b"1\t10\t5\t881250949\n2\t10\t3\t881250950\n"})
    server.body = archive.read_bytes()
    server.status = [404]  # the first address is dead, the second works
    checksum = "sha256:" + hashlib.sha256(server.body).hexdigest()
    entry = dataclasses.replace(
        KNOWN_DATASETS["ml-100k"],
        urls=(server.url, server.url),
        archive_checksum=checksum if published else None,
    )
    monkeypatch.setitem(known_module.KNOWN_DATASETS, "ml-100k", entry)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FEDEM_DATA", raising=False)
    data = load_dataset("ml-100k", None)
    assert (data.users, data.items, data.rows) == (2, 1, 2)
    home = tmp_path / "cache" / "fedem-flwr" / "data" / "ml-100k"
    assert leftovers(home) == ["source.json", "u.data"]
    source = json.loads((home / "source.json").read_text())
    assert f"sha256:{source['archive_sha256']}" == checksum
    found = find_dataset("ml-100k", None)
    assert found.status == ("ok" if published else "unverified")
    assert (found.warning is None) == published
    assert len(server.asked) == 2  # the second look-up came from the cache
    (home / "u.data").write_bytes(b"1\t10\t5\t881250949\n")
    assert find_dataset("ml-100k", None).status == "differs"
    assert fetch_dataset("ml-100k", tmp_path / "elsewhere").path == tmp_path / "elsewhere" / "ml-100k" / "u.data"


def test_fetch_with_a_wrong_checksum_leaves_no_dataset(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = dataclasses.replace(KNOWN_DATASETS["ml-1m"], urls=(server.url,))
    monkeypatch.setitem(known_module.KNOWN_DATASETS, "ml-1m", entry)
    with pytest.raises(InputError, match="wrong checksum"):
        fetch_dataset("ml-1m", tmp_path)
    assert leftovers(tmp_path / "ml-1m") == []
