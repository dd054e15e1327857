"""What FedEM's adapter takes of a client: time of a local round, numbers that are kept, and numbers that are sent.

    FEDEM_DATA=... python -m benchmarks.adapter_share --data filmtrust --repeats 5

Two settings in turns on the same users, samples and downloaded tables: one learned ρ an item (`fedem`), and one fixed ρ
(`merge.mode = "static"`), which merges and trains the same and has no adapter. Processor seconds of `Cohort.train`,
medians; the server's part of a round is not in them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from fedem_flwr.config import resolve
from fedem_flwr.contract.finding import method_of
from fedem_flwr.engine.downloads import Download
from fedem_flwr.engine.merge import ADAPTER
from fedem_flwr.nodes.host import slice_histories
from fedem_flwr.runtime.inputs import load_interactions, split_of


def prepared(data: str, mode: str) -> tuple[Callable[[int], float], dict[str, int]]:
    """What carries out a local round of everybody and gives its seconds; and numbers of one client by part."""
    config = resolve({}, {"data": {"dataset": data}, "method": {"name": "fedem"}, "merge": {"mode": mode}})
    split = split_of(config, load_interactions(config))
    method, here = method_of(config, split.items), torch.device("cpu")
    data_here = slice_histories(split, np.arange(split.users), here)
    cohort = method.cohort(data_here, method.initial_state(split.users, here))
    everybody = torch.arange(split.users)
    sizes = {name: values[0].numel() for name, values in cohort.state.items()}

    def train(round_: int) -> float:
        draw = torch.Generator().manual_seed(round_)
        tables = cohort.state["items"] + 0.1 * torch.randn(cohort.state["items"].shape, generator=draw)
        began = time.process_time()
        cohort.train(everybody, {"items": Download(tables, everybody)}, round_)
        return time.process_time() - began

    return train, sizes


def main() -> None:
    """Measure in turns, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="filmtrust")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rounds = {mode: prepared(args.data, mode) for mode in ("elastic", "static")}
    turns = [[train(round_) for train, _ in rounds.values()] for round_ in range(2, args.repeats + 3)]
    elastic, static = (statistics.median(values) for values in zip(*turns[1:], strict=True))  # the first compiles
    sizes = rounds["elastic"][1]
    theta = sizes[ADAPTER]
    print(f"a local round of everybody on {args.data}: {elastic:.2f} s with the adapter, {static:.2f} s without,")
    print(f"so {100 * (1 - static / elastic):.0f} % of it is the adapter's; medians of {args.repeats}, in turns")
    share = 100 * theta / sum(sizes.values())
    print(f"a client keeps {sum(sizes.values()):,} numbers, {theta:,} of them ({share:.1f} %) the adapter's; it sends")
    print(f"{sizes['items']:,}, none of the adapter's")


if __name__ == "__main__":
    main()
