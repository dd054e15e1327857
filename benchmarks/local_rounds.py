"""Local rounds of a cohort: the compiled back end against batched torch, in turns in one process.

    python -m benchmarks.local_rounds --data ml-100k --methods fedem-released fedem fedmf --threads 1 2
    python -m benchmarks.local_rounds --data ml-100k --methods fedncf-released fedrap --set merge.mode=elastic

One round is trained first, so that all users have tables of their own; then every one that a method aggregates has
received a table, and the same round is trained again and again, by one back end and the other. What is timed is the
training of all users, merging included, and nothing else of a round. Beside each time: the operations of the arithmetic
that the method asks for (see `flops`), and the share of the machine's measured peak.
"""

from __future__ import annotations

import argparse
import time
from datetime import date
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.bench.local_rounds import Engine, Work, work
from fedem_flwr.cli.options import options_tree
from fedem_flwr.config import resolve
from fedem_flwr.engine.learner import Layers

ENGINES: tuple[Engine, ...] = ("torch", "fused")


def timed(one: Work, engine: Engine) -> tuple[float, float, dict[str, Tensor]]:
    """Seconds of a round, of the clock and of the processors, and what the users keep."""
    cohort = one.cohort(engine)
    began, busy = time.perf_counter(), time.process_time()
    one.train(cohort)
    return time.perf_counter() - began, time.process_time() - busy, cohort.state


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
    return numbers(one) * (14 if adam else 4) + float(visits.sum()) * 6 * weights + merging(one, 4 * weights)


def merging(one: Work, score: int = 0) -> float:
    """Operations of the adapter, and of the `score` of each row that Θ is trained through where it comes first.

    With W weights and a first layer of F: 2 W forward, 4 W − 2 F backward for the weights, 2 (W − F) + F backward for
    own rows.
    """
    local, merge = one.method.config.local, one.method.merge
    if not merge.learned:
        return 0.0
    samples, rows, batches = sizes(one)
    received = one.downloads[one.method.merged].slot.numpy() >= 0
    widths = merge.adapter.mlp.widths
    weights = sum(a * b for a, b in pairwise(widths))
    first = widths[0] * widths[1]
    each = np.minimum(rows, local.batch_size or samples.max())  # distinct rows of a full batch, at most
    visits = float((np.minimum(samples, batches * each) * received).sum())
    adapter, main = 6 * weights - 2 * first, 4 * weights - 2 * first + first
    whole = float(received.sum()) * one.split.items * 2 * weights
    if merge.in_batches:
        return whole + local.epochs * visits * (adapter + main)
    return whole + merge.epochs * visits * (adapter + score)


def flops(one: Work) -> float:
    """Floating-point operations of a round, roots and divisions as one each, exponentials not counted; see `merging`.

    A row of Adam: 14 a number, each batch on all touched rows. A score with its gradient by p: 4 d. Samples of one row
    in a batch count once; a batch's distinct rows are estimated from the round's.
    """
    if isinstance(layers := one.method.products(2), Layers):
        return layered(one, layers)
    return numbers(one) * (14 + 4) + merging(one)


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
    parser.add_argument("--data", required=True, help="a data set's name, or a file")
    parser.add_argument("--methods", nargs="+", default=["fedem-released", "fedem", "fedmf"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--set", nargs="+", default=[], help="settings of all methods, as section.key=value")
    args = parser.parse_args()
    jobs = {
        name: work(resolve({}, options_tree({"data": {"dataset": args.data}, "method": {"name": name}}, args.set)))
        for name in args.methods
    }
    fastest, bandwidth = peak()
    print(f"{date.today()}: {args.data}, a core: {fastest:.0f} GFLOP/s, {bandwidth:.1f} GB/s")
    for threads in args.threads:
        torch.set_num_threads(threads)
        print(f"{threads} threads")
        for name, one in jobs.items():
            seconds: dict[str, list[tuple[float, float]]] = {engine: [] for engine in ENGINES}
            states = {}
            for engine in ENGINES:  # warm
                timed(one, engine)
            for _ in range(args.turns):
                for engine in ENGINES:
                    *taken, states[engine] = timed(one, engine)
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
