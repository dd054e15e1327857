"""Batches of methods that score with a network over item rows: heads, shared networks, two tables that are added up.

What a client's vector adds to the first layer is the same for all rows of a batch, so it becomes part of that layer's
bias: rows see a smaller, `folded` network. A vector alone is a linear layer whose bias is 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fedem_flwr.engine.fused.adapter import (
    adapter_step,
    back_to_rows,
    looks_at_rows,
    mixed,
    pairs,
    through_rho,
    unmixed,
    weigh,
)
from fedem_flwr.engine.fused.compiled import inner
from fedem_flwr.engine.fused.draws import Drawn
from fedem_flwr.engine.fused.functions import adam, adam_scales, exp_of_negative, fill, sigmoid_of, softplus_of
from fedem_flwr.engine.fused.lanes import LANES, Lanes, every, larger, load, magnitude, store, total, where_positive
from fedem_flwr.engine.fused.layer_space import FIRST, SECOND, USER, WEIGHTS, LayerSpace, Steps
from fedem_flwr.engine.fused.mixing import AdapterSpace
from fedem_flwr.engine.fused.moving import Moving
from fedem_flwr.engine.fused.network import back, forward, product, weight_gradients
from fedem_flwr.engine.fused.rows import added_back, distinct_rows, laid_aside
from fedem_flwr.engine.fused.space import Rules

_f: Any = np.float32
_ON_THETA = -1  # the update before the others; of a part, that nothing moves it


@inner
def layered_batch(
    start: int,
    end: int,
    rows: int,
    taken: int,
    steps: Steps,
    rules: Rules,
    room: Drawn,
    space: LayerSpace,
    merge: AdapterSpace | None,
) -> float:
    """The updates of a batch, one after the other, each of the mean over the samples from `start` to `end`.

    Where rows are merged, a step on Θ may come before them; the compiler leaves all of it out where `merge` is None.

    All touched rows are scored as they lie, with how often the batch has them, where that is little more work than
    to score those that it has: each number of a row that is laid aside, and added back, is in a cache line of its own.

    Args:
        taken: steps of the round, this one included.

    Returns:
        The sum of the samples' losses before the first, or before the step on Θ where there is no other.
    """
    used = -(-rows // LANES) * LANES
    tiles = distinct_rows(start, end, room, space.distinct, space.sign, space.weight)
    whole = used <= 2 * tiles * LANES or (len(steps.widths) == 2 and merge is None)
    if whole:
        tiles = _all_rows(tiles, used, room, space)
    as_they_lie = whole and not steps.added and not steps.rank and merge is None
    features = space.x.values if as_they_lie else space.features
    share, loss = _f(1 / (end - start)), 0.0
    begin = 0
    if merge is not None and rules.adapts:
        begin = _ON_THETA
    for update in range(begin, steps.updates):
        if not as_they_lie:
            _seen_rows(tiles, whole, steps, rules, space, merge)
        found = _scored(tiles, share, features, steps, space)
        if update <= 0:
            loss = found
        back(space.folded, steps.widths, space.hidden, space.slopes, space.upstream, tiles * LANES)
        on_theta = update == _ON_THETA
        first, second = not on_theta and steps.update[FIRST] == update, not on_theta and steps.update[SECOND] == update
        if first or second or on_theta:
            _row_gradients(tiles, whole, share, features, first, second, steps, space, merge)
        if merge is not None and on_theta:
            adapter_step(tiles, taken, rules.lr_theta, merge)
            continue
        if steps.update[WEIGHTS] == update or steps.update[USER] == update:
            _vector_gradients(tiles, features, steps, space)
        if first:
            _move(space.x, used * (steps.rank or steps.widths[0]), FIRST, taken, steps.towards, steps, space)
        if second:
            _move(space.y, used * steps.widths[0], SECOND, taken, False, steps, space)
        if steps.update[WEIGHTS] == update:
            _move(space.weights, len(space.weights.values), WEIGHTS, taken, False, steps, space)
        if steps.update[USER] == update:
            _move(space.user, len(space.user.values), USER, taken, False, steps, space)
    for part in range(4):
        space.rates[part] *= steps.fadings[part]
    return loss


@inner
def _all_rows(tiles: int, used: int, room: Drawn, space: LayerSpace) -> int:
    """Put the signs and weights of all `used` touched rows in the place of the batch's; returns how many tiles."""
    for lane in range(tiles * LANES):
        room.weight[space.distinct[lane]] += space.weight[lane]
    for at in range(0, used, LANES):
        store(space.sign, at, load(room.sign, at))
        store(space.weight, at, load(room.weight, at))
        store(room.weight, at, every(_f(0)))
    return used // LANES


@inner
def _scored(tiles: int, share: Any, features: np.ndarray, steps: Steps, space: LayerSpace) -> float:
    """Scores of the batch's rows, and derivatives of the mean loss by them; returns the sum of the losses."""
    _fold(steps, space)
    forward(space.folded, steps.widths, features, space.hidden, space.logits, tiles * LANES)
    nought = every(_f(0))
    loss = nought
    for at in range(0, tiles * LANES, LANES):
        sign, weight = load(space.sign, at), load(space.weight, at)
        wrong = sign * load(space.logits, at)
        small = exp_of_negative(nought - magnitude(wrong))
        loss = loss + weight * softplus_of(wrong, small)
        store(space.upstream, at, weight * sign * sigmoid_of(wrong, small) * every(share))
    return np.float64(total(loss))


@inner
def _tile_of(
    index: int, tile: int, whole: bool, steps: Steps, space: LayerSpace, merge: AdapterSpace | None, out: np.ndarray
) -> None:
    """A tile of the first or the second rows, as they are seen."""
    if merge is not None and steps.merged == index:
        mixed(tile, steps.widths[0], merge, out)
        return
    rows = space.x.values if index == FIRST else space.y.values
    laid_aside(rows, tile, steps.widths[0], whole, space.distinct, out, 0)


@inner
def _seen_rows(
    tiles: int, whole: bool, steps: Steps, rules: Rules, space: LayerSpace, merge: AdapterSpace | None
) -> None:
    """Lay the batch's rows side by side, as the network sees them."""
    dim, rank = steps.widths[0], steps.rank
    if merge is not None:
        own = space.x.values if steps.merged == FIRST else space.y.values
        pairs(tiles, whole, dim, own, space.distinct, merge)
        weigh(tiles, rules.rho, merge)
    for tile in range(tiles):
        base = tile * dim * LANES
        if rank:
            laid_aside(space.x.values, tile, rank, whole, space.distinct, space.low, 0)
            product(space.basis, 0, 1, dim, -1, space.low, 0, rank, space.inputs, 0, dim)
        else:
            _tile_of(FIRST, tile, whole, steps, space, merge, space.inputs)
        if rank or steps.added:
            _tile_of(SECOND, tile, whole, steps, space, merge, space.others)
        for at in range(0, dim * LANES, LANES):
            seen = load(space.inputs, at)
            if rank or steps.added:
                seen = seen + load(space.others, at)
            store(space.features, base + at, seen)


@inner
def _fold(steps: Steps, space: LayerSpace) -> None:
    """The network with the user's vector in its first bias."""
    theta, p = space.weights.values, space.user.values
    dim, hidden, beside = steps.widths[0], steps.widths[1], steps.beside
    wide = beside + dim
    for j in range(hidden):
        bias = theta[hidden * wide + j] if steps.biased else _f(0)
        for c in range(beside):
            bias += theta[j * wide + c] * p[c]
        for c in range(dim):
            space.folded[j * dim + c] = theta[j * wide + beside + c]
        space.folded[hidden * dim + j] = bias
    for at in range(hidden * (dim + 1), len(space.folded)):
        space.folded[at] = theta[at + hidden * beside]


@inner
def _vector_gradients(tiles: int, features: np.ndarray, steps: Steps, space: LayerSpace) -> None:
    """Gradients of the weights and of the user's vector, out of the folded network's."""
    found, theta, p = space.folded_gradient, space.weights.values, space.user.values
    into, by_p = space.weights.gradient, space.user.gradient
    fill(found, len(found), _f(0))
    fill(by_p, steps.beside, _f(0))
    weight_gradients(steps.widths, features, space.hidden, space.slopes, space.upstream, tiles * LANES, found)
    dim, hidden, beside = steps.widths[0], steps.widths[1], steps.beside
    wide = beside + dim
    for j in range(hidden):
        of_bias = found[hidden * dim + j]
        for c in range(beside):
            into[j * wide + c] = of_bias * p[c]
            by_p[c] += of_bias * theta[j * wide + c]
        for c in range(dim):
            into[j * wide + beside + c] = found[j * dim + c]
        if steps.biased:
            into[hidden * wide + j] = of_bias
    for at in range(hidden * (dim + 1), len(found)):
        into[at + hidden * beside] = found[at]


@inner
def _row_gradients(
    tiles: int,
    whole: bool,
    share: Any,
    features: np.ndarray,
    first: bool,
    second: bool,
    steps: Steps,
    space: LayerSpace,
    merge: AdapterSpace | None,
) -> None:
    """Gradients of the rows: through the network and the basis, and of what is added to the loss.

    Args:
        first, second: which of the two are about to move. Neither: the derivatives by ρ are all that is wanted.
    """
    dim, width, rank = steps.widths[0], steps.widths[1], steps.rank
    source = space.upstream if len(steps.widths) == 2 else space.slopes
    one, ridge, often = every(_f(1)), every(_f(steps.ridge)), steps.often and first
    for tile in range(tiles):
        base = tile * dim * LANES
        product(space.folded, 0, 1, dim, -1, source, tile * width * LANES, width, space.inputs, 0, dim)
        weight = load(space.weight, tile * LANES)
        times = weight * every(share)
        if steps.ridge != 0 or often:
            scale = one / (larger(weight, one) * every(share)) if often else one
            for at in range(0, dim * LANES, LANES):
                decayed = load(space.inputs, at) + ridge * times * load(features, base + at)
                store(space.inputs, at, scale * decayed)
        if steps.added:
            _tile_of(SECOND, tile, whole, steps, space, merge, space.others)
            _of_two(base, times, features, steps, space)
        if merge is not None:
            unmixed(tile, dim, merge, space.inputs if steps.merged == FIRST else space.others)
        if second and steps.added:
            added_back(space.others, tile, dim, whole, space.distinct, space.y.gradient)
        if first and rank:
            product(space.basis, 0, dim, 1, -1, space.inputs, 0, dim, space.low, 0, rank)
            added_back(space.low, tile, rank, whole, space.distinct, space.x.gradient)
        elif first:
            added_back(space.inputs, tile, dim, whole, space.distinct, space.x.gradient)
    if merge is not None and looks_at_rows(merge) and (first if steps.merged == FIRST else second):
        gradient = space.x.gradient if steps.merged == FIRST else space.y.gradient
        back_to_rows(tiles, dim, merge)
        for tile in range(tiles):
            through_rho(tile, dim, merge, space.inputs)
            added_back(space.inputs, tile, dim, whole, space.distinct, gradient)


@inner
def _of_two(base: int, often: Lanes, features: np.ndarray, steps: Steps, space: LayerSpace) -> None:
    """Gradients of a tile of both tables, which `inputs` and `others` then hold, with what is added for their sake."""
    nought = every(_f(0))
    apart, sparse = often * every(_f(steps.apart)), often * every(_f(steps.sparse))
    for at in range(0, steps.widths[0] * LANES, LANES):
        found, other = load(space.inputs, at), load(space.others, at)
        away = apart * (load(features, base + at) - other - other)
        size = where_positive(other, sparse, where_positive(nought - other, nought - sparse, nought))
        store(space.inputs, at, found - away)
        store(space.others, at, found + away + size)


@inner
def _move(part: Moving, count: int, index: int, taken: int, towards: bool, steps: Steps, space: LayerSpace) -> None:
    """A step of the first `count` numbers, pulled to 0, or to the second rows; gradients are 0 afterwards."""
    pull, nought = every(_f(steps.pulls[index])), every(_f(0))
    if steps.adam[index]:
        scales = adam_scales(space.rates[index], taken)
        for at in range(0, count, LANES):
            gradient = load(part.gradient, at) + pull * load(part.values, at)
            adam(part.values, part.first, part.second, at, gradient, scales)
            store(part.gradient, at, nought)
        return
    rate = every(_f(space.rates[index]))
    for at in range(0, count, LANES):
        value = load(part.values, at)
        way = value - load(space.y.values, at) if towards else value
        store(part.values, at, value - rate * (load(part.gradient, at) + pull * way))
        store(part.gradient, at, nought)
