"""Where the processor's time of a local round goes: operation by operation, or compiled piece by piece.

    OMP_NUM_THREADS=1 python -m benchmarks.round_pieces --data ml-100k

`fedials` and the encoder of `fedials-order` are written in torch: each operation is timed where it is called. Those of
matrix products are counted; bytes are those of what an operation takes and gives, in the cache or not. Of a compiled
round (`fedem-released`, `fedem`, `fedmf`) the same clients are gone through again and again, each time with more of
what the round does; a piece is the difference. Seconds are the processor's, on one thread.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import date
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.local_rounds import peak
from fedem_flwr.aggregation.newton import newton_step
from fedem_flwr.bench.local_rounds import Work, work
from fedem_flwr.config import Config, resolve
from fedem_flwr.contract.finding import method_of
from fedem_flwr.engine.fused import backend
from fedem_flwr.engine.history import History
from fedem_flwr.engine.ials import FoldIn, sums_of
from fedem_flwr.engine.order import order_sums
from fedem_flwr.methods.fedials import Fedials
from fedem_flwr.methods.fedials_order import FedialsOrder
from fedem_flwr.nodes.slices import slice_history
from fedem_flwr.runtime.inputs import load_interactions, split_of

KINDS = {
    "matrix products": ("mm", "bmm", "addmm", "baddbmm"),
    "solving": ("linalg_cholesky_ex", "cholesky_solve", "_linalg_eigh"),
    "attention": (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
    "rows gathered and added back": ("index", "index_add_", "_index_put_impl_", "index_put", "gather", "searchsorted"),
}
INTEGERS, OTHERS = "integers: keyed draws, places, masks", "elementwise, sums, copies"
OUTSIDE = "numpy, scipy, Python, torch's own calls"


class Clocked(TorchDispatchMode):
    """Seconds of the processor in each kind of torch's operations, backward ones too, and bytes of their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = defaultdict(float)
        self.bytes: dict[str, int] = defaultdict(int)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Carry an operation out."""
        began = time.process_time()
        found = func(*args, **(kwargs or {}))
        taken = time.process_time() - began
        kind = kind_of(func.overloadpacket.__name__, found)
        self.seconds[kind] += taken
        tensors = [x for x in tree_leaves((args, kwargs, found)) if isinstance(x, torch.Tensor)]
        self.bytes[kind] += 0 if func.is_view else sum(x.numel() * x.element_size() for x in tensors)
        return found


def kind_of(name: str, found: Any) -> str:
    """Of an operation, by its name and by what it gives."""
    for kind, names in KINDS.items():
        if name in names:
            return kind
    whole = isinstance(found, torch.Tensor) and not found.is_floating_point()
    return INTEGERS if whole else OTHERS


def seconds(call: Callable[[], object], turns: int) -> float:
    """Median of some turns after one."""
    call()
    found = []
    for _ in range(turns):
        began = time.process_time()
        call()
        found.append(time.process_time() - began)
    return median(found)


def operations(call: Callable[[], object], turns: int) -> tuple[float, dict[str, tuple[float, float, float]]]:
    """Seconds of a call, and of each kind of operation in it seconds, GFLOP and GB; see `Clocked`."""
    whole, clocks = seconds(call, turns), []
    for _ in range(turns):
        with Clocked() as clocked:
            call()
        clocks.append(clocked)
    with FlopCounterMode(display=False) as counter:
        call()
    gflop: dict[str, float] = defaultdict(float)
    for operation, count in counter.get_flop_counts().get("Global", {}).items():
        gflop[kind_of(operation.__name__, None)] += count / 1e9
    kinds = {
        kind: (median(clock.seconds[kind] for clock in clocks), gflop[kind], size / 1e9)
        for kind, size in clocks[0].bytes.items()
    }
    kinds[OUTSIDE] = max(0.0, whole - sum(taken for taken, _, _ in kinds.values())), 0.0, 0.0
    return whole, dict(sorted(kinds.items(), key=lambda item: -item[1][0]))


def history_of(config: Config) -> tuple[History, int]:
    """All users' training items, and how many users there are."""
    split = split_of(config, load_interactions(config))
    return slice_history(split, np.arange(split.users), split.train_offsets, split.train_items), split.users


def calls_of(config: Config) -> Mapping[str, Callable[[], object]]:
    """What devices and the server do in a round of `fedials`, or of the encoder of `fedials-order`."""
    history, users = history_of(config)
    method = method_of(config, history.items)
    everybody, state = np.arange(users), method.start()
    if isinstance(method, FedialsOrder):
        many = max(1, round(users * config.order.participants))
        some = np.random.default_rng(0).choice(users, many, replace=False)
        own, task = {**state, **method.encoder.from_table(state["table"])}, method.encoder.task
        return {f"encoder, {many} devices": lambda: order_sums(task, own["weights"], own["rows"], history, some, 2)}
    assert isinstance(method, Fedials)
    fold_in = FoldIn(state["table"].float(), method.objective)
    sums = sums_of(fold_in, history, everybody)
    step = method.newton(1)
    what = state["table"].double(), sums.gradient, sums.counts, sums.gram, float(users), step
    return {
        f"table, {users} devices": lambda: sums_of(fold_in, history, everybody),
        "table, server": lambda: newton_step(*what),
    }


def steps_of(one: Work, turns: int) -> tuple[float, dict[str, float]]:
    """Seconds of a compiled round, and of its pieces: medians, of rounds that end with this or that stage, in turns."""
    from benchmarks.compiled_pieces import STAGES, THROUGH_A_MERGE

    stages = [stage for stage in STAGES if one.method.merge.in_training or THROUGH_A_MERGE not in stage[0]]
    kept = backend.train_plain, backend.train_through_merge
    taken: list[list[float]] = [[] for _ in range(len(stages) + 1)]
    try:
        for turn in range(turns + 1):
            for at, (_, plain, merged) in enumerate([*stages, ("all of it", *kept)]):
                backend.train_plain, backend.train_through_merge = plain, merged
                cohort, began = one.cohort("fused"), time.process_time()
                one.train(cohort)
                if turn:  # the first compiles
                    taken[at].append(time.process_time() - began)
    finally:
        backend.train_plain, backend.train_through_merge = kept
    ends = [median(some) for some in taken]
    names = [*(name for name, _, _ in stages), "batches: scores, gradients, Adam of rows"]
    return ends[-1], {name: end - start for name, start, end in zip(names, [0.0, *ends[:-1]], ends, strict=True)}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a data set's name, or a file")
    parser.add_argument(
        "--methods", nargs="+", default=["fedials", "fedials-order", "fedem-released", "fedem", "fedmf"]
    )
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    fastest, bandwidth = peak()
    print(f"{date.today()}: {args.data}, a core: {fastest:.0f} GFLOP/s, {bandwidth:.1f} GB/s")
    for name in args.methods:
        config = resolve({}, {"data": {"dataset": args.data}, "method": {"name": name}})
        if name.startswith("fedials"):
            for what, call in calls_of(config).items():
                whole, kinds = operations(call, args.turns)
                gflop = sum(count for _, count, _ in kinds.values())
                print(f"{name}, {what}: {whole:.4f} s, {gflop:.3f} GFLOP, {gflop / whole / fastest:.0%} of the peak")
                for kind, (taken, count, size) in kinds.items():
                    print(
                        f"    {kind}: {taken:.4f} s, {taken / whole:.0%}; {count:.3f} GFLOP, {size:.3f} GB", flush=True
                    )
            continue
        whole, pieces = steps_of(work(config), args.turns)
        print(f"{name}: {whole:.3f} s")
        for piece, taken in pieces.items():
            print(f"    {piece}: {taken:.3f} s, {taken / whole:.0%}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
