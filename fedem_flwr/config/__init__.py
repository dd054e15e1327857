"""A run's configuration: sections, presets, layers, and what they name."""

from __future__ import annotations

from fedem_flwr.config.resolved import (
    DEFAULT_METHOD,
    Config,
    Tree,
    build,
    load_resolved,
    merge_trees,
    name_of_class,
    preset_names,
    read_toml,
    renamed,
    resolve,
)

__all__ = [
    "DEFAULT_METHOD",
    "Config",
    "Tree",
    "build",
    "load_resolved",
    "merge_trees",
    "name_of_class",
    "preset_names",
    "read_toml",
    "renamed",
    "resolve",
]
