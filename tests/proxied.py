"""The proxy of deploy/nginx on this machine: its files with other ports and folders, and the program itself."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

FILES = Path(__file__).resolve().parent.parent / "deploy" / "nginx"


def require_nginx() -> str:
    """The program; skips where there is none."""
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin")
    if found is None:
        pytest.skip("nginx is not installed (Debian: nginx-light)")
    return found


def rendered(out: Path, changes: Mapping[str, str]) -> Path:
    """A copy of the files in which texts are replaced; each must be there, so that the files and this stay together."""
    out.mkdir()
    texts = {path.name: path.read_text(encoding="utf-8") for path in FILES.iterdir()}
    for old, new in changes.items():
        assert any(old in text for text in texts.values()), old
        texts = {name: text.replace(old, new) for name, text in texts.items()}
    for name, text in texts.items():
        (out / name).write_text(as_root(text), encoding="utf-8")
    return out


def as_root(text: str) -> str:
    """Workers of a program that root starts would be somebody else, who cannot read a test's folders."""
    return text.replace("daemon off;", "daemon off;\nuser root;") if os.geteuid() == 0 else text


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def nginx(config: Path, port: int) -> Iterator[None]:
    """Let it run inside the block."""
    log = config.parent / "log"
    with log.open("wb") as out:
        child = subprocess.Popen([require_nginx(), "-e", "stderr", "-c", config], stdout=out, stderr=out)
    try:
        while True:
            assert child.poll() is None, log.read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
        yield
    finally:
        child.terminate()
        child.wait(timeout=30)
