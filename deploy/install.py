"""Installs into the environment of this interpreter, at the versions of a constraints file.

python deploy/install.py CONSTRAINTS REQUIREMENT ...          (`make run`, `make test`)

pip installs uv, and uv the rest, from the places that pip is told to look at: a fifth of pip's processor time, most of
which goes into unpacking. Where pip has settings that uv is not told of here, or uv fails, pip does all of it.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

PIP = (sys.executable, "-m", "pip")
# Nothing is compiled to byte code now, but when it is first imported: all of it takes as long as the rest.
QUIETLY = ("install", "-qq", "--no-compile", "--disable-pip-version-check")
PLACES = {
    "index-url": "default-index",
    "extra-index-url": "index",
    "find-links": "find-links",
    "constraint": "constraints",
    "trusted-host": "allow-insecure-host",
}
MANNERS = {
    "cert", "default-timeout", "disable-pip-version-check", "no-cache-dir", "no-color", "no-input", "progress-bar",
    "quiet", "retries", "root-user-action", "timeout", "verbose",
}  # fmt: skip


def settings(listed: str) -> dict[str, str]:
    """What of `pip config list` is for `pip install`, by name: the environment's, then its own, then everybody's."""
    found: dict[str, str] = {}
    for section in ("global", "install", ":env:"):
        for line in listed.splitlines():
            name, _, value = line.partition("=")
            if name.rpartition(".")[0] == section:
                found[name.rpartition(".")[2]] = ast.literal_eval(value)
    return found


def told_to_uv(pip: Mapping[str, str]) -> list[str] | None:
    """The options of `uv pip install` that mean the same as pip's settings; None where they are not known here."""
    if set(pip) - PLACES.keys() - MANNERS:
        return None
    options = [(f"--{PLACES[name]}", value) for name in PLACES for value in pip.get(name, "").split()]
    return ["--index-strategy", "unsafe-best-match", *(word for option in options for word in option)]


def main(constraints: str, *requirements: str) -> int:
    """Install; returns the exit code."""
    wanted = ["-c", constraints, *requirements]
    listed = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True, check=False)
    pip = settings(listed.stdout)
    options = told_to_uv(pip) if listed.returncode == 0 else None
    if options is not None and subprocess.run([*PIP, *QUIETLY, "-c", constraints, "uv"], check=False).returncode == 0:
        uv = [str(Path(sys.executable).parent / "uv"), "pip", "install", "--quiet", "--python", sys.executable]
        uv += ["--no-config", *(["--no-cache"] if "no-cache-dir" in pip else [])]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("UV_")}
        environment |= {"SSL_CERT_FILE": pip["cert"]} if "cert" in pip else {}
        made = subprocess.run([*uv, *options, *wanted], env=environment, capture_output=True, text=True, check=False)
        if made.returncode == 0:
            return 0
        print(f"uv cannot install this ({' '.join(made.stderr.split())[:300]}): pip does", file=sys.stderr)
    return subprocess.run([*PIP, *QUIETLY, *wanted], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
