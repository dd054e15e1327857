"""FedEM at 20,000, 100,000 and 1,000,000 users × 10,000 items, 1 % of them a round, where clients keep trained rows.

    python -m benchmarks.touched [--users 20000 100000 1000000] [--rounds 3]

Synthetic data, 30 interactions a user on average, d = 16, `merge.table = "touched"`, 20,000 users a node. Each size is
a `fedem run` in a process of its own, from the generator to the summary; the rounds of a size are few, so that a user
seldom trains twice. Beside what was measured stand the bytes that whole tables of all users would take.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ITEMS, DIM = 10_000, 16


def measure(users: int, rounds: int, folder: Path) -> dict[str, float]:
    """One run; seconds of a round are the median of all but the last, which evaluates everybody."""
    settings = [
        f"data.synthetic.users={users}",
        f"data.synthetic.items={ITEMS}",
        "data.synthetic.mean_interactions=30",
        "data.synthetic.clusters=100",
        f"model.dim={DIM}",
        "merge.table=touched",
        "run.participants=0.01",
        "run.users_per_node=20000",
        f"run.checkpoint_every={rounds}",
        f"evaluation.every={rounds}",
        "evaluation.controls=false",
        "evaluation.local_only=false",
    ]
    out = folder / str(users)
    command = [sys.executable, "-m", "fedem_flwr.cli", "run", "--method", "fedem", "--rounds", str(rounds), "--out"]
    words = [str(out), "--dataset", "synthetic", *(word for s in settings for word in ("--set", s))]
    began = time.perf_counter()
    subprocess.run([*command, *words], check=True)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        "users": users,
        "participants": lines[0]["participants"],
        "first": lines[0]["seconds"],
        "round": statistics.median(line["seconds"] for line in lines[1:-1] or lines),
        "last": lines[-1]["seconds"],
        "whole": time.perf_counter() - began,
        "peak": spent.ru_maxrss * 1024,  # the largest child so far: sizes ascend
        "up": lines[-1]["node_bytes_up"],
        "down": lines[-1]["node_bytes_down"],
        "tables": users * ITEMS * DIM * 4,
    }


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, nargs="+", default=[20_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="fedem-touched-") as folder:
        for users in sorted(args.users):
            rows.append(measure(users, args.rounds, Path(folder)))
            print(rows[-1], f"load {os.getloadavg()[0]:.1f}", flush=True)
    print(
        "\n| users | trained a round | first round | a round | last | whole run | peak RSS | whole tables would take |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['users']:,.0f} | {row['participants']:,.0f} | {row['first']:.1f} s | {row['round']:.1f} s "
            f"| {row['last']:.1f} s | {row['whole']:.0f} s | {row['peak'] / 2**30:.2f} GiB "
            f"| {row['tables'] / 2**30:,.0f} GiB |"
        )


if __name__ == "__main__":
    main()
