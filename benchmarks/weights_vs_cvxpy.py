"""Eq. 13's weights of all clients: the closed form against cvxpy, one problem a client.

    python benchmarks/weights_vs_cvxpy.py --clients 1000 --problems 12

Both sides get the same proportions, similarities and cores. The solver is timed on a few problems at its
default tolerance, the fastest it can do, and scaled to all clients; the two sides alternate and medians are
reported. Differences are against the solver at its tightest tolerance, since the default leaves errors of
about 1e-5.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor

from fedem_flwr.aggregation import aggregation_weights, similarity
from fedem_flwr.aggregation.oracle import cvxpy_weights


def make_problem(clients: int, seed: int) -> tuple[Tensor, Tensor]:
    """Proportions (n,) with a long tail and similarities (n, n) of random tables around a common one."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.rand(clients, generator=generator, dtype=torch.float64).pow(-0.7)
    spread = 0.1 + torch.rand(clients, 1, 1, generator=generator)
    tables = spread * torch.randn(clients, 40, 16, generator=generator)
    return counts / counts.sum(), similarity(tables, "frobenius")


def solve_one(proportions: np.ndarray, row: np.ndarray, alpha: float) -> None:
    """Eq. 13 for one client, written as in the paper."""
    weights = cp.Variable(len(row))
    loss = cp.sum_squares(weights - proportions) + alpha * cp.sum_squares(weights - row)
    problem = cp.Problem(cp.Minimize(loss), [weights >= 0, cp.sum(weights) == 1])
    problem.solve(solver="CLARABEL")  # type: ignore[no-untyped-call]


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Read the options, run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000, help="clients, and weights a client")
    parser.add_argument("--problems", type=int, default=12, help="solver problems to time, spread over the rounds")
    parser.add_argument("--rounds", type=int, default=4, help="alternations of the two sides")
    parser.add_argument("--alpha", type=float, default=0.9, help="α of Eq. 13")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if min(options.clients, options.problems, options.rounds) < 1:
        parser.error("--clients, --problems and --rounds must be at least 1")

    proportions, sigma = make_problem(options.clients, options.seed)
    picks = np.linspace(0, options.clients - 1, options.problems).astype(int)
    shares, rows = proportions.numpy(), sigma.numpy()
    closed = aggregation_weights("eq13", proportions, sigma, options.alpha)  # warm-up
    solve_one(shares, rows[0], options.alpha)

    solver_times: list[float] = []
    closed_times: list[float] = []
    for chosen in np.array_split(picks, options.rounds):
        solver_times += [seconds(partial(solve_one, shares, rows[row], options.alpha)) for row in chosen]
        closed_times += [
            seconds(lambda: aggregation_weights("eq13", proportions, sigma, options.alpha)) for _ in range(5)
        ]
    exact = cvxpy_weights(proportions, sigma[picks], options.alpha)
    difference = float((closed[picks] - exact).abs().max())

    solver = statistics.median(solver_times) * options.clients
    mine = statistics.median(closed_times)
    print(f"clients {options.clients}, alpha {options.alpha}, threads {torch.get_num_threads()}")
    print(f"{'cvxpy, one problem a client':32s} {solver:12.4f} s  (median of {len(solver_times)}, scaled)")
    print(f"{'closed form, all clients':32s} {mine:12.4f} s  (median of {len(closed_times)})")
    print(f"{'ratio':32s} {solver / mine:12.0f} x")
    print(f"{'largest difference':32s} {difference:12.1e}    ({len(picks)} rows)")
    print(f"{'positive weights a client':32s} {float((closed > 0).sum(-1).double().mean()):12.1f}")


if __name__ == "__main__":
    main()
