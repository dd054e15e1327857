"""Networked processes against one process, warm nodes against Flower's own, and fifty nodes at one SuperLink.

Four nodes with FilmTrust's shards, TLS and node keys: is the result the same? Seconds a round with Flower's nodes and
with ours. Memory of a node, and whether all of them are served:

    python -m benchmarks.network equal | stock | many --nodes 50
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.fault_world import FaultWorld
from fedem_flwr.config import Config, resolve
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.network import server as network_server
from fedem_flwr.network.processes import Child, free_port
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.checkpoint import Checkpoints
from fedem_flwr.runtime.inputs import load_interactions, split_of
from fedem_flwr.runtime.prepared import PreparedRun

METHODS = ("fedem", "fedials")


def config_of(dataset: str, method: str, rounds: int, **synthetic: int) -> Config:
    """A run without controls."""
    data: dict[str, Any] = {"dataset": dataset, **({"synthetic": synthetic} if synthetic else {})}
    run = {"rounds": rounds, "round_timeout": 600.0, "threads": 1}
    evaluation = {"controls": False, "local_only": False}
    return resolve({}, {"data": data, "method": {"name": method}, "run": run, "evaluation": evaluation})


@dataclass
class StockWorld(FaultWorld):
    """Flower's own SuperNodes, which start a process for every message."""

    def child(self, node: int) -> Child:
        """`flower-supernode`."""
        own = super().child(node)
        folder, name = self.folder, f"node-{node}"
        told = {
            "shard": folder / "shards" / name,
            "state": folder / "state" / name,
            "server-key": folder / "certs/server.pub",
            "node-key": folder / "certs" / "nodes" / f"{name}.key",
        }
        words = [*(f'{key}="{value}"' for key, value in told.items()), "threads=1", "open-control=true"]
        command = ["flower-supernode", "--superlink", self.address.place, "--port", str(free_port())]
        command += ["--root-certificates", str(folder / "certs" / "ca.crt")]
        command += ["--auth-supernode-private-key", str(folder / "certs" / "nodes" / f"{name}.key")]
        command += ["--node-config", " ".join(words)]
        return Child(name, command, own.log, {"FLWR_HOME": str(folder / f"flower-{name}"), "OMP_NUM_THREADS": "1"})


@contextmanager
def world(kind: type[FaultWorld], config: Config, nodes: int) -> Iterator[FaultWorld]:
    """A federation, for a while."""
    with tempfile.TemporaryDirectory(prefix="fedem-network-") as name:
        made = kind(Path(name) / "world", config, nodes)
        made.relayed = False
        try:
            made.build()
            yield made
        finally:
            made.close()


def networked(made: FaultWorld, config: Config, name: str) -> tuple[RunDirectory, dict[str, float]]:
    """A run; its directory, and what really crossed between server and SuperLink."""
    directory = made.prepare(made.folder.parent / name, config)
    links: list[Any] = []
    kind = network_server.ServerLink

    class Counted(kind):  # type: ignore[misc, valid-type]
        def __init__(self, *given: Any, **rest: Any) -> None:
            super().__init__(*given, **rest)
            links.append(self)

    network_server.ServerLink = Counted  # type: ignore[misc]
    try:
        made.serve(directory)
    finally:
        network_server.ServerLink = kind  # type: ignore[misc]
    rounds = config.run.rounds
    return directory, {"up": links[0].bytes_up / rounds, "down": links[0].bytes_down / rounds}


def seconds_of(directory: RunDirectory) -> float:
    """Median of the rounds after the first."""
    return median(line["seconds"] for line in directory.read_metrics()[1:])


def equal(given: argparse.Namespace) -> None:
    """The same run over the network and in one process."""
    print(
        "| method | largest gap of any metric | of tables | seconds a round, network | one process | MB up | MB down |"
    )
    print("|---|---|---|---|---|---|---|")
    with world(FaultWorld, config_of("filmtrust", "fedem", 1), 4) as made:
        for method in METHODS:
            config = config_of("filmtrust", method, 10)
            there, crossed = networked(made, config, method)
            split = split_of(config, load_interactions(config))
            same = config.changed("run", users_per_node=-(-split.users // 4))
            run = PreparedRun.create(RunDirectory(made.folder.parent / f"{method}-here").create(), same, split)
            carry_out_rounds(run, lambda _: None)
            gap = max(
                abs(a[part][list_][metric] - b[part][list_][metric])
                for a, b in zip(there.read_metrics(), run.directory.read_metrics(), strict=True)
                for part in ("validation", "test")
                for list_ in ("full", "sampled99")
                for metric in ("hr@10", "ndcg@10")
            )
            points = [Checkpoints(one.checkpoint_dir).load() for one in (there, run.directory)]
            assert points[0] is not None and points[1] is not None
            name = "table" if "table" in points[0].arrays else "items"
            tables = float(np.abs(points[0].arrays[name] - points[1].arrays[name]).max())
            seconds = [seconds_of(one) for one in (there, run.directory)]
            sizes = f"{crossed['up'] / 1e6:.2f} | {crossed['down'] / 1e6:.2f}"
            print(
                f"| {method} | {gap:.1e} | {tables:.1e} | {seconds[0]:.2f} | {seconds[1]:.2f} | {sizes} |", flush=True
            )


def stock(given: argparse.Namespace) -> None:
    """A B A B: Flower's SuperNodes and ours, four of each, small tables."""
    config = config_of("synthetic", "fedials", 6)
    taken: dict[str, list[float]] = {"flower-supernode": [], "fedem deploy node": []}
    kinds = {"flower-supernode": StockWorld, "fedem deploy node": FaultWorld}
    for repeat in range(given.times):
        for name, kind in kinds.items():
            with world(kind, config, 4) as made:
                directory, _ = networked(made, config, f"run-{repeat}")
                assert all(line["evaluated_users"] == 600 for line in directory.read_metrics())
                taken[name].append(seconds_of(directory))
                print(name, f"{taken[name][-1]:.2f} s a round", flush=True)
    print({name: f"{median(values):.2f} s a round" for name, values in taken.items()})


def memory_of(pid: int) -> dict[str, float]:
    """Resident and proportional memory, in MB."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        with suppress(ValueError, IndexError):
            name, size = line.split()[:2]
            found[name.rstrip(":")] = int(size) / 1000
    return found


def many(given: argparse.Namespace) -> None:
    """Many light nodes at one SuperLink."""
    config = config_of("synthetic", "fedials", 5, users=20 * given.nodes, items=400, mean_interactions=20)
    config = config.changed("network", join_timeout=600.0)
    began = time.monotonic()
    with world(FaultWorld, config, given.nodes) as made:
        directory, crossed = networked(made, config, "run")
        lines = directory.read_metrics()
        nodes = [memory_of(child.pid) for child in made.children]
        assert made.superlink is not None
        link = memory_of(made.superlink.pid)
        report = {
            "nodes": given.nodes,
            "rounds": len(lines),
            "served": [line["evaluated_users"] for line in lines],
            "users": 20 * given.nodes,
            "seconds a round": [round(line["seconds"], 2) for line in lines],
            "node resident MB": round(median(one["Rss"] for one in nodes), 1),
            "node proportional MB": round(median(one["Pss"] for one in nodes), 1),
            "node private MB": round(median(one["Private_Dirty"] + one["Private_Clean"] for one in nodes), 1),
            "SuperLink resident MB": round(link["Rss"], 1),
            "kB up a node and round": round(crossed["up"] / given.nodes / 1e3, 1),
            "seconds in all": round(time.monotonic() - began, 1),
        }
        print(json.dumps(report, indent=1))


def main() -> None:
    """One of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["equal", "stock", "many"])
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--times", type=int, default=2)
    given = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    print(f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    {"equal": equal, "stock": stock, "many": many}[given.what](given)


if __name__ == "__main__":
    sys.exit(main())
