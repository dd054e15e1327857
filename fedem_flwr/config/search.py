"""What `fedem tune` looks for: the settings of a method that have a range beside them, and are not given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic.fields import FieldInfo

from fedem_flwr.config.registry import find, is_method
from fedem_flwr.config.resolved import Config, Tree, merge_trees
from fedem_flwr.config.section import Search
from fedem_flwr.errors import InputError

OPTIONS = "method.options."
_MERGING = ("merge.lr", "merge.rho")  # of every method whose clients merge
_ACTS: Mapping[str, Callable[[Config], bool]] = {
    "merge.lr": lambda config: config.merge.mode in ("scalar", "elastic"),
    "merge.rho": lambda config: config.merge.mode == "static",
    "aggregate.alpha": lambda config: (
        config.merge.mode != "none" and config.aggregate.weights in ("eq13", "released", "cvxpy")
    ),
    "order.lr": lambda config: config.order.rounds > 0,
    "order.dropout": lambda config: config.order.rounds > 0,
    "group_tables.ridge": lambda config: config.group_tables.merge != "none",
    "local.ridge": lambda config: (
        config.merge.mode not in ("scalar", "elastic")
        and not (config.merge.mode == "static" and config.merge.schedule == "released")
    ),
}
"""Settings that nothing looks at under some configurations: there they are not looked for.

Nor is a weight decay that passes merged rows, which compiled functions do not know: its trials would take many times
as long as others, of the same budget.
"""


@dataclass(frozen=True)
class Range:
    """One dimension of a space.

    Attributes:
        path: of the setting. low, high, log: see `config.section.Search`; wide enough for the preset.
        whole: whether only whole numbers will do.
        preset: what the method takes where nothing is said.
    """

    path: str
    low: float
    high: float
    log: bool
    whole: bool
    preset: float


def ranges_of(config: Config) -> list[Range]:
    """Every setting that acts on the configuration's method and has a range: those it names, its own options, merging.

    Whether one acts is asked of this configuration: one whose merging is given is another.
    """
    kind = find("strategies", config.method.strategy)
    if not is_method(kind):
        return []
    own = [OPTIONS + name for name, field in kind.Options.model_fields.items() if _search(field)]
    asked = dict.fromkeys([*kind.TUNES, *own, *_MERGING])
    return [_range(config, path) for path in asked if path not in _ACTS or _ACTS[path](config)]


def space_of(config: Config, given: Mapping[str, Any]) -> list[Range]:
    """Those that nobody has set.

    Args:
        given: the tree that was asked for.

    Raises:
        InputError: there is none.
    """
    known, set_ = ranges_of(config), set(paths(given))
    space = [each for each in known if each.path not in set_]
    if not space:
        why = "all of them are set" if known else "it has no setting with a range"
        raise InputError(f"nothing to tune of {config.method.name}: {why}")
    return space


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a tree under their dotted names, sections without any among them."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def paths(tree: Mapping[str, Any]) -> Iterator[str]:
    """Dotted names of the values of a tree."""
    return (path for path, value in leaves(tree) if not isinstance(value, Mapping))


def tree_of(values: Mapping[str, float]) -> Tree:
    """A tree from dotted names."""
    found: Tree = {}
    for path, value in values.items():
        inner: Any = value
        for part in reversed(path.split(".")):
            inner = {part: inner}
        found = merge_trees(found, inner)
    return found


def _range(config: Config, path: str) -> Range:
    section, _, name = path.rpartition(".")
    place: Any = config
    for part in section.split("."):
        place = getattr(place, part)
    field, preset = type(place).model_fields[name], float(getattr(place, name))
    search = _search(field)
    if search is None:
        raise InputError(f"{path} has no range: give its field one, as Annotated[float, Search(low, high)]")
    wide = replace(search, low=min(search.low, preset), high=max(search.high, preset))
    log = wide.log and wide.low > 0
    return Range(path, wide.low, wide.high, log, field.annotation is int, preset)


def _search(field: FieldInfo) -> Search | None:
    return next((rule for rule in field.metadata if isinstance(rule, Search)), None)
