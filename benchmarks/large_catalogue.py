"""Peak memory and processor time of `fedials-order` on a catalogue of 100,000 items: table, sparse map, encoder.

    python -m benchmarks.large_catalogue [--items 100000] [--users 4000] [--interactions 100] [--most-gib 8]

A `fedem run` on synthetic data in a process of its own, with few rounds: peak memory does not grow with them. It fails
where the peak is above the bound.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROUNDS, ENCODER = 9, 6  # of the run, and those of the map and the encoder among them


def main() -> int:
    """Print what the run took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=4_000)
    parser.add_argument("--interactions", type=int, default=100, help="of a user, on average")
    parser.add_argument("--most-gib", type=float, default=8.0, help="of resident memory")
    args = parser.parse_args()
    settings = [
        f"data.synthetic.users={args.users}",
        f"data.synthetic.items={args.items}",
        f"data.synthetic.mean_interactions={args.interactions}",
        "data.synthetic.clusters=100",
        f"order.rounds={ENCODER}",
        "order.participants=0.016",
        "order.tune=false",
        "fold_in.tune=false",
        "evaluation.controls=false",
        "evaluation.local_only=false",
        f"evaluation.every={ROUNDS}",
    ]
    with tempfile.TemporaryDirectory(prefix="fedem-catalogue-") as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "fedem_flwr.cli", "run", "--method", "fedials-order", "--dataset", "synthetic"]
        command += ["--rounds", str(ROUNDS), "--out", str(out), *(word for s in settings for word in ("--set", s))]
        subprocess.run(command, check=True)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    peak = used.ru_maxrss * 1024 / 2**30
    print(f"{args.items:,} items, {args.users:,} users: peak {peak:.2f} GiB, {used.ru_utime:.0f} s of processor time")
    print("seconds a round: " + ", ".join(f"{line['seconds']:.1f}" for line in lines))
    return int(peak > args.most_gib)


if __name__ == "__main__":
    sys.exit(main())
