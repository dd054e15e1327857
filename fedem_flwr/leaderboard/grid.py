"""What was asked for, as cells: one run for each method, data set, protocol and seed, resolved and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from fedem_flwr.config import Config, Tree, merge_trees
from fedem_flwr.config.resolved import method_names
from fedem_flwr.data import KNOWN_DATASETS, SYNTHETIC
from fedem_flwr.data.opening import stem
from fedem_flwr.errors import InputError, suggest
from fedem_flwr.experiment.plan import GRID, SHARED_SECTIONS, plan
from fedem_flwr.protocol.split import Protocol


@dataclass(frozen=True, order=True)
class Name:
    """What a cell is called: no two of a grid have the same."""

    dataset: str
    protocol: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.method} on {self.dataset}, {self.protocol}, seed {self.seed}"


@dataclass(frozen=True)
class Cell:
    """One run of a grid, resolved and checked; nothing has been read or written yet.

    Attributes:
        given: see `experiment.plan.Experiment`.
    """

    name: Name
    config: Config
    given: frozenset[str]


@dataclass(frozen=True)
class Axes:
    """The axes of a grid; what is empty, or None, is left to the experiment file, or the default."""

    methods: Sequence[str] = ()
    datasets: Sequence[str] = ()
    protocols: Sequence[str] = ()
    seeds: Sequence[int] | int | None = None

    @classmethod
    def of(cls, tree: Tree, origin: str) -> Axes:
        """Those of an experiment file: `methods`, `datasets`, `protocols` and `seeds`, a number or a list.

        Raises:
            InputError: they are of another form.
        """
        lists = {key: tree.get(key, []) for key in ("methods", "datasets", "protocols")}
        for key, values in lists.items():
            if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
                raise InputError(f"{origin}: {key} = {values!r}: write a list of names")
        seeds = tree.get("seeds")
        listed = seeds if isinstance(seeds, list) else [seeds]
        if seeds is not None and not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in listed):
            raise InputError(f"{origin}: seeds = {seeds!r}: write how many, or a list of them")
        return cls(**lists, seeds=seeds)

    def over(self, other: Axes) -> Axes:
        """These, and what they leave open as the other has it."""
        return Axes(
            self.methods or other.methods,
            self.datasets or other.datasets,
            self.protocols or other.protocols,
            other.seeds if self.seeds is None else self.seeds,
        )


def cells_of(tree: Tree, options: Tree, axes: Axes, *, origin: str) -> list[Cell]:
    """The cells of a grid, first one seed of everything.

    Args:
        tree: of an experiment file, whose `[variants.NAME]` hold for the methods of these names.
        options: for all cells, over everything.
        axes: what was asked for, over the file's.

    Raises:
        InputError: nothing to compare, names that are unknown (all of them are named), cells that collide, or a
            configuration that will not do.
    """
    axes = axes.over(Axes.of(tree, origin))
    data = merge_trees(tree.get("data", {}), options.get("data", {}))
    run = merge_trees(tree.get("run", {}), options.get("run", {}))
    single = [str(name)] if (name := tree.get("method", {}).get("name")) else []
    methods = list(axes.methods or single)
    datasets = list(axes.datasets or [data.get("dataset", SYNTHETIC)])
    protocols = list(axes.protocols or [data.get("protocol", "strict")])
    seeds = _seeds(run.get("seed", 0) if axes.seeds is None else axes.seeds, several=axes.seeds is not None)
    if not methods:
        raise InputError(
            f"{origin}: nothing to compare: name methods (--methods fedmf,fedials), an experiment, or finished runs"
        )
    variants = tree.get("variants", {})
    _refuse_unknown(methods, datasets, protocols, variants, origin)
    for kind, values in (("methods", methods), ("data sets", datasets), ("protocols", protocols), ("seeds", seeds)):
        _refuse_twice(kind, values, origin)
    file = {key: value for key, value in tree.items() if key not in GRID}
    foreign = sorted(set(file) - {*SHARED_SECTIONS, "variants", "methods"})
    if len(methods) > 1 and foreign:
        raise InputError(
            f"{origin}: [{foreign[0]}] in a grid of {len(methods)} methods: whose is it? Write "
            f"[variants.NAME.{foreign[0]}] for one of them, or --set {foreign[0]}.key=value for all"
        )
    file["methods"] = methods
    file["variants"] = {name: keys for name, keys in variants.items() if name in methods}
    found: list[Cell] = []
    for seed in seeds:
        for dataset in datasets:
            for protocol in protocols:
                here = {"data": {"dataset": dataset, "protocol": protocol}, "run": {"seed": seed}}
                asked = plan(file, merge_trees(options, here), origin=origin)
                found += [
                    Cell(Name(_label(dataset), protocol, config.method.name, seed), config, given)
                    for config, given in zip((asked.config, *asked.others), asked.given, strict=True)
                ]
    _refuse_collisions(found, origin)
    return found


def _seeds(asked: Any, *, several: bool) -> list[int]:
    """The seeds from 0, as many as asked for; or those that are listed."""
    if isinstance(asked, int) and several:
        if asked < 1:
            raise InputError(f"seeds = {asked}: write how many, from 1")
        return list(range(asked))
    listed = list(asked) if isinstance(asked, Sequence) else [asked]
    if not listed or min(listed) < 0:
        raise InputError(f"seeds = {listed}: seeds are whole numbers from 0")
    return listed


def _label(dataset: str) -> str:
    """What results call a data set; a file goes by its name without the ending, as its runs do."""
    return dataset if dataset in (*KNOWN_DATASETS, SYNTHETIC) else stem(Path(dataset))


def _refuse_unknown(
    methods: Sequence[str],
    datasets: Sequence[str],
    protocols: Sequence[str],
    variants: Mapping[str, Any],
    origin: str,
) -> None:
    """Name all that is unknown at once."""
    known = method_names()

    def based(name: str) -> str:
        section = variants.get(name, {}).get("method", {}) if isinstance(variants, Mapping) else {}
        return "" if section.get("strategy") and not section.get("base") else str(section.get("base", name))

    names = [*KNOWN_DATASETS, SYNTHETIC]
    wrong: dict[str, tuple[list[str], Iterable[str]]] = {
        "methods": ([name for name in map(based, methods) if name and ":" not in name and name not in known], known),
        "data sets": ([d for d in datasets if d not in names and not Path(d).expanduser().exists()], names),
        "protocols": ([p for p in protocols if p not in get_args(Protocol)], get_args(Protocol)),
    }
    said = [f"unknown {kind} {_told(found, valid)}" for kind, (found, valid) in wrong.items() if found]
    if said:
        raise InputError(f"{origin}: {'; '.join(said)}")


def _told(unknown: Sequence[str], valid: Iterable[str]) -> str:
    """Each with what may have been meant; what holds for several of them, such as all that is valid, stands once."""
    hints = [suggest(name, valid).removeprefix("; ") for name in unknown]
    last = [hint not in hints[place:] for place, hint in enumerate(hints, 1)]
    return ", ".join(
        f"'{name}' ({hint})" if here else f"'{name}'" for name, hint, here in zip(unknown, hints, last, strict=True)
    )


def _refuse_twice(kind: str, values: Sequence[Any], origin: str) -> None:
    twice = sorted({str(value) for at, value in enumerate(values) if value in values[:at]})
    if twice:
        raise InputError(f"{origin}: {kind} named twice: {', '.join(twice)}")


def _refuse_collisions(cells: Sequence[Cell], origin: str) -> None:
    """Two cells of one name would be one row of a table."""
    seen: dict[Name, Cell] = {}
    for cell in cells:
        other = seen.setdefault(cell.name, cell)
        if other is not cell:
            pairs = ((other.config.data.dataset, cell.config.data.dataset), ("one", "another"))
            files = pairs[0] if pairs[0][0] != pairs[0][1] else pairs[1]
            raise InputError(
                f"{origin}: two cells are both '{cell.name}' ({files[0]} and {files[1]}): rename a file, or give one "
                "of the methods another name ([variants.NAME] with method.base)"
            )
