"""A cohort's round on a GPU: Triton's kernels against batched torch, in turns in one process.

    python -m benchmarks.gpu_round

First on a small world, then on a synthetic one of ML-100K's size: whether both train to the same (the share of rows
within 1e-4), whether a client's result is the same to the bit when half of the others are away (the deterministic
kernels), and seconds of a round, warm, the median of five. What is timed is training, merging included, and waiting
for the device at the end; no messages, no evaluation. Then what the server makes of the tables, on the GPU and on the
CPU. `--device cpu` tries the program itself out, in Triton's interpreter (TRITON_INTERPRET=1) and on the small world
alone: its seconds say nothing of kernels.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass, replace
from datetime import date
from statistics import median

import torch
from torch import Tensor

from benchmarks.local_rounds import own_tables, within
from fedem_flwr.aggregation import aggregation_weights, combine_tables, similarity
from fedem_flwr.config import resolve
from fedem_flwr.contract import Method
from fedem_flwr.contract.finding import method_of
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.downloads import Downloads
from fedem_flwr.engine.samples import TrainingItems
from fedem_flwr.randomness import keyed_bits, keyed_uniform

WAYS = ("torch", "triton", "triton, not deterministic")
NEAR = 0.99  # of the rows


@dataclass(frozen=True)
class Work:
    """A round, ready to be trained over and over."""

    data: TrainingItems
    method: Method
    state: dict[str, Tensor]
    downloads: Downloads

    def train(self, way: str, who: Tensor | None = None) -> tuple[float, dict[str, Tensor]]:
        """Seconds of users `who` (default: all), and what users keep."""
        self.method.engine = way.partition(",")[0]
        self.method.local = replace(self.method.local, deterministic=way != WAYS[2])
        cohort = Cohort(self.data, {name: x.clone() for name, x in self.state.items()}, self.method)
        wait(cohort.device)
        began = time.perf_counter()
        result = cohort.train(cohort.everyone if who is None else who, self.downloads, 2)
        wait(cohort.device)
        seconds = time.perf_counter() - began
        if way != "torch" and result.uncompiled:
            sys.exit(f"error: torch trained in the kernels' place: {result.uncompiled}")
        return seconds, cohort.state


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def histories(users: int, items: int, mean: int, device: torch.device) -> TrainingItems:
    """Users whose histories are as long as those of real data are, about: a few long ones, most short."""
    u = keyed_uniform(0, "gpu-round/length", torch.arange(users))
    lengths = (mean * 0.4 * (1 - u).clamp(min=1e-3) ** -0.6).long().clamp(min=3, max=items // 2)
    lists = [keyed_bits(0, "gpu-round/item", user, torch.arange(items)).argsort()[:n] for user, n in enumerate(lengths)]
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(device)
    met = torch.cat([one.sort().values for one in lists]).to(device)
    return TrainingItems(torch.arange(users, device=device), items, offsets, met, offsets, met)


def work(name: str, data: TrainingItems, **local: int) -> Work:
    """A method's second round."""
    method = method_of(resolve({}, {"method": {"name": name}, "local": local}), data.items)
    device, n = data.users.device, len(data.users)
    method.engine = "torch"
    cohort = method.cohort(data, method.initial_state(n, device))
    cohort.train(cohort.everyone, {}, 1)
    aggregate = method.config.aggregate
    tables = own_tables(cohort.state["items"].cpu(), round(1 / aggregate.fraction))
    received = replace(tables, values=tables.values.to(device), slot=tables.slot.to(device))
    return Work(data, method, cohort.state, {"items": received})


def compare(name: str, what: str, one: Work, turns: int) -> bool:
    """Print a row a way; returns whether all is as it should be."""
    found, seconds = {}, {way: list[float]() for way in WAYS}
    for turn in range(turns + 1):  # the first one compiles
        for way in WAYS:
            taken, found[way] = one.train(way)
            seconds[way] += [taken] if turn else []
    some = torch.arange(0, len(one.data.users), 2, device=one.data.users.device)
    _, alone = one.train("triton", some)
    bits = all(torch.equal(values[some], found["triton"][part][some]) for part, values in alone.items())
    good = bits
    for way in WAYS:
        near = min(within(found["torch"][part], values) for part, values in found[way].items())
        good = good and near >= NEAR
        ratio = median(seconds["torch"]) / median(seconds[way])
        same = {"torch": "", "triton": "yes" if bits else "NO"}.get(way, "")
        print(
            f"| {what} | `{name}` | {way} | {median(seconds[way]):.4f} s | {ratio:.1f} | {near:.2%} | {same} |",
            flush=True,
        )
    return good


def aggregate(tables: Tensor, device: torch.device) -> tuple[float, Tensor]:
    """Seconds of Eq. 13's weights and of all clients' combined tables, and these."""
    shares = torch.full((len(tables),), 1 / len(tables), dtype=torch.float64, device=device)
    wait(device)
    began = time.perf_counter()
    alike = similarity(tables, "frobenius", place=device)
    combined = combine_tables(aggregation_weights("eq13", shares, alike, 0.9), tables)
    wait(device)
    return time.perf_counter() - began, combined


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 1 where something is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=["fedem-released", "fedem"])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: no CUDA device was found, and kernels are measured on one")
    if args.device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        sys.exit("error: without a GPU kernels are interpreted only: set TRITON_INTERPRET=1")
    device = torch.device(args.device)
    shown = torch.cuda.get_device_name() if device.type == "cuda" else "interpreted: seconds say nothing of a GPU"
    print(f"{date.today()}, {shown}, torch {torch.__version__}")
    print("| world | method | back end | a round | times as fast as torch | rows within 1e-4 | alone the same |")
    print("|---|---|---|---|---|---|---|")
    good = True
    small = histories(6, 20, 4, device)
    for name in args.methods:
        good &= compare(name, "6 × 20", work(name, small, epochs=2, batch_size=8), args.turns)
    if device.type == "cuda":
        large = histories(943, 1682, 106, device)
        for name in args.methods:
            what = f"943 × 1682, {len(large.positive_items)} interactions"
            good &= compare(name, what, one := work(name, large), args.turns)
        tables = one.state["items"].cpu()
        places = (device, torch.device("cpu"))
        found = [[aggregate(tables, place) for _ in range(args.turns + 1)][1:] for place in places]
        gap = float((found[0][0][1] - found[1][0][1]).abs().max())
        taken = [median(seconds for seconds, _ in turns) for turns in found]
        good &= gap < 1e-4
        print(f"weights and combined tables: GPU {taken[0]:.3f} s, CPU {taken[1]:.3f} s, apart by at most {gap:.1g}")
        print(f"most memory: {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB")
    if not good:
        print("NOT as it should be: see the last two columns")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
