"""A stranger who hands over a run's directory: somebody else's finished run, with something put into it."""

from __future__ import annotations

import os
import pickle
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from fedem_flwr.config import merge_trees

Tree = dict[str, Any]


class Touches:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self._marker),)


def configured(run: Path, /, **sections: Tree) -> None:
    """Change a run's configuration, as anybody can; its seal, where it has one, stays."""
    path = run / "config.toml"
    path.write_text(tomli_w.dumps(merge_trees(tomllib.loads(path.read_text(encoding="utf-8")), sections)))


def with_code(run: Path, marker: Path) -> None:
    """A Flower strategy that is no strategy: calling it runs a command."""
    command = f"mkdir {marker}"
    configured(run, method={"strategy": "os:system", "client": "", "options": {"command": command}})


def linked(run: Path, name: str, target: Path) -> None:
    """Put a link in the place of a part of the run."""
    path = run / name
    if path.is_dir():
        path.rename(run.parent / "moved")
    else:
        path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def pickled(run: Path, name: str, marker: Path) -> None:
    """An array of objects, which reads as code."""
    values = np.load(run / "split" / name)
    np.save(run / "split" / name, np.array([Touches(marker)] * len(values), dtype=object), allow_pickle=True)


def pickled_checkpoint(run: Path, marker: Path) -> None:
    """What `torch.save` writes, in the place of arrays."""
    for path in (run / "checkpoint").rglob("*.safetensors"):
        path.write_bytes(pickle.dumps(Touches(marker)))


def changed_array(run: Path, name: str, change: Callable[[np.ndarray], Any]) -> None:
    """Other values in the split."""
    values = np.load(run / "split" / name)
    np.save(run / "split" / name, change(values))
