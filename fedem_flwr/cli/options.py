"""From command-line options and experiment files to configuration trees."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedem_flwr.config import Tree, merge_trees, read_toml
from fedem_flwr.errors import InputError
from fedem_flwr.rooms import presets

_FOLDERS = (("data", "data_dir"), ("network", "certs"), ("evaluation", "cache_dir"))


def options_tree(given: Mapping[str, Mapping[str, Any]], settings: Sequence[str]) -> Tree:
    """Command-line options as a configuration tree; options that were not given are left out.

    Args:
        given: section, key, value; None is "not given".
        settings: `section.key=value` texts; the value is read as TOML, or as a plain string where it is none.

    Raises:
        InputError: a setting that is not of that form.
    """
    tree: Tree = {s: {k: v for k, v in keys.items() if v is not None} for s, keys in given.items()}
    for setting in settings:
        path, equals, text = setting.partition("=")
        section, dot, key = path.strip().partition(".")
        if not equals or not dot or not key:
            raise InputError(f"--set {setting!r}: write section.key=value, for instance --set model.dim=32")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        for part in reversed(key.split(".")):
            value = {part: value}
        tree = merge_trees(tree, {section: value})
    return located({section: keys for section, keys in tree.items() if keys})


def located(tree: Tree, folder: Path | None = None) -> Tree:
    """A tree in which folders have their whole path, so that a run can be resumed from anywhere; `~` is one's own.

    Args:
        folder: where the tree's file lies, to which its paths are relative, the data set's too; None: they are options,
            and relative to where we are.
    """
    tree = {section: dict(keys) if isinstance(keys, Mapping) else keys for section, keys in tree.items()}
    base = folder or Path()
    for section, key in _FOLDERS:
        keys = tree.get(section)
        if isinstance(keys, dict) and isinstance(value := keys.get(key), str) and value:
            keys[key] = str((base / Path(value).expanduser()).absolute())
    data = tree.get("data")
    if folder is not None and isinstance(data, dict) and isinstance(name := data.get("dataset"), str):
        data["dataset"] = _beside(name, folder)
    if folder is not None and isinstance(names := tree.get("datasets"), list):
        tree["datasets"] = [_beside(name, folder) if isinstance(name, str) else name for name in names]
    if isinstance(variants := tree.get("variants"), dict):
        tree["variants"] = {
            name: located(dict(each), folder) if isinstance(each, Mapping) else each for name, each in variants.items()
        }
    return tree


def _beside(dataset: str, folder: Path) -> str:
    """A data set of a file in `folder`: a known name, or a path."""
    path = Path(dataset).expanduser()
    if "://" in dataset:
        return dataset
    return str(folder / path) if path.suffix or len(path.parts) > 1 or (folder / path).is_file() else dataset


def experiment_tree(experiment: str | None) -> tuple[Tree, str]:
    """An experiment file's tree and name: a path, or the name of an experiment that ships with the package.

    Paths in a file are relative to the folder that it lies in.
    """
    if experiment is None:
        return {}, "options"
    shipped = presets() / "experiments" / f"{experiment}.toml"
    if not Path(experiment).exists() and shipped.is_file():
        return read_toml(shipped), experiment
    path = Path(experiment).expanduser()
    return located(read_toml(path), path.parent), experiment


def quiet_libraries() -> None:
    """Flower logs every step; a run shows its own progress and keeps real errors."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
