"""Combining tables by Eq. 13 exactly and by near pairs: seconds of the processor, errors, and the bound.

    python -m benchmarks.near_weights --data DIR/ml-100k --clients 500 1000 2000

First the tables that a round of `fedem` leaves of a data set's users; then synthetic ones, of more and more clients
who have each moved a hundred rows of 500, 16 numbers wide, which shows how times grow. Both in turns, one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.aggregation.near import combine_near
from fedem_flwr.bench.local_rounds import work
from fedem_flwr.bench.weighing import ALPHA, BLOCK, exactly, synthetic_tables
from fedem_flwr.config import resolve


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the processor, and what comes of it."""
    began = time.process_time()
    found = function()
    return time.process_time() - began, found


def compare(tables: Tensor, shares: Tensor, neighbours: list[int]) -> None:
    """A line for the exact way, and one for each number of neighbours."""
    took, (weights, expected) = timed(lambda: exactly(tables, shares))
    size = float((expected - tables.mean(0)).square().mean().sqrt())
    print(
        f"{len(tables)} clients: exactly {took:.2f} s; own weight {float(weights.diagonal().median()):.3f}", flush=True
    )
    for count in neighbours:
        took, found = timed(lambda n=count: combine_near(tables, shares, ALPHA, neighbours=n, block_items=BLOCK))
        away = (found.tables - expected).square().flatten(1).mean(1).sqrt() / size
        most = found.bound * found.spread / (expected[0].numel() ** 0.5 * size)
        print(
            f"  {count} neighbours: {took:.2f} s; tables off by {float(away.median()):.2g} (median) and "
            f"{float(away.max()):.2g} (largest) of how far they are from the mean, "
            f"bound {float(most.median()):.2g} and {float(most.max()):.2g}; "
            f"weights by at most {float(found.bound.max()):.2g}; {len(found.exact)} by all",
            flush=True,
        )


def main() -> None:
    """Print both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--clients", nargs="*", type=int, default=[500, 1000, 2000])
    parser.add_argument("--neighbours", nargs="+", type=int, default=[0, 16, 64])
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(date.today())
    if args.data:
        one = work(resolve({}, {"data": {"dataset": str(args.data)}, "method": {"name": "fedem"}}))
        shares = torch.from_numpy(np.diff(one.split.train_offsets)).double()
        compare(one.state["items"], shares / shares.sum(), args.neighbours)
    for clients in args.clients:
        compare(synthetic_tables(clients), torch.full((clients,), 1 / clients), args.neighbours)


if __name__ == "__main__":
    main()
