"""One `fedem-released` round, ours against the plain per-client PyTorch loop, in turns in one process.

    python -m benchmarks.round_vs_plain --ratings DIR/ml-100k/ratings.dat --rounds 3 --threads 2

Both train the same data set with the same semantics; the first round of each is a warm-up. Ours is a whole round
through Flower's messages in one process, evaluation on receipt included; the plain loop's evaluation is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.plain_loop import PlainFedEM, load
from fedem_flwr.config import resolve
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.inputs import load_interactions, split_of
from fedem_flwr.runtime.prepared import PreparedRun


def main() -> None:
    """Print seconds a round of both sides, in turns, and the ratio of their medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ratings", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds of each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--weights", choices=("cvxpy", "closed"), default="cvxpy")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    plain = PlainFedEM(*load(args.ratings), weights=args.weights)
    plain_seconds: list[float] = []
    ours_seconds: list[float] = []

    def take_turns(line: dict[str, Any]) -> None:
        """Between two of our rounds, run one of the plain loop's."""
        ours_seconds.append(line["seconds"])
        began = time.perf_counter()
        plain.round()
        plain_seconds.append(time.perf_counter() - began)
        print(f"round {line['round']}: ours {ours_seconds[-1]:.2f} s, plain {plain_seconds[-1]:.2f} s", flush=True)

    options = {
        "data": {"dataset": str(args.ratings), "protocol": "paper"},
        "method": {"name": "fedem-released"},
        "run": {"rounds": args.rounds + 1, "threads": args.threads, "checkpoint_every": 10**6},
    }
    config = resolve({}, options)
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory(Path(folder) / "run").create()
        split = split_of(config, load_interactions(config))
        carry_out_rounds(PreparedRun.create(directory, config, split), take_turns)
    ours, theirs = statistics.median(ours_seconds[1:]), statistics.median(plain_seconds[1:])
    print(f"{date.today()}: {split.users} users, {split.items} items, {args.threads} threads, medians of {args.rounds}")
    print(f"ours {ours:.2f} s a round, plain loop {theirs:.2f} s: {theirs / ours:.1f} times as fast")


if __name__ == "__main__":
    main()
