"""Strategies and clients by name: the built-in ones, and those that other packages register as entry points.

A package adds a strategy with

    [project.entry-points."fedem_flwr.strategies"]
    my-strategy = "my_package.module:MyStrategy"

and names it in a configuration's `[method] strategy`. `flwr.NAME` is a stock strategy of Flower.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Literal

from fedem_flwr.errors import InputError, suggest

BUILT_IN = {
    "strategies": {
        "fedem": "strategies.fedem:FedEM",
        "fedmf": "strategies.fedmf:FedMF",
        "fedials": "strategies.fedials:Fedials",
        "fedials-order": "strategies.fedials_order:FedialsOrder",
        "fedials-elastic": "strategies.elastic:ElasticFedials",
        "fedmf-elastic": "strategies.elastic:ElasticFedMF",
    },
    "clients": {
        "cohort": "clients.cohort:CohortClient",
        "table": "clients.table:TableClient",
        "fedials": "clients.fedials:FedialsClient",
        "fedials-order": "clients.fedials_order:FedialsOrderClient",
        "fedials-elastic": "clients.elastic:ElasticFedialsClient",
        "fedmf-elastic": "clients.elastic:ElasticFedMFClient",
    },
}
STOCK_PREFIX = "flwr."
_SINGULAR = {"strategies": "strategy", "clients": "client"}


def names(kind: Literal["strategies", "clients"]) -> list[str]:
    """All names that can be used now."""
    return sorted({*BUILT_IN[kind], *(e.name for e in entry_points(group=f"fedem_flwr.{kind}"))})


def find(kind: Literal["strategies", "clients"], name: str) -> Any:
    """The class behind a name.

    Raises:
        InputError: unknown name, or a registered class that cannot be imported.
    """
    if kind == "strategies" and name.startswith(STOCK_PREFIX):
        return _stock_strategy(name.removeprefix(STOCK_PREFIX))
    if name in BUILT_IN[kind]:
        module, _, attribute = BUILT_IN[kind][name].partition(":")
        return getattr(import_module(module), attribute)
    for entry in entry_points(group=f"fedem_flwr.{kind}", name=name):
        try:
            return entry.load()
        except Exception as error:  # an extension's import can fail in any way
            raise InputError(f"the {_SINGULAR[kind]} '{name}' ({entry.value}) cannot be loaded: {error}") from error
    raise InputError(f"unknown {_SINGULAR[kind]} '{name}'{suggest(name, names(kind))}")


def _stock_strategy(name: str) -> Any:
    module = import_module("flwr.serverapp.strategy")
    base = module.Strategy
    classes = {key: value for key, value in vars(module).items() if inspect.isclass(value)}
    strategies = {key for key, value in classes.items() if issubclass(value, base) and value is not base}
    if name not in strategies:
        raise InputError(f"Flower has no strategy '{name}'{suggest(name, strategies)}")
    return getattr(module, name)
