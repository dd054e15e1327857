"""The plain per-client PyTorch loop by itself: seconds by phase and accuracy (`fedem_flwr/bench/plain_loop.py`).

python -m benchmarks.plain_loop --ratings ratings.dat --separator , --rounds 3
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from fedem_flwr.bench.plain_loop import PlainFedEM, load


def main() -> None:
    """Print, for every round, its seconds by phase and the test accuracy."""
    parser = argparse.ArgumentParser(description="FedEM as a plain per-client PyTorch loop")
    parser.add_argument("--ratings", type=Path, required=True, help="rows of user, item, rating[, time]")
    parser.add_argument("--separator", default=",", help="between columns; a space: any white space")
    parser.add_argument("--min-interactions", type=int, default=10, help="rows a user must have to be kept")
    parser.add_argument("--users", type=int, help="train only the first so many, over the same catalogue")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--weights", choices=("cvxpy", "closed"), default="cvxpy")
    parser.add_argument("--fetch", choices=("samples", "batches"), default="samples")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data = load(args.ratings, args.separator, args.min_interactions, args.users, args.seed)
    method = PlainFedEM(*data, weights=args.weights, fetch=args.fetch, seed=args.seed)
    print(f"{data.n} users, {data.m} items, {torch.get_num_threads()} threads, {args.weights} weights")
    for number in range(1, args.rounds + 1):
        seconds = method.round()
        hit_rate, gain = method.evaluate()
        timing = f"train {seconds['train']:.2f} s, aggregate {seconds['aggregate']:.2f} s"
        print(f"round {number}: {timing}; test HR@10 {hit_rate:.4f}, NDCG@10 {gain:.4f}", flush=True)


if __name__ == "__main__":
    main()
