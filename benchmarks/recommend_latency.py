"""How long a recommendation for one history takes, from a run of fedials with or without order.

    python -m benchmarks.recommend_latency --data ml-1m
    python -m benchmarks.recommend_latency --run RUN

With --data a short run of fedials-order is trained into a temporary folder; its accuracy does not matter here.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch

from fedem_flwr import Recommender
from fedem_flwr.bench.asking import histories_of, train_shortly
from fedem_flwr.config import resolve
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.prepared import PreparedRun

_SHORT = {"run": {"rounds": 4, "checkpoint_every": 10**6}, "evaluation": {"every": 10**6}}


def main() -> None:
    """Print the median and the 95th percentile, one history at a time and all in one call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", help="a known data set or a file: train a short run on it")
    source.add_argument("--run", type=Path, help="a finished run of fedials or fedials-order")
    parser.add_argument("--data-dir", help="folder with known data sets")
    parser.add_argument("--users", type=int, default=500, help="random users whose histories are asked about")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.run is not None:
        measure(args.run, args.users, args.seed)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(train(args.data, args.data_dir, Path(folder) / "run"), args.users, args.seed)


def train(data: str, data_dir: str | None, path: Path) -> Path:
    """Train a short run of fedials-order, d = 64, and serve its last round, which has the encoder, in any case."""
    source = {"dataset": data} if data_dir is None else {"dataset": data, "data_dir": data_dir}
    order = {"rounds": 2, "tune": False, "weight": 1.0}
    config = resolve({}, {**_SHORT, "data": source, "method": {"name": "fedials-order"}, "order": order})
    return train_shortly(config, path)


def measure(path: Path, users: int, seed: int) -> None:
    """Time one call a history, after one to warm up, and one call for all."""
    began = time.perf_counter()
    recommender = Recommender.load(path)
    loading = time.perf_counter() - began
    split = PreparedRun.open(RunDirectory(path)).split
    histories = histories_of(path, users, seed)
    recommender.recommend(histories[0])
    seconds = []
    for history in histories:
        began = time.perf_counter()
        recommender.recommend(history)
        seconds.append(time.perf_counter() - began)
    began = time.perf_counter()
    recommender.recommend_many(histories)
    together = time.perf_counter() - began
    length = statistics.median(map(len, histories))
    print(
        f"{date.today()}: {recommender.method} on {split.dataset}, {split.items:,} items, round {recommender.round}, "
        f"{torch.get_num_threads()} threads; {len(histories)} histories, median length {length:.0f}"
    )
    print(
        f"loading {loading:.2f} s; a call: median {1e3 * statistics.median(seconds):.2f} ms, "
        f"95th percentile {1e3 * np.percentile(seconds, 95):.2f} ms; in one call {1e3 * together / len(histories):.2f} "
        "ms a history"
    )


if __name__ == "__main__":
    main()
