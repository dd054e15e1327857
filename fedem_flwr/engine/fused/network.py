"""A small network of linear layers with ReLU between, for many samples: forward, and backward for weights and inputs.

Of any widths, from the inputs to the outputs; the weights are flat, in the order of `models.mlp.Mlp`. Samples lie in
tiles of sixteen: feature f of sample l is x[(l // 16) * width * 16 + f * 16 + l % 16], so that a tile lies
together, and a vector is one feature of sixteen samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fedem_flwr.engine.fused.compiled import inner
from fedem_flwr.engine.fused.lanes import (
    LANES,
    Lanes,
    add_product,
    every,
    larger,
    load,
    spread,
    store,
    total,
    where_positive,
)

_f: Any = np.float32
_TOGETHER = 8  # outputs that are summed at the same time: as many as a processor can keep apart
_SIDE = 4  # of a square of weights whose gradients are summed at the same time


@inner
def product(
    weights: np.ndarray,
    start: int,
    row: int,
    column: int,
    bias: int,
    x: np.ndarray,
    x_at: int,
    inputs: int,
    out: np.ndarray,
    out_at: int,
    outputs: int,
) -> None:
    """One tile: out[j] = w[bias + j] + Σ_i w[start + j · row + i · column] x[i]; without a bias where it is < 0."""
    nought = every(_f(0))
    j = 0
    while j + _TOGETHER <= outputs:
        b = bias + j
        a0 = spread(weights, b) if bias >= 0 else nought
        a1 = spread(weights, b + 1) if bias >= 0 else nought
        a2 = spread(weights, b + 2) if bias >= 0 else nought
        a3 = spread(weights, b + 3) if bias >= 0 else nought
        a4 = spread(weights, b + 4) if bias >= 0 else nought
        a5 = spread(weights, b + 5) if bias >= 0 else nought
        a6 = spread(weights, b + 6) if bias >= 0 else nought
        a7 = spread(weights, b + 7) if bias >= 0 else nought
        at = start + j * row
        for i in range(inputs):
            v = load(x, x_at + i * LANES)
            w = at
            a0 = add_product(a0, spread(weights, w), v)
            w += row
            a1 = add_product(a1, spread(weights, w), v)
            w += row
            a2 = add_product(a2, spread(weights, w), v)
            w += row
            a3 = add_product(a3, spread(weights, w), v)
            w += row
            a4 = add_product(a4, spread(weights, w), v)
            w += row
            a5 = add_product(a5, spread(weights, w), v)
            w += row
            a6 = add_product(a6, spread(weights, w), v)
            w += row
            a7 = add_product(a7, spread(weights, w), v)
            at += column
        to = out_at + j * LANES
        store(out, to, a0)
        to += LANES
        store(out, to, a1)
        to += LANES
        store(out, to, a2)
        to += LANES
        store(out, to, a3)
        to += LANES
        store(out, to, a4)
        to += LANES
        store(out, to, a5)
        to += LANES
        store(out, to, a6)
        to += LANES
        store(out, to, a7)
        j += _TOGETHER
    while j < outputs:
        a0 = spread(weights, bias + j) if bias >= 0 else nought
        at = start + j * row
        for i in range(inputs):
            a0 = add_product(a0, spread(weights, at), load(x, x_at + i * LANES))
            at += column
        store(out, out_at + j * LANES, a0)
        j += 1


@inner
def forward(theta: np.ndarray, widths: np.ndarray, x: np.ndarray, hidden: np.ndarray, out: np.ndarray, n: int) -> None:
    """Outputs (tiles of widths[-1]) of n samples, whole tiles.

    Args:
        x: inputs. hidden: of all hidden layers, one after the other, each as tiles of all samples; written.
        out: written.
    """
    layers = len(widths) - 1
    nought = every(_f(0))
    for tile in range(n // LANES):
        start, place = 0, 0
        source, source_at = x, tile * widths[0] * LANES
        for layer in range(layers):
            inputs, outputs = widths[layer], widths[layer + 1]
            bias = start + inputs * outputs
            if layer == layers - 1:
                product(theta, start, inputs, 1, bias, source, source_at, inputs, out, tile * outputs * LANES, outputs)
            else:
                to = place + tile * outputs * LANES
                product(theta, start, inputs, 1, bias, source, source_at, inputs, hidden, to, outputs)
                for at in range(to, to + outputs * LANES, LANES):
                    store(hidden, at, larger(load(hidden, at), nought))
                source, source_at = hidden, to
                place += n * outputs
            start = bias + outputs


@inner
def back(
    theta: np.ndarray,
    widths: np.ndarray,
    hidden: np.ndarray,
    slopes: np.ndarray,
    upstream: np.ndarray,
    n: int,
) -> None:
    """Derivatives by what the hidden layers sum up, before ReLU, given those by the outputs.

    Args:
        hidden: as `forward` left it. slopes: laid out like it; written.
        upstream: tiles of widths[-1], derivatives by the outputs.
    """
    layers = len(widths) - 1
    nought = every(_f(0))
    end, place = 0, 0
    for layer in range(layers):
        end += (widths[layer] + 1) * widths[layer + 1]
    for layer in range(1, layers):
        place += n * widths[layer]
    source, source_place = upstream, 0
    for layer in range(layers - 1, 0, -1):
        inputs, outputs = widths[layer], widths[layer + 1]
        end -= (inputs + 1) * outputs
        place -= n * inputs
        for tile in range(n // LANES):
            to, at = place + tile * inputs * LANES, source_place + tile * outputs * LANES
            product(theta, end, 1, inputs, -1, source, at, outputs, slopes, to, inputs)
            for one in range(to, to + inputs * LANES, LANES):
                store(slopes, one, where_positive(load(hidden, one), load(slopes, one), nought))
        source, source_place = slopes, place


@inner
def weight_gradients(
    widths: np.ndarray,
    x: np.ndarray,
    hidden: np.ndarray,
    slopes: np.ndarray,
    upstream: np.ndarray,
    n: int,
    gradient: np.ndarray,
) -> None:
    """Add Σ over the samples to the gradient of all weights, laid out like them; see `back`."""
    layers = len(widths) - 1
    start, place = 0, 0
    source, source_place = x, 0
    for layer in range(layers):
        inputs, outputs = widths[layer], widths[layer + 1]
        after, after_place = (upstream, 0) if layer == layers - 1 else (slopes, place)
        outer(source, source_place, inputs, after, after_place, outputs, n, gradient, start)
        bias = start + inputs * outputs
        for j in range(outputs):
            found = every(_f(0))
            for tile in range(n // LANES):
                found = found + load(after, after_place + (tile * outputs + j) * LANES)
            gradient[bias + j] += total(found)
        if layer < layers - 1:
            source, source_place = hidden, place
            place += n * outputs
        start = bias + outputs


@inner
def outer(
    x: np.ndarray,
    x_place: int,
    inputs: int,
    y: np.ndarray,
    y_place: int,
    outputs: int,
    n: int,
    gradient: np.ndarray,
    start: int,
) -> None:
    """gradient[start + j · inputs + i] += Σ over the samples y[j] x[i], in squares that stay in registers."""
    nought = every(_f(0))
    whole_i, whole_j = inputs - inputs % _SIDE, outputs - outputs % _SIDE
    for j in range(0, whole_j, _SIDE):
        for i in range(0, whole_i, _SIDE):
            a00 = nought
            a01 = nought
            a02 = nought
            a03 = nought
            a10 = nought
            a11 = nought
            a12 = nought
            a13 = nought
            a20 = nought
            a21 = nought
            a22 = nought
            a23 = nought
            a30 = nought
            a31 = nought
            a32 = nought
            a33 = nought
            at = x_place + i * LANES
            to = y_place + j * LANES
            for _ in range(n // LANES):
                x0 = load(x, at)
                x1 = load(x, at + 1 * LANES)
                x2 = load(x, at + 2 * LANES)
                x3 = load(x, at + 3 * LANES)
                u = load(y, to)
                a00 = add_product(a00, u, x0)
                a01 = add_product(a01, u, x1)
                a02 = add_product(a02, u, x2)
                a03 = add_product(a03, u, x3)
                u = load(y, to + 1 * LANES)
                a10 = add_product(a10, u, x0)
                a11 = add_product(a11, u, x1)
                a12 = add_product(a12, u, x2)
                a13 = add_product(a13, u, x3)
                u = load(y, to + 2 * LANES)
                a20 = add_product(a20, u, x0)
                a21 = add_product(a21, u, x1)
                a22 = add_product(a22, u, x2)
                a23 = add_product(a23, u, x3)
                u = load(y, to + 3 * LANES)
                a30 = add_product(a30, u, x0)
                a31 = add_product(a31, u, x1)
                a32 = add_product(a32, u, x2)
                a33 = add_product(a33, u, x3)
                at += inputs * LANES
                to += outputs * LANES
            g = start + j * inputs + i
            _add_four(gradient, g, a00, a01, a02, a03)
            _add_four(gradient, g + inputs, a10, a11, a12, a13)
            _add_four(gradient, g + 2 * inputs, a20, a21, a22, a23)
            _add_four(gradient, g + 3 * inputs, a30, a31, a32, a33)
    for j in range(outputs):
        for i in range(whole_i if j < whole_j else 0, inputs):
            found = nought
            at = x_place + i * LANES
            to = y_place + j * LANES
            for _ in range(n // LANES):
                found = add_product(found, load(y, to), load(x, at))
                at += inputs * LANES
                to += outputs * LANES
            gradient[start + j * inputs + i] += total(found)


@inner
def _add_four(gradient: np.ndarray, at: int, a: Lanes, b: Lanes, c: Lanes, d: Lanes) -> None:
    gradient[at] += total(a)
    gradient[at + 1] += total(b)
    gradient[at + 2] += total(c)
    gradient[at + 3] += total(d)
