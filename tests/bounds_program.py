"""Run with NUMBA_BOUNDSCHECK=1: says what compiled functions do at the ends of arrays. See `test_bounds`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from fedem_flwr.engine.fused.compiled import entry
from fedem_flwr.engine.fused.lanes import LANES, load, spread, store
from fedem_flwr.engine.fused.network import back, forward, weight_gradients

ROOMS = ("theta", "x", "hidden", "out", "slopes", "upstream", "gradient")
WIDTHS = ((3, 1), (1, 1, 1), (9, 8, 1), (5, 17, 4, 1), (16, 9, 12, 3))  # below, at and above what is summed together


@entry
def loads(x: Any, at: int) -> None:
    store(x, 0, load(x, at))


@entry
def stores(x: Any, at: int) -> None:
    store(x, at, load(x, 0))


@entry
def spreads(x: Any, at: int) -> None:
    store(x, 0, spread(x, at))


@entry
def indexes(x: Any, at: int) -> None:
    x[at] = 0


@entry
def network(
    theta: Any, widths: Any, x: Any, hidden: Any, out: Any, slopes: Any, upstream: Any, gradient: Any, n: int
) -> None:
    forward(theta, widths, x, hidden, out, n)
    back(theta, widths, hidden, slopes, upstream, n)
    weight_gradients(widths, x, hidden, slopes, upstream, n, gradient)


def passes(widths: tuple[int, ...], short: str = "") -> None:
    """Forward and back through a network, each array of which has room for just its numbers; `short`: for one less."""
    w, n = np.array(widths), 2 * LANES
    weights, inner = int(((w[:-1] + 1) * w[1:]).sum()), int(w[1:-1].sum())
    sizes = (weights, n * w[0], n * inner, n * w[-1], n * inner, n * w[-1], weights)
    room = {name: np.ones(int(s) - (name == short), np.float32) for name, s in zip(ROOMS, sizes, strict=True)}
    theta, x, hidden, out, slopes, upstream, gradient = room.values()
    network(theta, w, x, hidden, out, slopes, upstream, gradient, n)


def outside(call: Callable[[], None]) -> bool:
    """Whether something lay outside of an array."""
    try:
        call()
    except IndexError:
        return True
    return False


def main() -> None:
    """Print what lay outside."""
    x = np.zeros(2 * LANES, np.float32)
    ends = ((loads, LANES), (stores, LANES), (spreads, 2 * LANES - 1), (indexes, 2 * LANES - 1))
    print(
        json.dumps(
            {
                "last": [outside(lambda f=f, at=at: f(x, at)) for f, at in ends],  # type: ignore[misc]
                "beyond": [outside(lambda f=f, at=at: f(x, at + 1)) for f, at in ends],  # type: ignore[misc]
                "below": [outside(lambda f=f: f(x, -1)) for f, _ in ends[:-1]],  # type: ignore[misc]
                "networks": [outside(lambda w=w: passes(w)) for w in WIDTHS],  # type: ignore[misc]
                "short": {name: outside(lambda n=name: passes((9, 17, 4, 1), n)) for name in ROOMS},  # type: ignore[misc]
            }
        )
    )


if __name__ == "__main__":
    main()
