"""Aggregation: Eq. 13's weights against a general solver, combining against one dense product, and how both grow."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.aggregation import aggregation_weights, combine_tables, similarity
from fedem_flwr.aggregation.near import combine_near
from fedem_flwr.aggregation.oracle import cvxpy_weights
from fedem_flwr.bench.rows import Row
from fedem_flwr.bench.suite import Benchmark, Setting
from fedem_flwr.bench.timing import Side

ALPHA = 0.9
BLOCK = 512  # items
NEIGHBOURS = 16


def shares_and_similarity(clients: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Proportions (n,) with a long tail and similarities (n, n) of random tables around a common one."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.rand(clients, generator=generator, dtype=torch.float64).pow(-0.7)
    spread = 0.1 + torch.rand(clients, 1, 1, generator=generator)
    tables = spread * torch.randn(clients, 40, 16, generator=generator)
    return counts / counts.sum(), similarity(tables, "frobenius")


def synthetic_tables(clients: int, items: int = 500) -> Tensor:
    """(K, m, 16) tables with a common start, of which each client has moved some rows."""
    g = torch.Generator().manual_seed(clients)
    tables = torch.randn(items, 16, generator=g).expand(clients, -1, -1).clone()
    moved = torch.rand(clients, items, generator=g) < torch.rand(clients, 1, generator=g) * 0.4
    return tables + moved.unsqueeze(-1) * torch.randn(tables.shape, generator=g)


def solver(shares: np.ndarray, alpha: float = ALPHA, name: str = "OSQP") -> Callable[[np.ndarray], np.ndarray]:
    """Eq. 13 by cvxpy for one client after another, as quickly as it can: stated once, warm, at its default tolerance.

    On the simplex the objective is ‖w‖² - 2 w·(p + α σ) / (1 + α), up to a factor and a constant.
    """
    import cvxpy as cp

    weights, linear = cp.Variable(len(shares)), cp.Parameter(len(shares))
    loss: Any = cp.sum_squares(weights) - 2 * (linear @ weights)
    problem = cp.Problem(cp.Minimize(loss), [weights >= 0, cp.sum(weights) == 1])

    def solve(row: np.ndarray) -> np.ndarray:
        linear.value = (shares + alpha * row) / (1 + alpha)
        problem.solve(solver=name)  # type: ignore[no-untyped-call]
        return np.asarray(weights.value)

    return solve


def exactly(tables: Tensor, shares: Tensor, alpha: float = ALPHA, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """Weights and tables of all pairs."""
    weights = aggregation_weights("eq13", shares, similarity(tables, block_items=block), alpha)
    return weights, combine_tables(weights, tables, block)


def _weights(benchmark: Benchmark, setting: Setting) -> Row:
    clients = setting.either(300, 1000)
    shares, sigma = shares_and_similarity(clients)
    rows = sigma.numpy()[np.linspace(0, clients - 1, setting.turns + 2).astype(int)]
    solve, turn = solver(shares.numpy()), cycle(rows)
    closed = aggregation_weights("eq13", shares, sigma, ALPHA)
    apart = float((closed[:3] - cvxpy_weights(shares, sigma[:3], ALPHA)).abs().max())
    return benchmark.ratio(
        setting,
        Side("closed form", lambda: aggregation_weights("eq13", shares, sigma, ALPHA)),
        Side("cvxpy", lambda: solve(next(turn)), times=clients),
        f"{clients} clients; cvxpy: a problem a client, one timed and multiplied",
        f"weights of three clients differ by at most {apart:.0e} from the solver's at its tightest",
    )


def _combining(benchmark: Benchmark, setting: Setting) -> Row:
    clients, items = setting.either((300, 1000), (1000, 1682))
    tables = synthetic_tables(clients, items)
    weights = torch.full((clients, clients), 1 / clients, dtype=torch.float64)
    dense = weights.float()
    apart = (combine_tables(weights, tables, BLOCK) - (dense @ tables.flatten(1)).view_as(tables)).abs().max()
    return benchmark.ratio(
        setting,
        Side(f"blocks of {BLOCK} items", lambda: combine_tables(weights, tables, BLOCK)),
        Side("one dense product", lambda: dense @ tables.flatten(1)),
        f"{clients} clients, {items} items, d 16",
        f"tables differ by at most {float(apart):.0e}; blocks take memory for {BLOCK} items beside the result",
    )


def _near(benchmark: Benchmark, setting: Setting) -> Row:
    clients = setting.either(300, 2000)
    tables, shares = synthetic_tables(clients), torch.full((clients,), 1 / clients, dtype=torch.float64)
    found = combine_near(tables, shares, ALPHA, neighbours=NEIGHBOURS, block_items=BLOCK)
    return benchmark.ratio(
        setting,
        Side(f"{NEIGHBOURS} near pairs", partial(_by_near, tables, shares)),
        Side("all pairs", lambda: exactly(tables, shares)),
        f"{clients} clients, {tables.shape[1]} items, d 16: weights and tables",
        f"near weights are off by at most {float(found.bound.max()):.1e}, which is their own bound",
    )


def _by_near(tables: Tensor, shares: Tensor) -> object:
    return combine_near(tables, shares, ALPHA, neighbours=NEIGHBOURS, block_items=BLOCK)


def _grown(by: Callable[[Tensor, Tensor], object], benchmark: Benchmark, setting: Setting) -> Row:
    sides = {}
    for clients in setting.either((50, 100, 200, 400), (125, 250, 500, 1000, 2000)):
        shares = torch.full((clients,), 1 / clients, dtype=torch.float64)
        sides[clients] = Side("", partial(by, synthetic_tables(clients), shares))
    return benchmark.growth(setting, "clients", sides, "500 items, d 16: weights and tables")


AGGREGATION = (
    Benchmark(
        "aggregation/weights",
        "weights of Eq. 13 for all clients: closed form against cvxpy",
        _weights,
        {"cvxpy": "pip install cvxpy", "osqp": "pip install osqp"},
    ),
    Benchmark(
        "aggregation/combine", "combining tables by given weights: item blocks against a dense product", _combining
    ),
    Benchmark("aggregation/near", f"weights and tables: {NEIGHBOURS} near pairs a client against all pairs", _near),
    Benchmark("growth/K-exact", "weights and tables of all pairs, with more clients", partial(_grown, exactly)),
    Benchmark(
        "growth/K-near", f"weights and tables by {NEIGHBOURS} near pairs, with more clients", partial(_grown, _by_near)
    ),
)
