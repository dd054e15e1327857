"""Seconds a round and peak memory of fedials at 10,000, 100,000 and 1,000,000 users, every user in every round.

    python -m benchmarks.scale [--users 10000 100000 1000000] [--rounds 4] [--evaluate]

Synthetic data, 10,000 items, 50 interactions a user on average, d = 32. Each size is a `fedem run` in a process of its
own, from the generator to the summary. The last line fits memory beyond that of an empty process, and time, to a power
of the number of users.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fedem_flwr.bench.statistics import exponent


def measure(users: int, rounds: int, folder: Path) -> dict[str, float]:
    """One run; seconds of a round are the median of all but the first."""
    settings = [
        f"data.synthetic.users={users}",
        "data.synthetic.items=10000",
        "data.synthetic.mean_interactions=50",
        "data.synthetic.clusters=100",
        "model.dim=32",
        "ials.ridge=0.003",
        "evaluation.controls=false",
        f"evaluation.every={rounds}",
        "fold_in.tune=false",
    ]
    out = folder / str(users)
    command = [sys.executable, "-m", "fedem_flwr.cli", "run", "--method", "fedials", "--rounds", str(rounds), "--out"]
    began = time.perf_counter()
    subprocess.run([*command, str(out), *(word for s in settings for word in ("--set", s))], check=True)
    whole = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024  # the largest child so far: sizes ascend
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        "users": users,
        "round": statistics.median(line["seconds"] for line in lines[1:-1]),
        "last": lines[-1]["seconds"],
        "whole": whole,
        "peak": peak,
        "ndcg": lines[-1]["test"]["ndcg@10"],
    }


def main() -> None:
    """Print a table and the exponents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="fedem-scale-") as folder:
        for users in sorted(args.users):
            rows.append(measure(users, args.rounds, Path(folder)))
            print(rows[-1], flush=True)
    print("\n| users | seconds a round | last round, with evaluation | whole run | peak RSS |")
    print("|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['users']:,.0f} | {row['round']:.2f} | {row['last']:.1f} | {row['whole']:.0f} s "
            f"| {row['peak'] / 2**30:.2f} GiB |"
        )
    if len(rows) > 1:
        sizes, base = [row["users"] for row in rows], 0.95 * min(row["peak"] for row in rows)
        slope = exponent(sizes, [row["round"] for row in rows])
        growth = exponent(sizes, [row["peak"] for row in rows])
        beyond = exponent(sizes[1:], [row["peak"] - base for row in rows[1:]]) if len(rows) > 2 else growth
        print(f"\nexponents: time {slope:.2f}, peak memory {growth:.2f} (beyond the smallest run's: {beyond:.2f})")


if __name__ == "__main__":
    main()
