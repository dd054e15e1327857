"""`deploy/install.py`: uv is told what pip is told, or pip does the work."""

from __future__ import annotations

import runpy
from pathlib import Path

FILE = runpy.run_path(str(Path(__file__).resolve().parent.parent / "deploy" / "install.py"))
SAID = [
    (":env:", "index-url", "three"),
    ("global", "index-url", "one"),
    ("global", "timeout", "5"),
    ("install", "index-url", "two"),
    ("install", "find-links", "/a /b"),
    ("download", "timeout", "7"),
]
LISTED = "".join(f"{where}.{name}={value!r}\n" for where, name, value in SAID)


def test_the_environment_comes_first_and_then_what_is_for_install() -> None:
    assert FILE["settings"](LISTED) == {"index-url": "three", "timeout": "5", "find-links": "/a /b"}
    rest = LISTED.partition("\n")[2]
    assert FILE["settings"](rest)["index-url"] == "two" and FILE["settings"]("") == {}


def test_uv_looks_where_pip_looks() -> None:
    best = ["--index-strategy", "unsafe-best-match"]
    assert FILE["told_to_uv"]({}) == best
    told = FILE["told_to_uv"](FILE["settings"](LISTED))
    links = f"--{'find-links'}"
    assert told == [*best, "--default-index", "three", links, "/a", links, "/b"]


def test_what_is_not_known_here_is_pips() -> None:
    assert FILE["told_to_uv"]({"no-binary": ":all:"}) is None
