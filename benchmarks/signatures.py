"""A networked round of this checkout and of another one, in turns: what signatures cost, say, against a commit before.

    git worktree add --detach /tmp/before COMMIT
    python -m benchmarks.signatures --other /tmp/before

Three nodes with TLS and node keys; `fedials` on the embedded data (small messages) and `fedem` on FilmTrust (every
user's table crosses, 131 MB a round each way). Seconds of a round are medians without the first; CPU seconds are of all
processes of a run, per round, which tells more on a machine that is busy with other things.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

CELLS = {"fedials": ("synthetic", 12), "fedem": ("filmtrust", 4)}  # method: data, rounds
ROOT = Path(__file__).resolve().parent.parent


def one(method: str) -> None:
    """One run of the checkout that Python finds first; prints its figures."""
    from benchmarks.fault_world import FaultWorld
    from benchmarks.network import config_of, networked, seconds_of

    logging.getLogger("flwr").setLevel(logging.ERROR)
    dataset, rounds = CELLS[method]
    config = config_of(dataset, method, rounds)
    if hasattr(config.run, "engine"):  # what both checkouts have: the engine is not what is compared
        config = config.model_copy(update={"run": config.run.model_copy(update={"engine": "torch"})})
    with tempfile.TemporaryDirectory(prefix="fedem-signatures-") as name:
        made = FaultWorld(Path(name) / "world", config, 3)
        made.relayed = False
        try:
            made.build()
            directory, crossed = networked(made, config, "run")
            seconds = seconds_of(directory)
            last = directory.read_metrics()[-1]["test"]["full"]["ndcg@10"]
        finally:
            made.close()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(one.ru_utime + one.ru_stime for one in used) / rounds
    print(json.dumps({"seconds": seconds, "cpu": cpu, "MB up": crossed["up"] / 1e6, "ndcg@10": last}))


def run_of(checkout: Path, method: str) -> dict[str, float]:
    """The figures of one run, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", str(Path(__file__).resolve()), "--one", method]
    done = subprocess.run(command, check=True, env=environment, cwd=checkout, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """A B A B."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path, help="a checkout of another commit")
    parser.add_argument("--method", choices=CELLS, action="append")
    parser.add_argument("--times", type=int, default=2)
    parser.add_argument("--one", choices=CELLS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(given.one)
        return
    if given.other is None:
        parser.error("name a checkout of another commit with --other")
    print(f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for method in given.method or CELLS:
        found: dict[str, list[dict[str, float]]] = {"other": [], "this": []}
        for _ in range(given.times):
            for name, checkout in (("other", given.other.resolve()), ("this", ROOT)):
                found[name].append(run_of(checkout, method))
                print(method, name, {key: round(value, 4) for key, value in found[name][-1].items()}, flush=True)
        for key in ("seconds", "cpu"):
            each = {name: median(run[key] for run in runs) for name, runs in found.items()}
            change = each["this"] / each["other"] - 1
            print(f"{method}, {key} a round: {each['other']:.2f} -> {each['this']:.2f} ({change:+.1%})")


if __name__ == "__main__":
    sys.exit(main())
