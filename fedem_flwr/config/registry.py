"""Methods, Flower strategies and Flower clients by name. No list of them is kept anywhere.

A method is found as a file of the room `fedem_flwr/methods` (`fedials-order` is `fedials_order.py`), as an entry point
of another package,

    [project.entry-points."fedem_flwr.methods"]
    my-method = "my_package.module:MyMethod"

or by its dotted path, `my_package.module:MyMethod`. The entry-point groups `fedem_flwr.strategies` and
`fedem_flwr.clients` do the same for Flower strategies and clients of one's own. `flwr.NAME` is a stock strategy.
"""

from __future__ import annotations

import inspect
import sys
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Any, Literal

from fedem_flwr.errors import InputError, suggest
from fedem_flwr.rooms import FORMER

_PACKAGE = "fedem_flwr"
METHODS = "fedem_flwr.methods"  # the room; its files are imported when they are asked for
STOCK_PREFIX = "flwr."
CLIENTS = {"table": "fedem_flwr.clients.table:TableClient"}
_GROUPS = {"strategies": ("fedem_flwr.methods", "fedem_flwr.strategies"), "clients": ("fedem_flwr.clients",)}
_SINGULAR = {"strategies": "method or strategy", "clients": "client"}

Kind = Literal["strategies", "clients"]


def names(kind: Kind) -> list[str]:
    """All names that can be used now."""
    external = [name for group in _GROUPS[kind] for name in _external(group, tuple(sys.path))]
    return sorted({*(_files() if kind == "strategies" else CLIENTS), *external})


def find(kind: Kind, name: str) -> Any:
    """The class behind a name or a dotted path.

    Raises:
        InputError: unknown name, or a class that cannot be imported.
    """
    if ":" in name:
        return by_path(name, f"the {_SINGULAR[kind]} '{name}'")
    if kind == "strategies" and name.startswith(STOCK_PREFIX):
        return _stock_strategy(name.removeprefix(STOCK_PREFIX))
    if kind == "strategies" and name in _files():
        return _method_of(f"{METHODS}.{name.replace('-', '_')}")
    if kind == "clients" and name in CLIENTS:
        return by_path(CLIENTS[name])
    for group in _GROUPS[kind]:
        if value := _external(group, tuple(sys.path)).get(name):
            return by_path(value, f"the {_SINGULAR[kind]} '{name}' ({value})")
    raise InputError(f"unknown {_SINGULAR[kind]} '{name}'{suggest(name, names(kind))}")


def client_of(strategy: str, client: str) -> Any:
    """The Flower client's class: the method's own, or the one that is named for a Flower strategy.

    Raises:
        InputError: there is none.
    """
    if client:
        return find("clients", client)
    kind = find("strategies", strategy)
    if is_method(kind):
        return by_path(kind.CLIENT)
    if strategy.startswith(STOCK_PREFIX):
        return by_path(CLIENTS["table"])
    raise InputError(f"method.strategy = '{strategy}' is a Flower strategy: name its clients with method.client")


def is_method(kind: Any) -> bool:
    """Whether a class is a method in the sense of `fedem_flwr.contract`, and no Flower strategy."""
    return hasattr(kind, "STRATEGY") and hasattr(kind, "Options")


def by_path(path: str, called: str = "") -> Any:
    """The class at `package.module:Class`.

    Raises:
        InputError: it cannot be loaded, for whatever reason.
    """
    module, _, attribute = path.partition(":")
    try:
        if module.partition(".")[0] in FORMER:
            with suppress(ImportError, AttributeError):  # a package of somebody else's that is called so
                return _attribute(f"{_PACKAGE}.{module}", attribute)
        return _attribute(module, attribute)
    except InputError:
        raise
    except Exception as error:  # an extension's import can fail in any way
        raise InputError(f"{called or path} cannot be loaded: {error}") from error


def _attribute(module: str, attribute: str) -> Any:
    found = import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


@lru_cache(maxsize=8)
def _external(group: str, path: tuple[str, ...]) -> dict[str, str]:
    """Entry points of a group by name, read once: every message asks for its client, and they are in many files.

    Args:
        path: `sys.path`, on which they are looked for.
    """
    return {entry.name: entry.value for entry in reversed(tuple(entry_points(group=group)))}  # the first of a name


def _files() -> list[str]:
    return _files_in(tuple(import_module(METHODS).__path__))


@lru_cache(maxsize=8)
def _files_in(places: tuple[str, ...]) -> list[str]:
    """Names of the files of a room, read once, as every message asks for its client."""
    return sorted(entry.name.replace("_", "-") for entry in iter_modules(places) if not entry.ispkg)


@lru_cache(maxsize=64)
def _method_of(module: str) -> Any:
    here = [kind for kind in vars(import_module(module)).values() if inspect.isclass(kind) and is_method(kind)]
    own = [kind for kind in here if kind.__module__ == module and not kind.__name__.startswith("_")]
    if len(own) != 1:
        raise InputError(f"{module.replace('.', '/')}.py defines {len(own)} methods: a file holds one")
    return own[0]


def _stock_strategy(name: str) -> Any:
    module = import_module("flwr.serverapp.strategy")
    base = module.Strategy
    classes = {key: value for key, value in vars(module).items() if inspect.isclass(value)}
    strategies = {key for key, value in classes.items() if issubclass(value, base) and value is not base}
    if name not in strategies:
        raise InputError(f"Flower has no strategy '{name}'{suggest(name, strategies)}")
    return getattr(module, name)
