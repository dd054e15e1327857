"""`deploy/install.py`: uv is told what pip is told, or pip does the work."""

from __future__ import annotations

import runpy
from pathlib import Path

FILE = runpy.run_path(str(Path(__file__).resolve().parent.parent / "deploy" / "install.py"))
LISTED = """\
global.index-url='https://one.example/simple'
global.timeout='5'
:env:.index-url='https://two.example/simple'
site.find-links='/wheels /more'
"""


def test_the_environment_comes_first() -> None:
    found = FILE["settings"](LISTED)
    assert found == {"index-url": "https://two.example/simple", "timeout": "5", "find-links": "/wheels /more"}
    assert FILE["settings"]("") == {}


def test_uv_looks_where_pip_looks() -> None:
    best = ["--index-strategy", "unsafe-best-match"]
    assert FILE["told_to_uv"]({}) == best
    places = ["--default-index", "https://two.example/simple", "--find-links", "/wheels", "--find-links", "/more"]
    assert FILE["told_to_uv"](FILE["settings"](LISTED)) == [*best, *places]


def test_what_is_not_known_here_is_pips() -> None:
    assert FILE["told_to_uv"]({"no-binary": ":all:"}) is None
