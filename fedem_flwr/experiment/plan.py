"""What was asked for, resolved and checked: an experiment file, options over it, and methods beside the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedem_flwr.config import Config, Tree, merge_trees, resolve
from fedem_flwr.config.registry import find
from fedem_flwr.config.search import paths
from fedem_flwr.errors import InputError, suggest
from fedem_flwr.experiment.rounds import check_run
from fedem_flwr.protocol.shards import Federation

SHARED_SECTIONS = (
    "data",
    "run",
    "evaluation",
    "temporal",
    "tracking",
)  # of an experiment file, that hold for the runs beside it too
GRID = ("datasets", "protocols", "seeds")  # what makes it a grid of runs beside its methods


@dataclass(frozen=True)
class Experiment:
    """What was asked for, resolved and checked; nothing has been read or written yet.

    Attributes:
        config: of the run.
        others: of the runs beside it, on the same split.
        given: dotted names of the settings that were asked for, of the run and of each beside it, which stay as they
            are whatever the data are.
        federation: what is known of data that are on nodes elsewhere.
    """

    config: Config
    others: tuple[Config, ...]
    given: tuple[frozenset[str], ...]
    federation: Federation | None = None


def plan(
    tree: Tree, options: Tree, against: Sequence[Tree] = (), *, origin: str, federation: Federation | None = None
) -> Experiment:
    """Resolve what was asked for, and find out whether it can be carried out here.

    Args:
        tree: of an experiment file; its `methods` are one method and those beside it, and `variants` what belongs to
            one of these names alone.
        options: laid over it.
        against: a `[method]` section for each run beside it.
        origin: what errors call the source.

    Raises:
        InputError: a value, a method, a device or a network that will not do.
    """
    options = _over(federation, options)
    tree = dict(tree)
    if grid := sorted(set(GRID) & set(tree)):
        raise InputError(f"{origin}: '{grid[0]}' makes it a grid of runs: carry it out with `fedem compare {origin}`")
    named = tree.pop("methods", None)
    methods = [] if named is None else named
    if not isinstance(methods, list) or not all(isinstance(name, str) for name in methods):
        raise InputError(f"{origin}: methods = {methods!r}: write a list of method names")
    if named == []:
        raise InputError(f"{origin}: methods = [] names no method: name one or more, or leave it out for the default")
    variants = _variants(tree.pop("variants", {}), methods, origin)
    if methods and "name" not in options.get("method", {}):
        options = merge_trees(options, {"method": {"name": methods[0]}})
        against = [*({"name": name} for name in methods[1:]), *against]
    own = merge_trees(tree, variants.get(options.get("method", {}).get("name"), {}))
    config = resolve(own, options, origin)
    each_once = [section for at, section in enumerate(against) if section not in against[:at]]
    shared = {section: keys for section, keys in tree.items() if section in SHARED_SECTIONS}
    common = {section: keys for section, keys in options.items() if section != "method"}
    beside = [merge_trees(shared, variants.get(section.get("name"), {})) for section in each_once]
    others = [
        resolve(other, merge_trees(common, {"method": section}), origin)
        for other, section in zip(beside, each_once, strict=True)
    ]
    _check_names([other.method.name for other in others])
    for each in (config, *others):  # before anything is read or written
        check_run(each)
    given = tuple(frozenset(paths(merge_trees(each, options))) for each in (own, *beside))
    check_search((config, *others), frozenset().union(*given))
    return Experiment(config, tuple(others), given, federation)


def check_search(configs: Sequence[Config], given: frozenset[str]) -> None:
    """Find out whether settings of the search inside a run are given to runs of which none searches.

    Args:
        given: dotted names of the settings that were asked for; the first configuration's method may be among them.

    Raises:
        InputError: they are.
    """
    asked = sorted(name for name in given if name.startswith("search.") and name != "search.presets")
    if not asked or any(getattr(find("strategies", one.method.strategy), "SEARCHES", False) for one in configs):
        return
    name, data = configs[0].method.name, configs[0].data.dataset
    named = {"method.name", "method.strategy"} & given
    why, way = ("", "") if named else (f", as {data} comes with settings", " or --set search.presets=false")
    raise InputError(
        f"{asked[0]} is of the search for settings inside a run of auto, and this run is of {name}{why}: add --method "
        f"auto{way}, or leave {asked[0]} out"
    )


def _variants(given: object, methods: Sequence[str], origin: str) -> Mapping[str | None, Tree]:
    """Sections by the name of the method that they are of: `[variants.NAME.SECTION]` of an experiment file.

    Raises:
        InputError: they are no sections, or of a method that is not run.
    """
    if not isinstance(given, Mapping) or not all(isinstance(tree, Mapping) for tree in given.values()):
        raise InputError(f"{origin}: variants = {given!r}: write sections, [variants.NAME.SECTION]")
    for name in given:
        if name not in methods:
            raise InputError(f"{origin}: [variants.{name}]: methods does not name it{suggest(name, methods)}")
    return dict(given)


def _check_names(names: Sequence[str]) -> None:
    twice = [name for at, name in enumerate(names) if name in names[:at]]
    if twice:
        raise InputError(f"two methods beside the run are called '{twice[0]}': give one another name (method.name)")


def _over(known: Federation | None, options: Tree) -> Tree:
    """Options for a run over data that are on nodes elsewhere: what these data are is given.

    Raises:
        InputError: other data were asked for, or nodes elsewhere without a word of what they hold.
    """
    elsewhere = options.get("network", {}).get("superlink")
    if known is None:
        if elsewhere:
            raise InputError("--superlink: say what its nodes hold, with --federation (`fedem data shard` writes it)")
        return options
    if not elsewhere:
        raise InputError("--federation describes nodes elsewhere: name their SuperLink with --superlink host:port")
    facts = known.facts
    for key in ("dataset", "protocol"):
        asked = options.get("data", {}).get(key)
        if asked not in (None, getattr(facts, key)):
            raise InputError(f"--{key} {asked}: the nodes hold {getattr(facts, key)}; leave it out")
    given = {"data": {"dataset": facts.dataset, "protocol": facts.protocol}, "run": {"seed": facts.seed}}
    return merge_trees(given, options)
