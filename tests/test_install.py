"""`deploy/install.py`: uv is told what pip is told, or pip does the work."""

from __future__ import annotations

import runpy
from pathlib import Path

FILE = runpy.run_path(str(Path(__file__).resolve().parent.parent / "deploy" / "install.py"))
SAID = [
    ("global", "index-url", "one"),
    ("global", "timeout", "5"),
    (":env:", "index-url", "two"),
    ("site", "find-links", "/a /b"),
]
LISTED = "".join(f"{where}.{name}={value!r}\n" for where, name, value in SAID)


def test_the_environment_comes_first() -> None:
    assert FILE["settings"](LISTED) == {"index-url": "two", "timeout": "5", "find-links": "/a /b"}
    assert FILE["settings"]("") == {}


def test_uv_looks_where_pip_looks() -> None:
    best = ["--index-strategy", "unsafe-best-match"]
    assert FILE["told_to_uv"]({}) == best
    told = FILE["told_to_uv"](FILE["settings"](LISTED))
    links = f"--{'find-links'}"
    assert told == [*best, "--default-index", "two", links, "/a", links, "/b"]


def test_what_is_not_known_here_is_pips() -> None:
    assert FILE["told_to_uv"]({"no-binary": ":all:"}) is None
