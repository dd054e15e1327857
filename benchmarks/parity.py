"""The same run on differently many nodes and runtimes: how far apart the clients' tables and the metrics are.

python -m benchmarks.parity --dataset filmtrust --method fedem-released --rounds 3 --users-per-node 0 7 1 --ray 0 7 1
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np

from fedem_flwr.cli.options import options_tree
from fedem_flwr.config import merge_trees, resolve
from fedem_flwr.contract.finding import method_of
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.nodes.host import NodeHost
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.checkpoint import Checkpoints
from fedem_flwr.runtime.inputs import adapted, load_interactions, split_of
from fedem_flwr.runtime.prepared import PreparedRun


@dataclass(frozen=True)
class Result:
    """What a run left: the clients' or the server's tables after the last round, its metrics and seconds."""

    name: str
    state: dict[str, np.ndarray]
    metrics: dict[str, float]
    seconds: float


def carry_out(
    dataset: str, method: str, rounds: int, runtime: str, users_per_node: int, protocol: str, settings: list[str]
) -> Result:
    """One run in a temporary directory."""
    options = {
        "data": {"dataset": dataset, "protocol": protocol},
        "method": {"name": method},
        "run": {"rounds": rounds, "runtime": runtime, "users_per_node": users_per_node},
    }
    config = resolve({}, merge_trees(options_tree({}, settings), options))
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory(Path(folder) / "run").create()
        split = split_of(config, load_interactions(config))
        run = PreparedRun.create(directory, adapted(config, split), split)
        began = time.perf_counter()
        carry_out_rounds(run, lambda _: None)
        seconds = time.perf_counter() - began
        merged = _server(directory) if method_of(config, split.items).stateless else _clients(run, rounds)
        last = directory.read_metrics()[-1]["test"]
    figures = {"hr@10": last["hr@10"], "ndcg@10": last["ndcg@10"], "sampled99": last["sampled99"]["hr@10"]}
    return Result(f"{runtime}, {users_per_node or 'all'} users a node", merged, figures, seconds)


def _clients(run: PreparedRun, rounds: int) -> dict[str, np.ndarray]:
    """What the clients keep: embeddings, tables and adapters."""
    host = NodeHost(run.directory.path, run.nodes)
    states = [host.cohort(node, rounds).state for node in range(run.nodes)]
    return {name: np.concatenate([state[name].cpu().numpy() for state in states]) for name in states[0]}


def _server(directory: RunDirectory) -> dict[str, np.ndarray]:
    """What the server keeps, where clients keep nothing."""
    point = Checkpoints(directory.checkpoint_dir).load()
    return {} if point is None else {name: x for name, x in point.arrays.items() if x.dtype.kind == "f"}


def main() -> None:
    """Print each run's largest difference to the first one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="filmtrust")
    parser.add_argument("--method", default="fedem-released")
    parser.add_argument("--protocol", default="strict")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--users-per-node", type=int, nargs="*", default=[0, 7, 1])
    parser.add_argument("--ray", type=int, nargs="*", default=[0, 7, 1])
    parser.add_argument("--set", dest="settings", action="append", default=[], help="section.key=value")
    args = parser.parse_args()
    wanted = [("inprocess", k) for k in args.users_per_node] + [("ray", k) for k in args.ray]
    first: Result | None = None
    print(f"{date.today()}: {args.method} on {args.dataset}, protocol {args.protocol}, {args.rounds} rounds")
    for runtime, k in wanted:
        result = carry_out(args.dataset, args.method, args.rounds, runtime, k, args.protocol, args.settings)
        first = first or result
        apart = {n: float(np.abs(result.state[n] - first.state[n]).max()) for n in first.state}
        apart_text = ", ".join(f"{name} {value:.1e}" for name, value in apart.items())
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
        print(f"{result.name}: largest difference {apart_text}; {metrics}; {result.seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
