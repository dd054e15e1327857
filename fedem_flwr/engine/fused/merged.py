"""Batches that see item rows through the merge (FedEM, AAAI 2026, Eq. 9–12): a step on Θ, then one on p and Q."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedem_flwr.engine.fused.adapter import adapter_step, back_to_rows, looks_at_rows, pairs, through_rho, weigh
from fedem_flwr.engine.fused.compiled import inner
from fedem_flwr.engine.fused.draws import Drawn
from fedem_flwr.engine.fused.functions import adam_all, adam_scales, exp_of_negative, sigmoid, sigmoid_of, softplus_of
from fedem_flwr.engine.fused.lanes import LANES, every, load, magnitude, store, total
from fedem_flwr.engine.fused.network import forward
from fedem_flwr.engine.fused.rows import added_back, distinct_rows, step_of_user
from fedem_flwr.engine.fused.space import Rules, Space

_f: Any = np.float32


@inner
def gather(start: int, end: int, dim: int, room: Drawn, space: Space) -> int:
    """Lay the rows that a batch has, each once, side by side with what the merge would add; returns how many tiles.

    Beside them lie p · q and p · (g − q) of each; see `distinct_rows`.
    """
    tiles = distinct_rows(start, end, room, space.distinct, space.sign, space.weight)
    features = space.adapter.features
    pairs(tiles, False, dim, space.x, space.distinct, space.adapter)
    for tile in range(tiles):
        base = tile * 2 * dim * LANES
        plain, slope = every(_f(0)), every(_f(0))
        for c in range(dim):
            p = every(space.p[c])
            plain = plain + p * load(features, base + c * LANES)
            slope = slope + p * load(features, base + (dim + c) * LANES)
        store(space.plain, tile * LANES, plain)
        store(space.slope, tile * LANES, slope)
    return tiles


@inner
def adapter_batch(tiles: int, n: int, steps: int, rules: Rules, space: Space) -> float:
    """A step on Θ; returns the sum of the samples' losses before it."""
    nought, share = every(_f(0)), every(_f(1 / n))
    weigh(tiles, rules.rho, space.adapter)
    loss = nought
    for at in range(0, tiles * LANES, LANES):
        sign, weight, slope = load(space.sign, at), load(space.weight, at), load(space.slope, at)
        wrong = sign * (load(space.plain, at) + load(space.adapter.rho, at) * slope)
        small = exp_of_negative(nought - magnitude(wrong))
        loss = loss + weight * softplus_of(wrong, small)
        store(space.adapter.upstream, at, weight * sign * sigmoid_of(wrong, small) * share * slope)
    adapter_step(tiles, steps, rules.lr_theta, space.adapter)
    return np.float64(total(loss))


@inner
def merged_batch(tiles: int, n: int, rows: int, dim: int, steps: int, rules: Rules, space: Space) -> float:
    """A step on p and Q through the merged rows; returns the sum of the samples' losses before it.

    Where ρ looks at a row of its own, the row's derivative also comes through it.
    """
    nought, share, one = every(_f(0)), every(_f(1 / n)), every(_f(1))
    adapter, through = space.adapter, looks_at_rows(space.adapter)
    weigh(tiles, rules.rho, adapter)
    for c in range(dim):
        store(space.p_lanes, c * LANES, nought)
    loss = nought
    for tile in range(tiles):
        at, base = tile * LANES, tile * 2 * dim * LANES
        rho, sign, weight, slope = (
            load(adapter.rho, at),
            load(space.sign, at),
            load(space.weight, at),
            load(space.slope, at),
        )
        wrong = sign * (load(space.plain, at) + rho * slope)
        small = exp_of_negative(nought - magnitude(wrong))
        loss = loss + weight * softplus_of(wrong, small)
        residual = weight * sign * sigmoid_of(wrong, small) * share
        store(adapter.upstream, at, residual * slope)
        for c in range(dim):
            q, delta = load(adapter.features, base + c * LANES), load(adapter.features, base + (dim + c) * LANES)
            store(space.p_lanes, c * LANES, load(space.p_lanes, c * LANES) + residual * (q + rho * delta))
        store(space.direct, at, (one - rho) * residual)  # of the own row, before p
    if through:
        back_to_rows(tiles, dim, adapter)
    for tile in range(tiles):
        direct = load(space.direct, tile * LANES)
        if through:
            through_rho(tile, dim, adapter, space.inputs)
        for c in range(dim):
            found = direct * every(space.p[c])
            if through:
                found = found + load(space.inputs, c * LANES)
            store(space.inputs, c * LANES, found)
        added_back(space.inputs, tile, dim, False, space.distinct, space.gradient)
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
