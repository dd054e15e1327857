"""Local rounds of a cohort: the compiled back end against batched torch, in turns in one process.

    python -m benchmarks.local_rounds --data DIR/ml-100k --methods fedem-released fedem fedmf --threads 1 2

One round is trained first, so that all users have tables of their own; then every one that a method aggregates has
received a table, and the same round is trained again and again, by one back end and the other. What is timed is the
training of all users, merging included, and nothing else of a round. Beside each time: the operations of the arithmetic
that the method asks for (see `flops`), and the share of the machine's measured peak.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.config import resolve
from fedem_flwr.contract import Method
from fedem_flwr.contract.finding import method_of
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.contribution import TrainResult
from fedem_flwr.engine.downloads import Download, Downloads
from fedem_flwr.engine.learner import Layers
from fedem_flwr.nodes.slices import slice_histories
from fedem_flwr.protocol.split import Split
from fedem_flwr.randomness import keyed_normal
from fedem_flwr.runtime.inputs import load_interactions, split_of

ENGINES = ("torch", "fused")


@dataclass(frozen=True)
class Work:
    """One round, ready to be trained over and over."""

    split: Split
    method: Method
    state: dict[str, Tensor]
    downloads: Downloads

    def train(self, engine: str) -> tuple[float, float, dict[str, Tensor]]:
        """Seconds of a round, of the clock and of the processors, and what the users keep."""
        self.method.engine = engine
        data = slice_histories(self.split, np.arange(self.split.users), torch.device("cpu"))
        cohort = Cohort(data, {name: x.clone() for name, x in self.state.items()}, self.method)
        began, busy = time.perf_counter(), time.process_time()
        result = cohort.train(cohort.everyone, self.downloads, 2, sums=not self.each)
        seconds, used = time.perf_counter() - began, time.process_time() - busy
        assert (engine == "fused") == (not result.uncompiled), result.uncompiled
        return seconds, used, cohort.state

    @property
    def each(self) -> bool:
        """Whether users send their own tables."""
        return any(part.up == "each" for part in self.method.parts().values())


def work(data: Path, name: str) -> Work:
    """A method's second round on a data set."""
    config = resolve({}, {"data": {"dataset": str(data)}, "method": {"name": name}})
    split = split_of(config, load_interactions(config))
    method = method_of(config, split.items)
    n = split.users
    cohort = method.cohort(
        slice_histories(split, np.arange(n), torch.device("cpu")), method.initial_state(n, torch.device("cpu"))
    )
    method.engine = "fused"
    result = cohort.train(cohort.everyone, {}, 1, sums=True)
    parts = method.parts()
    received = {name: Download.for_all(mean_of(result, name), n) for name in result.sums}
    for name in (name for name, part in parts.items() if part.up == "each"):
        received[name] = own_tables(cohort.state[name], round(1 / config.aggregate.fraction))
    if "anchor" in parts:  # what tables are pulled to; everybody starts from their mean
        received["anchor"] = received["items"]
        received["items"] = Download.for_all(cohort.state["items"].mean(0), n)
    return Work(split, method, cohort.state, received)


def mean_of(result: TrainResult, name: str) -> Tensor:
    """What a server makes of a sum."""
    total, weight = result.sums[name].total, result.sums[name].weight.clamp(min=1)
    return (total / (weight.unsqueeze(1) if weight.ndim else weight)).float()


def own_tables(kept: Tensor, every: int) -> Download:
    """A table for one user in so many, of users' own (n, m, d): half-way to the mean, and noise."""
    n, items, dim = kept.shape
    chosen = torch.arange(0, n, max(1, every))
    slot = torch.full((n,), -1)
    slot[chosen] = torch.arange(len(chosen))
    noise = keyed_normal(0, "benchmark", torch.arange(items)[:, None], torch.arange(dim)) * 0.1
    return Download(torch.lerp(kept[chosen], kept.mean(0, keepdim=True), 0.5) + noise, slot)


def sizes(one: Work) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n,) samples, expected touched rows, and batches an epoch of each user."""
    local, positives = one.method.config.local, np.diff(one.split.train_offsets)
    samples = positives * (1 + local.negatives)
    free = one.split.items - positives
    rows = positives + free * (1 - (1 - 1 / np.maximum(1, free)) ** (positives * local.negatives))
    return samples, rows, -(-samples // (local.batch_size or samples.max()))


def numbers(one: Work) -> float:
    """How many numbers of item rows an optimiser moves in a round."""
    _, rows, batches = sizes(one)
    moved = {name for update in one.method.updates(2) for name in update.rates}
    width = sum(part.width for name, part in one.method.parts().items() if part.axis == "item" and name in moved)
    return float((one.method.local.epochs * batches * rows * width).sum())


def layered(one: Work, layers: Layers) -> float:
    """The same of a method that scores with a network of W weights.

    A step: 14 a number by Adam, 4 else. A visited row: 6 W, forward, and backward for weights and inputs.
    """
    samples, rows, batches = sizes(one)
    local, dim = one.method.local, one.method.parts()[layers.items[0]].width
    each = np.minimum(rows, local.batch_size or samples.max())
    visits = local.epochs * np.minimum(samples, batches * each)
    weights = sum(a * b for a, b in pairwise((dim, *layers.hidden, 1)))
    adam = any(update.by == "adam" for update in one.method.updates(2))
    return numbers(one) * (14 if adam else 4) + float(visits.sum()) * 6 * weights


def flops(one: Work) -> float:
    """Floating-point operations of a round, roots and divisions as one each, exponentials not counted; see `layered`.

    A row of Adam: 14 a number, each batch on all touched rows. A score with its gradient by p: 4 d. The adapter with W
    weights and a first layer of F: 2 W forward, 4 W − 2 F backward for the weights, 2 (W − F) + F backward for own
    rows. Samples of one row in a batch count once; a batch's distinct rows are estimated from the round's.
    """
    if isinstance(layers := one.method.products(2), Layers):
        return layered(one, layers)
    method, config = one.method, one.method.config
    local, merge = config.local, method.merge
    samples, rows, batches = sizes(one)
    total = numbers(one) * (14 + 4)
    received = one.downloads["items"].slot.numpy() >= 0
    if not merge.learned:
        return total
    widths = merge.adapter.mlp.widths
    weights = sum(a * b for a, b in pairwise(widths))
    first = widths[0] * widths[1]
    each = np.minimum(rows, local.batch_size or samples.max())  # distinct rows of a full batch, at most
    visits = np.minimum(samples, batches * each) * received
    adapter, main = 6 * weights - 2 * first, 4 * weights - 2 * first + first
    whole = float(received.sum()) * one.split.items * 2 * weights
    if merge.in_batches:
        return total + whole + float((local.epochs * visits * (adapter + main)).sum())
    return total + whole + float((merge.epochs * visits * adapter).sum())


def peak() -> tuple[float, float]:
    """What a core does in a second of its own: GFLOP of a matrix product, GB read and written of a copy."""
    torch.set_num_threads(1)
    a = torch.randn(1024, 1024)
    target, source = torch.empty(1 << 25), torch.randn(1 << 25)
    products, copies = [], []
    for _ in range(8):
        began = time.process_time()
        a @ a
        products.append(2 * len(a) ** 3 / (time.process_time() - began) / 1e9)
        began = time.process_time()
        target.copy_(source)
        copies.append(8 * len(source) / (time.process_time() - began) / 1e9)
    return max(products), max(copies)


def within(expected: Tensor, found: Tensor) -> float:
    """The share of rows (..., width) that are within 1e-4, relative to a part's typical entry where that is above 1."""
    size = max(1.0, float(expected.square().mean().sqrt()))
    return float(((found - expected).abs().amax(-1) <= 1e-4 * size).float().mean())


def main() -> None:
    """Print medians, their ratio, and the share of the peak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=["fedem-released", "fedem", "fedmf"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    jobs = {name: work(args.data, name) for name in args.methods}
    fastest, bandwidth = peak()
    print(f"{date.today()}: {args.data.name}, a core: {fastest:.0f} GFLOP/s, {bandwidth:.1f} GB/s")
    for threads in args.threads:
        torch.set_num_threads(threads)
        print(f"{threads} threads")
        for name, one in jobs.items():
            seconds: dict[str, list[tuple[float, float]]] = {engine: [] for engine in ENGINES}
            states = {}
            for engine in ENGINES:  # warm
                one.train(engine)
            for _ in range(args.turns):
                for engine in ENGINES:
                    *taken, states[engine] = one.train(engine)
                    seconds[engine].append((taken[0], taken[1]))
            slow, fast = (np.median(seconds[engine], axis=0) for engine in ENGINES)
            done = flops(one) / 1e9
            near = {part: within(x, states["fused"][part]) for part, x in states["torch"].items()}
            part = min(near, key=lambda name: near[name])
            print(
                f"{name}: clock: torch {slow[0]:.2f} s, fused {fast[0]:.2f} s, {slow[0] / fast[0]:.1f} times as fast; "
                f"processors: {slow[1]:.2f} s, {fast[1]:.2f} s, {slow[1] / fast[1]:.1f} times; {done:.1f} GFLOP, "
                f"{done / fast[1]:.1f} GFLOP/s a core, {done / fast[1] / fastest:.0%} of the peak; "
                f"{numbers(one) * 24 / 1e9:.1f} GB of rows and moments; "
                f"{near[part]:.2%} of the rows of '{part}' within 1e-4",
                flush=True,
            )


if __name__ == "__main__":
    main()
