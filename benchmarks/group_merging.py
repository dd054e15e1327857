"""Does elastic merging help? Four settings of ρ on fedials and FedMF, with intervals over users.

    FEDEM_DATA=... python -m benchmarks.group_merging --data ml-100k --method fedials --method fedmf --seed 0 --seed 1

Every figure is a test figure of the last round's model under `strict`. A difference is to `none`: the method without
groups, after as many rounds that train its table, on the same users. The interval is a 95 % paired bootstrap over
users, each with its mean over the seeds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedem_flwr.config import merge_trees, resolve
from fedem_flwr.evaluation.bootstrap import paired_interval
from fedem_flwr.evaluation.lists import served
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.inputs import load_interactions, split_of
from fedem_flwr.runtime.prepared import PreparedRun
from fedem_flwr.serving.served import ServedModel

SETTINGS = ("none", "all", "client", "item")
HALF_LIVES = {"ml-100k": 6.0, "ml-1m": 5.0, "lastfm-2k": 10.0, "filmtrust": 0.0}
TABLE_ROUNDS = {"fedials": 10, "fedmf": 51}  # before there are groups
FIGURES = ("sampled99/ndcg@10", "full/ndcg@10")
Metrics = dict[str, np.ndarray]


def measure(data: str, method: str, merge: str, seed: int, options: dict[str, Any]) -> tuple[Metrics, dict[str, Any]]:
    """(n,) test metrics of each user, and what was fitted."""
    tree = {
        "data": {"dataset": data},
        "method": {"name": f"{method}-elastic"},
        "group_tables": {"merge": merge},
        "fold_in": {"tune": False, "half_life": HALF_LIVES.get(data, 8.0)},
        "run": {"seed": seed, "rounds": 1000, "checkpoint_every": 1000, "threads": 1},
        "evaluation": {"every": 1000, "controls": False, "local_only": False},
    }
    config = resolve({}, merge_trees(tree, options))
    settings = config.group_tables
    rounds = TABLE_ROUNDS[method] + 2 * settings.rounds  # that train the global table
    if merge != "none":
        rounds += settings.clustering + 1 + (settings.steps if merge == "item" else 0)
    config = config.changed("run", rounds=rounds)
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory(Path(folder) / "run").create()
        run = PreparedRun.create(directory, config, split_of(config, load_interactions(config)))
        outcome = carry_out_rounds(run, lambda _: None)
        found = served(run.split, ServedModel.open(run).scorers())
    shown: Any = outcome.diagnostics["group-tables"]
    return found.metrics, shown


def row(merge: str, found: Sequence[Metrics], base: Sequence[Metrics]) -> str:
    """A line of the table: means over seeds, a user at a time, and differences to `none`."""
    pooled, plain = (
        {name: np.mean([metrics[name] for metrics in each], axis=0) for name in each[0]} for each in (found, base)
    )
    cells = [merge]
    for figure in FIGURES:
        hits = figure.replace("ndcg", "hr")
        cells.append(f"{pooled[hits].mean():.4f} / {pooled[figure].mean():.4f}")
        interval = paired_interval(pooled[figure], plain[figure], seed=0)
        cells.append("" if merge == "none" else f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--method", action="append", choices=("fedials", "fedmf"), required=True)
    parser.add_argument("--seed", action="append", type=int, required=True)
    parser.add_argument("--set", action="append", default=[], help="SECTION.KEY=NUMBER, for all settings")
    args = parser.parse_args()
    options: dict[str, Any] = {}
    for given in args.set:
        key, _, value = given.partition("=")
        section, _, name = key.partition(".")
        options.setdefault(section, {})[name] = float(value) if "." in value else int(value)
    for data in args.data:
        for method in args.method:
            print(f"\n{method} on {data}, seeds {args.seed} {args.set or ''}\n")
            print("| ρ | HR@10 / NDCG@10, 99 negatives | NDCG − none | HR@10 / NDCG@10, catalogue | NDCG − none |")
            print("|---|---|---|---|---|", flush=True)
            base: list[Metrics] = []
            notes = []
            for merge in SETTINGS:
                began = time.perf_counter()
                results = [measure(data, method, merge, seed, options) for seed in args.seed]
                found = [metrics for metrics, _ in results]
                base = base or found
                print(row(merge, found, base), flush=True)
                rhos = [shown["rho"] for _, shown in results]
                notes.append(f"{merge}: common ρ {rhos}, {time.perf_counter() - began:.0f} s")
            print("\n" + "; ".join(notes), flush=True)


if __name__ == "__main__":
    main()
