"""One `fedem-released` round, ours against the plain per-client PyTorch loop, in turns in one process.

    python -m benchmarks.round_vs_plain --ratings DIR/ml-100k/ratings.dat --rounds 3 --threads 2

Both train the same data set with the same semantics; the first round of each is a warm-up. Ours is a whole round
through Flower's messages in one process, evaluation on receipt included; the plain loop's evaluation is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from datetime import date
from pathlib import Path

import torch

from fedem_flwr.bench.plain_loop import PlainFedEM, load
from fedem_flwr.bench.timing import CLOCK
from fedem_flwr.bench.whole import rounds_in_turns
from fedem_flwr.config import resolve


def main() -> None:
    """Print seconds a round of both sides, in turns, and the ratio of their medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ratings", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds of each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--weights", choices=("cvxpy", "closed"), default="cvxpy")
    parser.add_argument("--fetch", choices=("samples", "batches"), default="samples", help="of the plain loop's data")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    plain = PlainFedEM(*load(args.ratings), weights=args.weights, fetch=args.fetch)

    def tell(taken: list[list[tuple[float, float]]]) -> None:
        ours, theirs = (one[-1][0] for one in taken)
        print(f"round {len(taken[0])}: ours {ours:.2f} s, plain {theirs:.2f} s", flush=True)

    options = {
        "data": {"dataset": str(args.ratings), "protocol": "paper"},
        "method": {"name": "fedem-released"},
        "run": {"rounds": args.rounds + 1, "threads": args.threads, "checkpoint_every": 10**6},
    }
    with tempfile.TemporaryDirectory() as folder:
        taken = rounds_in_turns(resolve({}, options), [plain.round], Path(folder) / "run", CLOCK, tell)
    ours, theirs = (statistics.median(wall for wall, _ in one[1:]) for one in taken)
    print(f"{date.today()}: {plain.n} users, {plain.m} items, {args.threads} threads, medians of {args.rounds}")
    print(f"ours {ours:.2f} s a round, plain loop {theirs:.2f} s: {theirs / ours:.1f} times as fast")


if __name__ == "__main__":
    main()
