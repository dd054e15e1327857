"""FedEM at 20,000, 100,000 and 1,000,000 users × 10,000 items, 1 % of them a round, where clients keep trained rows.

    python -m benchmarks.touched [--users 20000 100000 1000000] [--rounds 3]

Synthetic data, 30 interactions a user on average, d = 16, `merge.table = "touched"`, 20,000 users a node. Each size is
a `fedem run` in a process of its own, which is stopped after so many rounds: evaluating everybody at the end would take
longer than they do, and is `benchmarks.scale`'s matter. Rounds evaluate nobody. Seconds of processors are the process's
own, so that other work on the machine counts less. Beside them: the bytes that whole tables of all users would take.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ITEMS, DIM = 10_000, 16
_NEVER = 1000


def measure(users: int, rounds: int, folder: Path) -> dict[str, float]:
    """One run. Of its rounds, the first compiles or loads functions; the others' median is taken."""
    settings = [
        f"data.synthetic.users={users}",
        f"data.synthetic.items={ITEMS}",
        "data.synthetic.mean_interactions=30",
        "data.synthetic.clusters=100",
        f"model.dim={DIM}",
        "merge.table=touched",
        "run.participants=0.01",
        "run.users_per_node=20000",
        f"run.checkpoint_every={_NEVER}",
        f"evaluation.every={_NEVER}",
        "evaluation.controls=false",
        "evaluation.local_only=false",
    ]
    out = folder / str(users)
    command = [sys.executable, "-m", "fedem_flwr.cli", "run", "--method", "fedem", "--rounds", str(_NEVER), "--out"]
    words = [str(out), "--dataset", "synthetic", *(word for s in settings for word in ("--set", s))]
    began, spent = time.perf_counter(), list[float]()
    process = subprocess.Popen([*command, *words])
    while len(spent) < rounds and process.poll() is None:
        time.sleep(0.2)
        done = len((out / "metrics.jsonl").read_text().splitlines()) if (out / "metrics.jsonl").exists() else 0
        spent += [processor_seconds(process.pid)] * (done - len(spent))
    peak = peak_bytes(process.pid)
    process.kill()  # it would keep a checkpoint first
    process.wait()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][:rounds]
    return {
        "users": users,
        "participants": lines[0]["participants"],
        "first": lines[0]["seconds"],
        "round": statistics.median(line["seconds"] for line in lines[1:]),
        "processor": statistics.median(b - a for a, b in itertools.pairwise(spent)),
        "before": spent[0],
        "whole": time.perf_counter() - began,
        "peak": peak,
        "up": lines[-1]["node_bytes_up"],
        "down": lines[-1]["node_bytes_down"],
        "tables": users * ITEMS * DIM * 4,
    }


def processor_seconds(pid: int) -> float:
    """What a process has spent so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_bytes(pid: int) -> int:
    """The most memory that a process has held so far, files that it maps included."""
    told = Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0]
    return int(told) << 10


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
    print("\n| users | trained a round | a round | processor | first round | up, down a round | peak | whole tables |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['users']:,.0f} | {row['participants']:,.0f} | {row['round']:.1f} s | {row['processor']:.1f} s "
            f"| {row['first']:.1f} s | {row['up'] / 1e6:,.1f} MB, {row['down'] / 1e6:,.1f} MB "
            f"| {row['peak'] / 2**30:.2f} GiB | {row['tables'] / 2**30:,.0f} GiB |"
        )


if __name__ == "__main__":
    main()
