"""A client's adapter on the rows of a batch (FedEM, AAAI 2026, Eq. 9–11): ρ, a step on Θ, and what comes through ρ.

Whatever scores merged rows takes ρ from `weigh`, and leaves the derivatives by it in `upstream`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fedem_flwr.engine.fused.compiled import inner
from fedem_flwr.engine.fused.functions import adam_all, adam_scales, sigmoid
from fedem_flwr.engine.fused.lanes import LANES, every, load, store, total
from fedem_flwr.engine.fused.mixing import AdapterSpace, Mixing
from fedem_flwr.engine.fused.moving import begin_vector, end_vector
from fedem_flwr.engine.fused.network import back, forward, product, weight_gradients
from fedem_flwr.engine.fused.rows import laid_aside, load_rows

_f: Any = np.float32


@inner
def begin_adapter(mixing: Mixing, number: int, client: int, touched: np.ndarray, rows: int, room: AdapterSpace) -> None:
    """Take in what a client received at its touched rows, its Θ, and the one input that it may have.

    Args:
        number: the client's in `mixing`. client: its position in the cohort.
    """
    load_rows(mixing.received[mixing.slot[number]], touched, rows, room.received)
    begin_vector(room.theta, mixing.theta[client if len(mixing.theta) > 1 else 0])
    for c in range(len(room.pool) // LANES):
        room.pool[c * LANES] = mixing.pooled[number, c]


@inner
def end_adapter(mixing: Mixing, client: int, room: AdapterSpace) -> None:
    """Hand Θ back."""
    end_vector(room.theta, mixing.theta[client if len(mixing.theta) > 1 else 0])


@inner
def pairs(tiles: int, whole: bool, dim: int, own: np.ndarray, distinct: np.ndarray, room: AdapterSpace) -> None:
    """Lay the batch's rows side by side with what the merge would add: [q, g − q]; see `rows.laid_aside`."""
    for tile in range(tiles):
        base = tile * 2 * dim * LANES
        middle = base + dim * LANES
        laid_aside(own, tile, dim, whole, distinct, room.features, base)
        laid_aside(room.received, tile, dim, whole, distinct, room.features, middle)
        for at in range(0, dim * LANES, LANES):
            store(room.features, middle + at, load(room.features, middle + at) - load(room.features, base + at))


@inner
def weigh(tiles: int, rho: float, room: AdapterSpace) -> None:
    """ρ of each row: of the adapter, or the fixed one where there is none."""
    theta, single = room.theta.values, len(room.pool) > 0
    fixed = every(_f(rho))
    if single:
        forward(theta, room.widths, room.pool, room.hidden, room.rho, LANES)
        fixed = sigmoid(every(room.rho[0]))
    elif len(theta):
        forward(theta, room.widths, room.features, room.hidden, room.rho, tiles * LANES)
    looks = looks_at_rows(room)
    for at in range(0, tiles * LANES, LANES):
        store(room.rho, at, sigmoid(load(room.rho, at)) if looks else fixed)


@inner
def looks_at_rows(room: AdapterSpace) -> bool:
    """Whether a row has a ρ of its own, so that its derivative also comes through it."""
    return len(room.theta.values) > 0 and len(room.pool) == 0


@inner
def _back(tiles: int, room: AdapterSpace) -> int:
    """Derivatives by what the layers sum up, given those by ρ; of one ρ a client their sum. Returns how many tiles."""
    nought, one, seen = every(_f(0)), every(_f(1)), tiles
    if len(room.pool):
        of_all, seen = nought, 1
        for at in range(0, tiles * LANES, LANES):
            of_all = of_all + load(room.upstream, at)
        store(room.upstream, 0, every(total(of_all)))
        for lane in range(1, LANES):
            room.upstream[lane] = _f(0)
    for at in range(0, seen * LANES, LANES):
        rho = load(room.rho, at)
        store(room.upstream, at, load(room.upstream, at) * rho * (one - rho))
    back(room.theta.values, room.widths, room.hidden, room.slopes, room.upstream, seen * LANES)
    return seen


@inner
def adapter_step(tiles: int, steps: int, rate: float, room: AdapterSpace) -> None:
    """A step on Θ, given the derivatives by ρ.

    Args:
        steps: of the round, this one included.
    """
    seen = _back(tiles, room) * LANES
    theta, features = room.theta, room.pool if len(room.pool) else room.features
    weight_gradients(room.widths, features, room.hidden, room.slopes, room.upstream, seen, theta.gradient)
    adam_all(theta.values, theta.first, theta.second, theta.gradient, adam_scales(rate, steps))


@inner
def back_to_rows(tiles: int, dim: int, room: AdapterSpace) -> None:
    """Prepare `through_rho`, given the derivatives by ρ: own rows enter the first layer as [q, g − q]."""
    _back(tiles, room)
    theta = room.theta.values
    for j in range(room.widths[1]):
        for c in range(dim):
            room.folded[j * dim + c] = theta[j * 2 * dim + c] - theta[j * 2 * dim + dim + c]


@inner
def through_rho(tile: int, dim: int, room: AdapterSpace, out: np.ndarray) -> None:
    """Derivatives by a tile's own rows (d · 16,), as far as ρ looks at them."""
    source, width = room.upstream if len(room.widths) == 2 else room.slopes, room.widths[1]
    product(room.folded, 0, 1, dim, -1, source, tile * width * LANES, width, out, 0, dim)


@inner
def mixed(tile: int, dim: int, room: AdapterSpace, out: np.ndarray) -> None:
    """A tile's merged rows (d · 16,): q + ρ (g − q)."""
    base = tile * 2 * dim * LANES
    rho = load(room.rho, tile * LANES)
    for at in range(0, dim * LANES, LANES):
        store(out, at, load(room.features, base + at) + rho * load(room.features, base + dim * LANES + at))


@inner
def unmixed(tile: int, dim: int, room: AdapterSpace, found: np.ndarray) -> None:
    """Derivatives by ρ out of those by a tile's merged rows, which become those by own rows with ρ held fixed."""
    nought = every(_f(0))
    middle = (tile * 2 + 1) * dim * LANES
    left, by_rho = every(_f(1)) - load(room.rho, tile * LANES), nought
    for at in range(0, dim * LANES, LANES):
        gradient = load(found, at)
        by_rho = by_rho + gradient * load(room.features, middle + at)
        store(found, at, left * gradient)
    store(room.upstream, tile * LANES, by_rho)
