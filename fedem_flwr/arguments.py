"""The arguments of a call from Python, as a configuration has them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np

from fedem_flwr.config import Config, Tree, renamed
from fedem_flwr.errors import InputError, suggest

RUN = "fedem_flwr.run"
_PLACES = {  # of the arguments that stand for a setting
    "dataset": ("data", "dataset"),
    "protocol": ("data", "protocol"),
    "rounds": ("run", "rounds"),
    "seed": ("run", "seed"),
}
_ARGUMENTS = (*_PLACES, "method", "out", "against", "name", "overwrite", "progress")


def options_of(given: Mapping[str, Any], method: Tree | None, settings: Mapping[str, Any], origin: str = RUN) -> Tree:
    """The arguments as a configuration tree.

    Raises:
        InputError: an unknown argument, a section that is none, or something that is said twice.
    """
    tree: Tree = {}
    for section, keys in renamed(settings).items():
        if section not in Config.model_fields:
            raise InputError(f"{origin}: unknown argument '{section}'{suggest(section, _valid_arguments())}")
        if not isinstance(keys, Mapping):
            raise InputError(f"{origin}: {section} = {keys!r}: a section's settings are a dictionary")
        tree[section] = plain(keys, section)
    for argument, value in given.items():
        section, key = _PLACES[argument]
        if value is None:
            continue
        if key in tree.get(section, {}):
            raise InputError(f"{origin}: {argument} is given twice, as {argument}= and in {section}=; leave one out")
        tree.setdefault(section, {})[key] = plain(value, argument)
    return tree if method is None else {**tree, "method": method}


def _valid_arguments() -> list[str]:
    return [*_ARGUMENTS, *(section for section in Config.model_fields if section not in _ARGUMENTS)]


def class_path(kind: type[Any]) -> str:
    """Where a class is found again: "package.module:Class"."""
    if "<locals>" in kind.__qualname__:
        raise InputError(f"class {kind.__qualname__} is inside a function, where it cannot be found again; move it out")
    return f"{kind.__module__}:{kind.__qualname__}"


def plain(value: Any, where: str) -> Any:
    """A value as TOML has it: NumPy's numbers, paths and classes in plain form.

    Raises:
        InputError: it has no such form.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): plain(each, f"{where}.{key}") for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each, where) for each in value]
    if isinstance(value, type):
        return class_path(value)
    if isinstance(value, PathLike):
        return os.fspath(value)
    if isinstance(value, str | bool | int | float) or (value is None and where.count(".") < 2):
        return value  # None is a field that is not set; inside a field TOML could not say it
    kind = type(value).__name__
    raise InputError(f"{where} is a {kind}: a setting is text, a number, true or false, a list or a dictionary")


def call_text(arguments: Mapping[str, Any], *, framed: bool = False, origin: str = RUN) -> str:
    """The call as the report shows it."""
    texts = {name: repr(plain(value, name)) for name, value in arguments.items() if value is not None}
    if framed:
        texts["dataset"] = f"<DataFrame {texts['dataset']}>"
    return f"{origin}({', '.join(f'{name}={text}' for name, text in texts.items())})"
