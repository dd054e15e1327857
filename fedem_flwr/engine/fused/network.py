"""A small network of linear layers with ReLU between, for many samples: forward, and backward for weights and inputs.

Of any widths. Samples lie in tiles of sixteen: feature f of sample l is `x[(l // 16) * width * 16 + f * 16 + l % 16]`, so
that all a tile's features lie together, and a vector is one feature of sixteen samples. The weights are flat, in the
order of `models.mlp.Mlp`. `widths` are from the inputs to the outputs.
"""

from __future__ import annotations

import numpy as np

from fedem_flwr.engine.fused.compiled import inner
from fedem_flwr.engine.fused.lanes import LANES, every, larger, load, store, total, where_positive

_f = np.float32
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
        a0, a1, a2, a3, a4, a5, a6, a7 = nought, nought, nought, nought, nought, nought, nought, nought
        if bias >= 0:
            b = bias + j
            a0, a1, a2, a3 = every(weights[b]), every(weights[b + 1]), every(weights[b + 2]), every(weights[b + 3])
            a4, a5, a6, a7 = every(weights[b + 4]), every(weights[b + 5]), every(weights[b + 6]), every(weights[b + 7])
        at = start + j * row
        for i in range(inputs):
            v = load(x, x_at + i * LANES)
            a0 = a0 + every(weights[at]) * v
            a1 = a1 + every(weights[at + row]) * v
            a2 = a2 + every(weights[at + 2 * row]) * v
            a3 = a3 + every(weights[at + 3 * row]) * v
            a4 = a4 + every(weights[at + 4 * row]) * v
            a5 = a5 + every(weights[at + 5 * row]) * v
            a6 = a6 + every(weights[at + 6 * row]) * v
            a7 = a7 + every(weights[at + 7 * row]) * v
            at += column
        to = out_at + j * LANES
        store(out, to, a0)
        store(out, to + LANES, a1)
        store(out, to + 2 * LANES, a2)
        store(out, to + 3 * LANES, a3)
        store(out, to + 4 * LANES, a4)
        store(out, to + 5 * LANES, a5)
        store(out, to + 6 * LANES, a6)
        store(out, to + 7 * LANES, a7)
        j += _TOGETHER
    while j < outputs:
        a0 = nought
        if bias >= 0:
            a0 = every(weights[bias + j])
        at = start + j * row
        for i in range(inputs):
            a0 = a0 + every(weights[at]) * load(x, x_at + i * LANES)
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
                product(
                    theta, start, inputs, 1, bias, source, source_at, inputs, out, tile * outputs * LANES, outputs
                )
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
    u: np.ndarray,
    u_place: int,
    outputs: int,
    n: int,
    gradient: np.ndarray,
    start: int,
) -> None:
    """gradient[start + j · inputs + i] += Σ over the samples u[j] x[i], in squares that stay in registers."""
    nought = every(_f(0))
    whole_i, whole_j = inputs - inputs % _SIDE, outputs - outputs % _SIDE
    for j in range(0, whole_j, _SIDE):
        for i in range(0, whole_i, _SIDE):
            a00, a01, a02, a03 = nought, nought, nought, nought
            a10, a11, a12, a13 = nought, nought, nought, nought
            a20, a21, a22, a23 = nought, nought, nought, nought
            a30, a31, a32, a33 = nought, nought, nought, nought
            at, to = x_place + i * LANES, u_place + j * LANES
            for _ in range(n // LANES):
                x0, x1 = load(x, at), load(x, at + LANES)
                x2, x3 = load(x, at + 2 * LANES), load(x, at + 3 * LANES)
                u0, u1 = load(u, to), load(u, to + LANES)
                u2, u3 = load(u, to + 2 * LANES), load(u, to + 3 * LANES)
                a00, a01, a02, a03 = a00 + u0 * x0, a01 + u0 * x1, a02 + u0 * x2, a03 + u0 * x3
                a10, a11, a12, a13 = a10 + u1 * x0, a11 + u1 * x1, a12 + u1 * x2, a13 + u1 * x3
                a20, a21, a22, a23 = a20 + u2 * x0, a21 + u2 * x1, a22 + u2 * x2, a23 + u2 * x3
                a30, a31, a32, a33 = a30 + u3 * x0, a31 + u3 * x1, a32 + u3 * x2, a33 + u3 * x3
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
            at, to = x_place + i * LANES, u_place + j * LANES
            for _ in range(n // LANES):
                found = found + load(u, to) * load(x, at)
                at += inputs * LANES
                to += outputs * LANES
            gradient[start + j * inputs + i] += total(found)


@inner
def _add_four(gradient: np.ndarray, at: int, a: object, b: object, c: object, d: object) -> None:
    gradient[at] += total(a)
    gradient[at + 1] += total(b)
    gradient[at + 2] += total(c)
    gradient[at + 3] += total(d)
