"""Batches that see item rows through the merge (FedEM, AAAI 2026, Eq. 9–12): a step on Θ, then one on p and Q."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedem_flwr.engine.fused.compiled import inner
from fedem_flwr.engine.fused.draws import Drawn
from fedem_flwr.engine.fused.functions import adam_all, adam_scales, exp_of_negative, sigmoid, sigmoid_of, softplus_of
from fedem_flwr.engine.fused.lanes import LANES, every, load, magnitude, store, total
from fedem_flwr.engine.fused.network import back, forward, product, weight_gradients
from fedem_flwr.engine.fused.rows import distinct_rows, place, step_of_user
from fedem_flwr.engine.fused.space import Rules, Space

_f: Any = np.float32


@inner
def gather(start: int, end: int, dim: int, room: Drawn, space: Space) -> int:
    """Lay the rows that a batch has, each once, side by side with what the merge would add; returns how many tiles.

    Beside them lie p · q and p · (g − q) of each; see `distinct_rows`.
    """
    tiles = distinct_rows(start, end, room, space.distinct, space.sign, space.weight)
    for lane in range(tiles * LANES):
        at, to = place(space.distinct[lane], dim), place(lane, 2 * dim)
        for c in range(dim):
            own = space.x[at + c * LANES]
            space.features[to + c * LANES] = own
            space.features[to + (dim + c) * LANES] = space.received[at + c * LANES] - own
    for tile in range(tiles):
        base = tile * 2 * dim * LANES
        plain, slope = every(_f(0)), every(_f(0))
        for c in range(dim):
            p = every(space.p[c])
            plain = plain + p * load(space.features, base + c * LANES)
            slope = slope + p * load(space.features, base + (dim + c) * LANES)
        store(space.plain, tile * LANES, plain)
        store(space.slope, tile * LANES, slope)
    return tiles


@inner
def adapter_batch(
    tiles: int, n: int, steps: int, theta: np.ndarray, widths: np.ndarray, pool: np.ndarray, rules: Rules, space: Space
) -> float:
    """A step on Θ (P,), in place; returns the sum of the samples' losses before it.

    Args:
        pool: (2 d · 16,) the one input of `scalar` merging, in lane 0 of a tile; else nothing.
    """
    nought, share, single = every(_f(0)), every(_f(1 / n)), len(pool) > 0
    features, seen = (pool, 1) if single else (space.features, tiles)
    forward(theta, widths, features, space.hidden, space.logits, seen * LANES)
    loss, of_all, one = nought, nought, every(_f(1))
    first = sigmoid(every(space.logits[0]))
    for tile in range(tiles):
        at = tile * LANES
        rho = first if single else sigmoid(load(space.logits, at))
        sign, weight, slope = load(space.sign, at), load(space.weight, at), load(space.slope, at)
        wrong = sign * (load(space.plain, at) + rho * slope)
        small = exp_of_negative(nought - magnitude(wrong))
        loss = loss + weight * softplus_of(wrong, small)
        by_rho = weight * sign * sigmoid_of(wrong, small) * share * slope
        of_all = of_all + by_rho
        if not single:
            store(space.upstream, at, by_rho * rho * (one - rho))
    if single:
        store(space.upstream, 0, nought)
        store(space.inputs, 0, every(total(of_all)) * first * (one - first))
        space.upstream[0] = space.inputs[0]
    back(theta, widths, space.hidden, space.slopes, space.upstream, seen * LANES)
    weight_gradients(widths, features, space.hidden, space.slopes, space.upstream, seen * LANES, space.t_gradient)
    adam_all(theta, space.t_first, space.t_second, space.t_gradient, adam_scales(rules.lr_theta, steps))
    return np.float64(total(loss))


@inner
def merged_batch(
    tiles: int,
    n: int,
    rows: int,
    dim: int,
    steps: int,
    theta: np.ndarray,
    widths: np.ndarray,
    pool: np.ndarray,
    rules: Rules,
    space: Space,
) -> float:
    """A step on p and Q through the merged rows; returns the sum of the samples' losses before it.

    Where ρ looks at a row of its own, the row's derivative also comes through it: with u the derivatives by the first
    layer's sums, own rows enter as [q, g − q], so that it is u times the difference of the two halves of the weights.
    """
    nought, share, one = every(_f(0)), every(_f(1 / n)), every(_f(1))
    learned, single = len(theta) > 0, len(pool) > 0
    through = learned and not single
    fixed = every(_f(rules.rho))
    if learned:
        if single:
            forward(theta, widths, pool, space.hidden, space.logits, LANES)
            fixed = sigmoid(every(space.logits[0]))
        else:
            forward(theta, widths, space.features, space.hidden, space.logits, tiles * LANES)
    for c in range(dim):
        store(space.p_lanes, c * LANES, nought)
    loss = nought
    for tile in range(tiles):
        at, base = tile * LANES, tile * 2 * dim * LANES
        rho = sigmoid(load(space.logits, at)) if through else fixed
        sign, weight, slope = load(space.sign, at), load(space.weight, at), load(space.slope, at)
        wrong = sign * (load(space.plain, at) + rho * slope)
        small = exp_of_negative(nought - magnitude(wrong))
        loss = loss + weight * softplus_of(wrong, small)
        residual = weight * sign * sigmoid_of(wrong, small) * share
        if through:
            store(space.upstream, at, residual * slope * rho * (one - rho))
        for c in range(dim):
            q, delta = load(space.features, base + c * LANES), load(space.features, base + (dim + c) * LANES)
            store(space.p_lanes, c * LANES, load(space.p_lanes, c * LANES) + residual * (q + rho * delta))
        store(space.logits, at, (one - rho) * residual)  # of the own row, before p
    if through:
        back(theta, widths, space.hidden, space.slopes, space.upstream, tiles * LANES)
    width = widths[1]
    for j in range(width if through else 0):
        for c in range(dim):
            space.folded[j * dim + c] = theta[j * 2 * dim + c] - theta[j * 2 * dim + dim + c]
    for tile in range(tiles):
        direct = load(space.logits, tile * LANES)
        if through:
            source = space.upstream if len(widths) == 2 else space.slopes
            product(space.folded, 0, 1, dim, -1, source, tile * width * LANES, width, space.inputs, 0, dim)
        for c in range(dim):
            found = direct * every(space.p[c])
            if through:
                found = found + load(space.inputs, c * LANES)
            store(space.inputs, c * LANES, found)
        for lane in range(LANES):
            at = place(space.distinct[tile * LANES + lane], dim)
            for c in range(dim):
                space.gradient[at + c * LANES] += space.inputs[c * LANES + lane]
    used = -(-rows // LANES) * LANES * dim
    scales = adam_scales(rules.lr_item, steps)
    adam_all(space.x[:used], space.first, space.second, space.gradient, scales)
    step_of_user(dim, steps, rules, space)
    return np.float64(total(loss))


@inner
def merge_rows(
    own: np.ndarray,
    received: np.ndarray,
    theta: np.ndarray,
    widths: np.ndarray,
    features: np.ndarray,
    hidden: np.ndarray,
    logits: np.ndarray,
    rho: np.ndarray,
) -> None:
    """Eq. 9–10 on a whole table (m, d), in place.

    Args:
        features (2 d · 16,), hidden (Σ h · 16,), logits (16,): room. rho: (m,); written.
    """
    items, dim = own.shape
    for start in range(0, items, LANES):
        count = min(LANES, items - start)
        for lane in range(LANES):
            i = start + min(lane, count - 1)
            for c in range(dim):
                features[c * LANES + lane] = own[i, c]
                features[(dim + c) * LANES + lane] = received[i, c] - own[i, c]
        forward(theta, widths, features, hidden, logits, LANES)
        store(logits, 0, sigmoid(load(logits, 0)))
        for lane in range(count):
            rho[start + lane] = logits[lane]
            for c in range(dim):
                own[start + lane, c] += logits[lane] * features[(dim + c) * LANES + lane]
