"""Which reading of the FedEM paper comes nearest to its Tables 1 and 2? A search by closeness, that can be killed.

    FEDEM_DATA=... python -m benchmarks.fedem_published --folder FOLDER --minutes 60

What the paper leaves open is an axis with several values (`AXES`). A combination is measured by the cells of Table 2 on
each data set, under `paper`, 100 rounds, HR@10 of the best round by test, as the paper reports it; FedMF and FedEM of
Table 1 are two of these cells. Its distance is the mean |ΔHR@10| over all cells. The search begins with the presets and
goes along one axis after the other, keeping what came nearest, until nothing changes or the budget is spent.

A cell is trained once: settings that it does not look at (the adapter's in a cell without one) are left out of its key,
and FOLDER/cells.jsonl has every cell that is done, so that a search that was killed goes on. A combination is given up
as soon as the cells that it has are farther off than all cells of the best one; its distance is then a lower bound.

It does not look at: a summed loss (under Adam, which the paper names, the same as the mean), Adam's state kept over
rounds, and what the adapter of a scalar ρ looks at: none of them is an option.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from fedem_flwr.config import Tree, merge_trees, resolve
from fedem_flwr.engine.parts import Part
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.methods.fedem import FedEM
from fedem_flwr.methods.fedmf import FedMF
from fedem_flwr.nodes.host import SPLIT_FOLDER
from fedem_flwr.protocol.split import Split
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.report.selection import best_line
from fedem_flwr.runtime.inputs import check_method, split_into
from fedem_flwr.runtime.prepared import PreparedRun

HR = {  # Table 2, HR@10; FedMF and FedEM also in Table 1
    "ml-100k": {"fedem": 0.9958, "fedsim-dm": 0.9427, "fedsim": 0.6320, "fedsim-sm": 0.7190, "fedmf-sr": 0.4889},
    "filmtrust": {"fedem": 0.8932, "fedsim-dm": 0.8433, "fedsim": 0.7206, "fedsim-sm": 0.7774, "fedmf-sr": 0.6577},
}
_RELEASED = {"weights": "released", "similarity": "pca", "saturate": 0.9, "fraction": 0.1}
_LEARNED, _ALONE, _MERGED = ("fedem", "fedsim-dm"), "evaluated", "merged with what comes down"


class EvaluatedAlone(FedEM):
    """FedEM, whose users are scored with their own table as local training left it."""

    EVALUATED: ClassVar[Literal["merged", "local"]] = "local"


class FedMFAlone(FedMF):
    """The same of FedMF, whose clients keep the table that they have trained for that."""

    EVALUATED: ClassVar[Literal["merged", "local"]] = "local"

    def parts(self) -> Mapping[str, Part]:
        """Tables that are kept are replaced by what comes down before they are trained."""
        parts = super().parts()
        return {**parts, "items": replace(parts["items"], kept=True)}


@dataclass(frozen=True)
class Axis:
    """Something that the paper leaves open.

    Attributes:
        name: for tables. cells: methods of Table 2 that look at it. values: by name, the settings of each; the first is
            the presets'.
    """

    name: str
    values: Mapping[str, Tree]
    cells: tuple[str, ...] = tuple(HR["ml-100k"])


AXES = (  # those of few cells first
    Axis("ρ of SM", {"0.5": {}, **{f"{x}": {"merge": {"rho": x}} for x in (0.3, 0.7, 0.1)}}, ("fedsim-sm",)),
    Axis(_ALONE, {_MERGED: {}, "own table, before the server": {}}),
    Axis("schedule", {"one merge a round": {}, "in every batch": {"merge": {"schedule": "released"}}}, _LEARNED),
    Axis("initial deviation", {"1": {}, "0.1": {"model": {"init_std": 0.1}}, "0.01": {"model": {"init_std": 0.01}}}),
    Axis(
        "epochs of Eq. 11",
        {"presets' (10, DM 1)": {}, **{f"{x}": {"merge": {"epochs": x}} for x in (3, 10, 1, 30)}},
        _LEARNED,
    ),
    Axis("early stop", {"none": {}, "1e-4": {"local": {"early_stop": 1e-4}}}),
    Axis(
        "weights",
        {
            "Eq. 13": {},
            "not scaled by 1 + α": {"aggregate": {"weights": "released"}},
            "released": {"aggregate": _RELEASED},
        },
        ("fedem", "fedsim-dm", "fedsim", "fedsim-sm"),
    ),
    Axis(
        "first round",
        {"no merge": {}, "two random tables": {"method": {"options": {"first_merge": True}}}},
        (*_LEARNED, "fedsim-sm"),
    ),
)
Combination = dict[str, str]


@dataclass
class Search:
    """A search under way.

    Attributes:
        folder: of the splits and of the cells that are done. data: data sets. ends: on the monotonic clock.
        cells: HR@10 and NDCG@10 by key. distances: by combination, with whether it is of all cells.
    """

    folder: Path
    data: tuple[str, ...]
    rounds: int
    ends: float
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)
    distances: dict[str, tuple[float, bool]] = field(default_factory=dict)
    splits: dict[str, Split] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        done = self.folder / "cells.jsonl"
        for line in done.read_text().splitlines() if done.exists() else ():
            cell = json.loads(line)
            self.cells[cell["key"]] = cell

    def spent(self) -> bool:
        """Whether the budget is."""
        return time.monotonic() > self.ends

    def distance(self, one: Combination, worst: float) -> tuple[float, bool] | None:
        """Mean |ΔHR@10|, and whether of all cells; None where the budget ended first.

        Args:
            worst: give up where it cannot be below.
        """
        places = [(data, method) for method in HR[self.data[0]] for data in self.data]
        total = 0.0
        for data, method in places:
            cell = self.cell(data, method, one)
            if cell is None:
                return None
            total += abs(cell["hr"] - HR[data][method])
            if total / len(places) > worst:
                return total / len(places), False
        return total / len(places), True

    def cell(self, data: str, method: str, one: Combination) -> dict[str, Any] | None:
        """One run's figures, trained where it is not done."""
        tree: Tree = {"data": {"dataset": data, "protocol": "paper"}, "method": {"name": method}}
        for axis in AXES:
            if method in axis.cells:
                tree = merge_trees(tree, axis.values[one[axis.name]])
        if one[_ALONE] != _MERGED:
            kind = "FedMFAlone" if method == "fedmf-sr" else "EvaluatedAlone"
            tree["method"] |= {"base": method, "strategy": f"benchmarks.fedem_published:{kind}"}
        tree = merge_trees(tree, {"run": {"rounds": self.rounds, "threads": 1, "checkpoint_every": 10**6}})
        key = json.dumps(tree, sort_keys=True)
        if key not in self.cells and not self.spent():
            began = time.monotonic()
            figures = self._train(data, tree)
            found = {"key": key, **figures, "seconds": round(time.monotonic() - began, 1)}
            with open(self.folder / "cells.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(found, ensure_ascii=False) + "\n")
            self.cells[key] = found
            measured = f"{figures['hr']:.4f}/{figures['ndcg']:.4f} in round {figures['round']}"
            beside = f"published {HR[data][method]:.4f}; {found['seconds']:.0f} s"
            print(f"  {data} {method}: {measured}, {beside}", file=sys.stderr, flush=True)
        return self.cells.get(key)

    def _train(self, data: str, tree: Tree) -> dict[str, Any]:
        config = resolve({}, merge_trees(tree, {"evaluation": {"controls": False, "local_only": False}}), "a cell")
        if data not in self.splits:
            place = self.folder / f"split-{data}"
            self.splits[data] = Split.load(place) if place.exists() else split_into(place, config)
        check_method(config, self.splits[data].items)
        with tempfile.TemporaryDirectory(prefix=".cell-", dir=self.folder) as room:
            directory = RunDirectory(Path(room) / "run").create()
            (directory.path / SPLIT_FOLDER).symlink_to((self.folder / f"split-{data}").resolve())
            carry_out_rounds(PreparedRun.create(directory, config, self.splits[data], saved=True), lambda _: None)
            line = best_line(directory.read_metrics(), "best_test")
        test = line["test"]["sampled99"]
        return {"hr": test["hr@10"], "ndcg": test["ndcg@10"], "round": line["round"]}

    def go(self) -> tuple[Combination, float]:
        """Along one axis after the other, until nothing changes or the budget is spent."""
        best = {axis.name: next(iter(axis.values)) for axis in AXES}
        nearest = self._tried(best, float("inf"))
        before: Combination = {}
        while best != before and not self.spent():
            before = dict(best)
            for other in self._neighbours(before):
                changed = {**best, **other}
                found = self._tried(changed, nearest)
                if found < nearest:
                    best, nearest = changed, found
        return best, nearest

    def _neighbours(self, one: Combination) -> Iterator[Combination]:
        for axis in AXES:
            yield from ({axis.name: value} for value in axis.values if value != one[axis.name])

    def _tried(self, one: Combination, worst: float) -> float:
        name = said(one)
        if name not in self.distances:
            found = self.distance(one, worst)
            if found is None:
                return float("inf")
            self.distances[name] = found
            print(f"{'' if found[1] else 'at least '}{found[0]:.4f}: {name}", file=sys.stderr, flush=True)
        value, whole = self.distances[name]
        return value if whole else float("inf")


def said(one: Combination) -> str:
    """What a combination has that is not the presets'."""
    other = [f"{axis.name}: {one[axis.name]}" for axis in AXES if one[axis.name] != next(iter(axis.values))]
    return "; ".join(other) or "the presets"


def report(search: Search, best: Combination, nearest: float) -> str:
    """Markdown: all combinations, the cells of the nearest beside the paper's, and every run."""
    lines = [f"{len(search.distances)} combinations, {len(search.cells)} runs of {search.rounds} rounds", ""]
    lines += ["| mean ΔHR@10, absolute | combination |", "|---|---|"]
    for name, (value, whole) in sorted(search.distances.items(), key=lambda pair: pair[1]):
        lines.append(f"| {'' if whole else '≥ '}{value:.4f} | {name} |")
    if nearest < float("inf"):
        lines += ["", f"Nearest: {said(best)}", "", "| | measured | published | Δ |", "|---|---|---|---|"]
        for data in search.data:
            for method in HR[data]:
                if cell := search.cell(data, method, best):
                    there = HR[data][method]
                    row = f"{cell['hr']:.4f}/{cell['ndcg']:.4f} | {there:.4f} | {cell['hr'] - there:+.4f}"
                    lines.append(f"| {data}, {method} | {row} |")
    lines += ["", "| run | settings | HR@10 / NDCG@10 | published HR@10 |", "|---|---|---|---|"]
    for key, cell in search.cells.items():
        tree = json.loads(key)
        data, method = tree.pop("data")["dataset"], tree["method"].pop("name")
        settings = {name: section for name, section in tree.items() if section and name != "run"}
        row = f"{json.dumps(settings, ensure_ascii=False)} | {cell['hr']:.4f}/{cell['ndcg']:.4f}"
        lines.append(f"| {data}, {method} | {row} | {HR[data][method]:.4f} |")
    return "\n".join(lines)


def main() -> None:
    """Search, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the search; one that is there goes on")
    parser.add_argument("--minutes", type=float, default=60, help="after which no run is begun")
    parser.add_argument("--data", nargs="+", default=["ml-100k", "filmtrust"], choices=sorted(HR))
    parser.add_argument("--rounds", type=int, default=100)
    args = parser.parse_args()
    search = Search(args.folder, tuple(args.data), args.rounds, time.monotonic() + 60 * args.minutes)
    best, nearest = search.go()
    text = report(search, best, nearest)
    (args.folder / "report.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
