"""Eq. 13's weights of all clients: the closed form against cvxpy, one problem a client.

    python -m benchmarks.weights_vs_cvxpy --clients 1000 --problems 12

Both sides get the same proportions, similarities and cores. The solver, to which the problem is stated once, is timed
on a few problems at its default tolerance, the fastest it can do, and scaled to all clients; the two sides alternate
and medians are reported. Differences are against the solver at its tightest tolerance, since the default leaves errors
of about 1e-5.
"""

from __future__ import annotations

import argparse
from itertools import cycle
from statistics import median

import numpy as np
import torch

from fedem_flwr.aggregation import aggregation_weights
from fedem_flwr.aggregation.oracle import cvxpy_weights
from fedem_flwr.bench.timing import CLOCK, Side, in_turns
from fedem_flwr.bench.weighing import shares_and_similarity, solver


def main() -> None:
    """Read the options, run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000, help="clients, and weights a client")
    parser.add_argument("--problems", type=int, default=12, help="solver problems to time, one a turn")
    parser.add_argument("--alpha", type=float, default=0.9, help="α of Eq. 13")
    parser.add_argument("--solver", default="OSQP", help="as cvxpy names it; CLARABEL is slower, and nearer")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if min(options.clients, options.problems) < 1:
        parser.error("--clients and --problems must be at least 1")

    proportions, sigma = shares_and_similarity(options.clients, options.seed)
    picks = np.linspace(0, options.clients - 1, options.problems).astype(int)
    solve, rows = solver(proportions.numpy(), options.alpha, options.solver), cycle(sigma.numpy()[picks])
    sides = [
        Side("closed form, all clients", lambda: aggregation_weights("eq13", proportions, sigma, options.alpha)),
        Side(f"{options.solver}, one problem a client", lambda: solve(next(rows)), times=options.clients),
    ]
    found = in_turns(sides, options.problems, CLOCK)
    closed = aggregation_weights("eq13", proportions, sigma, options.alpha)
    difference = float((closed[picks] - cvxpy_weights(proportions, sigma[picks], options.alpha)).abs().max())

    print(f"clients {options.clients}, alpha {options.alpha}, threads {torch.get_num_threads()}")
    for series in found:
        print(f"{series.label:32s} {median(series.wall):10.4f} s, {median(series.cpu):10.4f} s of the processor")
    times = [median(found[1].wall) / median(found[0].wall), median(found[1].cpu) / median(found[0].cpu)]
    print(f"{'ratio':32s} {times[0]:10.0f} x, {times[1]:10.0f} x")
    print(f"{'largest difference':32s} {difference:10.1e}    ({len(picks)} rows)")
    print(f"{'positive weights a client':32s} {float((closed > 0).sum(-1).double().mean()):10.1f}")


if __name__ == "__main__":
    main()
