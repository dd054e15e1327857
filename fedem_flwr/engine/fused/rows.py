"""Item rows of a client in tiles of sixteen, and the batches that see them as they lie (FedEM, AAAI 2026, Eq. 12)."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedem_flwr.engine.fused.compiled import inner
from fedem_flwr.engine.fused.draws import Drawn, row_of
from fedem_flwr.engine.fused.functions import (
    adam,
    adam_all,
    adam_scales,
    exp_of_negative,
    fill,
    sigmoid_of,
    softplus_of,
)
from fedem_flwr.engine.fused.lanes import LANES, every, larger, load, magnitude, store, total
from fedem_flwr.engine.fused.space import ADAM, FREQUENCY_SGD, Rules, Space

_f: Any = np.float32


@inner
def place(row: int, dim: int) -> int:
    """Where a row's first number lies; the next ones follow sixteen apart."""
    return (row // LANES) * dim * LANES + row % LANES


@inner
def load_rows(table: np.ndarray, touched: np.ndarray, rows: int, x: np.ndarray) -> None:
    """Copy rows of a table (m, d) into tiles; what fills the last one up is 0."""
    dim = table.shape[1]
    for r in range(rows):
        at, item = place(r, dim), touched[r]
        for c in range(dim):
            x[at + c * LANES] = table[item, c]
    for r in range(rows, -(-rows // LANES) * LANES):
        at = place(r, dim)
        for c in range(dim):
            x[at + c * LANES] = _f(0)


@inner
def store_rows(x: np.ndarray, rows: int, table: np.ndarray, touched: np.ndarray) -> None:
    """Copy them back."""
    dim = table.shape[1]
    for r in range(rows):
        at, item = place(r, dim), touched[r]
        for c in range(dim):
            table[item, c] = x[at + c * LANES]


@inner
def rows_of(x: np.ndarray, rows: int, out: np.ndarray) -> None:
    """Copy them out of tiles: (rows, d)."""
    dim = out.shape[1]
    for r in range(rows):
        at = place(r, dim)
        for c in range(dim):
            out[r, c] = x[at + c * LANES]


@inner
def begin(space: Space, user: np.ndarray, rows: int) -> None:
    """Fresh moments, and the user's vector."""
    dim = len(user)
    used = -(-rows // LANES) * LANES * dim
    fill(space.first, used, _f(0))
    fill(space.second, used, _f(0))
    for c in range(len(space.p)):
        space.p[c] = user[c] if c < dim else _f(0)
        space.p_first[c] = space.p_second[c] = space.p_gradient[c] = _f(0)


@inner
def distinct_rows(start: int, end: int, room: Drawn, distinct: np.ndarray, sign: np.ndarray, weight: np.ndarray) -> int:
    """Note the rows that a batch has, each once, their signs, and how often it has them; returns how many tiles.

    A tile that is filled up repeats a row, 0 times. `room.weight` is 0 everywhere before and after.
    """
    count = 0
    for s in range(start, end):
        r = row_of(room.sorted[s], room)
        if room.weight[r] == 0:
            distinct[count] = r
            count += 1
        room.weight[r] += _f(1)
    tiles = -(-count // LANES)
    for lane in range(count, tiles * LANES):
        distinct[lane] = distinct[0]
    for lane in range(tiles * LANES):
        r = distinct[lane]
        sign[lane] = room.sign[r]
        weight[lane] = room.weight[r] if lane < count else _f(0)
    for lane in range(count):
        room.weight[distinct[lane]] = _f(0)
    return tiles


@inner
def laid_aside(
    rows: np.ndarray, tile: int, width: int, whole: bool, distinct: np.ndarray, out: np.ndarray, out_at: int
) -> None:
    """Copy a tile of a batch's rows, of so many numbers each.

    Args:
        whole: whether the batch has all rows as they lie, and not those of `distinct`.
    """
    if whole:
        for at in range(0, width * LANES, LANES):
            store(out, out_at + at, load(rows, tile * width * LANES + at))
        return
    for lane in range(LANES):
        at, to = place(distinct[tile * LANES + lane], width), out_at + lane
        for c in range(width):
            out[to + c * LANES] = rows[at + c * LANES]


@inner
def added_back(found: np.ndarray, tile: int, width: int, whole: bool, distinct: np.ndarray, rows: np.ndarray) -> None:
    """Add a tile to a batch's rows."""
    if whole:
        for at in range(0, width * LANES, LANES):
            to = tile * width * LANES + at
            store(rows, to, load(rows, to) + load(found, at))
        return
    for lane in range(LANES):
        at = place(distinct[tile * LANES + lane], width)
        for c in range(width):
            rows[at + c * LANES] += found[c * LANES + lane]


@inner
def plain_batch(
    start: int, end: int, rows: int, dim: int, steps: int, rules: Rules, room: Drawn, space: Space
) -> float:
    """A step on p and on all touched rows, of the mean over the samples from `start` to `end` of an epoch.

    Scores, residuals, gradients and the optimiser are taken a tile of rows after the other, each row weighted by how
    often the batch has it: rows, and moments, are read and written once.

    Args:
        steps: of the round, this one included.

    Returns:
        The sum of the samples' losses.
    """
    tiles = -(-rows // LANES)
    fill(room.weight, tiles * LANES, _f(0))
    for s in range(start, end):
        room.weight[row_of(room.sorted[s], room)] += _f(1)
    n = end - start
    share, ridge = every(_f(1 / n)), every(_f(2 * rules.ridge))
    scales, by_adam, by_frequency = (
        adam_scales(rules.lr_item, steps),
        rules.optimiser == ADAM,
        rules.optimiser == FREQUENCY_SGD,
    )
    nought = every(_f(0))
    for c in range(dim):
        store(space.p_lanes, c * LANES, nought)
    loss = nought
    for tile in range(tiles):
        base = tile * dim * LANES
        z = nought
        for c in range(dim):
            z = z + every(space.p[c]) * load(space.x, base + c * LANES)
        sign, weight = load(room.sign, tile * LANES), load(room.weight, tile * LANES)
        wrong = sign * z
        small = exp_of_negative(nought - magnitude(wrong))
        loss = loss + weight * softplus_of(wrong, small)
        residual = weight * sign * sigmoid_of(wrong, small) * share
        decay = weight * share * ridge
        rate = every(_f(rules.lr_item))
        if by_frequency:
            rate = rate * every(_f(n)) / larger(weight, every(_f(1)))
        for c in range(dim):
            at = base + c * LANES
            q = load(space.x, at)
            store(space.p_lanes, c * LANES, load(space.p_lanes, c * LANES) + residual * q)
            gradient = residual * every(space.p[c]) + decay * q
            if by_adam:
                adam(space.x, space.first, space.second, at, gradient, scales)
            else:
                store(space.x, at, q - rate * gradient)
    step_of_user(dim, steps, rules, space)
    return np.float64(total(loss))


@inner
def step_of_user(dim: int, steps: int, rules: Rules, space: Space) -> None:
    """A step on p, whose gradient lies in lanes that are yet to be added up."""
    for c in range(dim):
        space.p_gradient[c] = total(load(space.p_lanes, c * LANES)) + _f(2 * rules.ridge) * space.p[c]
    if rules.optimiser == ADAM:
        adam_all(space.p, space.p_first, space.p_second, space.p_gradient, adam_scales(rules.lr_user, steps))
    else:
        for c in range(dim):
            space.p[c] -= _f(rules.lr_user) * space.p_gradient[c]
