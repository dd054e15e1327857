"""The adapter of two hidden layers in a kernel (FedEM, AAAI 2026, Eq. 9), forward and backward for a tile of rows.

It is in registers, its widths padded to `wide1` and `wide2`: what pads it is 0 and stays 0. Inputs are own rows and
what the merge would add to them, with a block of the first layer's weights each.
"""

from __future__ import annotations

import triton.language as tl

from fedem_flwr.engine.gpu.rows import kernel, sigmoid


@kernel
def layer(
    theta: tl.tensor,
    begin: tl.tensor,
    stride: tl.tensor,
    n_in: tl.tensor,
    n_out: tl.tensor,
    wide_in: tl.constexpr,
    wide_out: tl.constexpr,
) -> tl.tensor:
    """Weights (in, out) of a layer that lies as (out, in), rows `stride` apart; where they lie, and which are real."""
    row, column = tl.arange(0, wide_in), tl.arange(0, wide_out)
    place = theta + begin + column[None, :] * stride + row[:, None]
    real = (row < n_in)[:, None] & (column < n_out)[None, :]
    return tl.load(place, mask=real, other=0.0), place, real


@kernel
def bias(theta: tl.tensor, begin: tl.tensor, n: tl.tensor, wide: tl.constexpr) -> tl.tensor:
    """(n,) numbers; where they lie, and which are real."""
    column = tl.arange(0, wide)
    return tl.load(theta + begin + column, mask=column < n, other=0.0), theta + begin + column, column < n


@kernel
def product(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """A matrix product in single precision."""
    return tl.dot(a, b, input_precision="ieee")


@kernel
def forward(
    q: tl.tensor,
    delta: tl.tensor,
    w_own: tl.tensor,
    w_more: tl.tensor,
    b1: tl.tensor,
    w2: tl.tensor,
    b2: tl.tensor,
    w3: tl.tensor,
    b3: tl.tensor,
) -> tl.tensor:
    """Both hidden layers, and ρ, of a tile of rows."""
    one = tl.maximum(product(q, w_own) + product(delta, w_more) + b1[None, :], 0.0)
    two = tl.maximum(product(one, w2) + b2[None, :], 0.0)
    return one, two, sigmoid(tl.sum(two * w3[None, :], 1) + b3)


@kernel
def backward(at_output: tl.tensor, one: tl.tensor, two: tl.tensor, w2: tl.tensor, w3: tl.tensor) -> tl.tensor:
    """Derivatives by the sums of both hidden layers, given those (tile,) by the output's."""
    by_two = tl.where(two > 0, at_output[:, None] * w3[None, :], 0.0)
    return tl.where(one > 0, product(by_two, tl.trans(w2)), 0.0), by_two
