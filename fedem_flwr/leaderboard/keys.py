"""What makes two cells the same: the content of the split, the resolved configuration, and the sources that compute.

Sources count by what they say to Python: comments, docstrings and layout are left out, so that a word in a comment
does not make a night's runs again.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from fedem_flwr.config import Config
from fedem_flwr.config.registry import find
from fedem_flwr.experiment.controls import trained_configs

DATA_ROOMS = ("data", "protocol", "randomness.py")  # what makes a split
ROOMS = (
    *DATA_ROOMS,
    *("aggregation", "contract", "engine", "evaluation", "methods/tasks", "messages", "models", "nodes", "runtime"),
    *("experiment/controls.py", "experiment/outcome.py", "serving/served.py", "report/selection.py"),
)
_FLOWER = ("fedem_flwr.strategies", "fedem_flwr.clients")
# How a run is carried out, and where things lie; these change no figure.
_ASIDE = {
    "run": {"threads", "round_timeout", "patience", "checkpoint_every", "checkpoints_kept"},
    "data": {"data_dir", "dataset"},  # the split has its name and its content
    "evaluation": {"cache_dir"},
    "method": {"title"},
    "network": None,
    "tracking": None,
}


def cell_key(config: Config, split: str) -> str:
    """Hex digest of what a cell's results depend on.

    Args:
        split: digest of the split's content.
    """
    settings = config.model_dump(mode="json", exclude=_ASIDE)  # type: ignore[arg-type]
    beside = [method_sources(other) for other in trained_configs(config)]
    what = [split, settings, sources(ROOMS), method_sources(config), *beside]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=8)
def sources(rooms: tuple[str, ...]) -> str:
    """Hex digest of the rooms' modules; with all rooms, also of the Flower strategies and clients."""
    root = Path(__file__).resolve().parents[1]
    tops = [Path(str(import_module(name).__file__)).parent for name in _FLOWER] if rooms == ROOMS else []
    return _digest(_modules([*(root / room for room in rooms), *tops]))


def method_sources(config: Config) -> str:
    """Hex digest of the modules that a method's class, and those that it builds on, stand in."""
    kinds = [find("strategies", config.method.strategy)]
    if config.method.client:
        kinds.append(find("clients", config.method.client))
    names = {base.__module__ for kind in kinds for base in inspect.getmro(kind)} - {"builtins", "abc", "__main__"}
    files = (getattr(sys.modules.get(name), "__file__", None) for name in sorted(names))
    return _digest(sorted({Path(file) for file in files if file and file.endswith(".py")}))


def _modules(places: Iterable[Path]) -> Iterator[Path]:
    for place in places:
        yield from sorted(place.rglob("*.py")) if place.is_dir() else [place]


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.parent.name}/{file.name}\n".encode())
        digest.update(_said(file).encode())
    return digest.hexdigest()


@lru_cache(maxsize=512)
def _said(file: Path) -> str:
    return said(file.read_text(encoding="utf-8"))


def said(text: str) -> str:
    """What a module says to Python, without docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            body: list[Any] = node.body
            if body and isinstance(body[0], ast.Expr) and isinstance(getattr(body[0].value, "value", None), str):
                node.body = body[1:]
    return ast.dump(tree)
