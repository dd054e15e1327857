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
    return {section: keys for section, keys in tree.items() if keys}


def experiment_tree(experiment: str | None) -> tuple[Tree, str]:
    """An experiment file's tree and name: a path, or the name of an experiment that ships with the package."""
    if experiment is None:
        return {}, "options"
    shipped = presets() / "experiments" / f"{experiment}.toml"
    if not Path(experiment).exists() and shipped.is_file():
        return read_toml(shipped), experiment
    return read_toml(Path(experiment)), experiment


def quiet_libraries() -> None:
    """Flower logs every step; a run shows its own progress and keeps real errors."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
