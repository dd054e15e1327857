"""Item rows of a client in a kernel, and the rounds that see them as they lie (FedEM, AAAI 2026, Eq. 12).

A program is a client. Its rows and their moments lie in the device's memory (the cache, while it runs), padded to
`wide` numbers; its vectors are in registers. Functions of `engine.fused`, written for a device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

from fedem_flwr.engine.optimizer import BETA_1, BETA_2, EPSILON

_ADAM, _FREQUENCY_SGD = tl.constexpr(0), tl.constexpr(2)
_B1, _B2, _C1, _C2 = (tl.constexpr(x) for x in (BETA_1, BETA_2, 1 - BETA_1, 1 - BETA_2))
_EPSILON = tl.constexpr(EPSILON)
_COUNTS = ("samples", "items", "parameters", "epochs", "batch")  # one program serves whatever they are


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function for the device, when it is first called; or its calls are interpreted."""
    return triton.jit(function, do_not_specialize=_COUNTS)


@kernel
def _one(x: tl.tensor) -> None:
    tl.store(x, 1)


def try_out(device: torch.device) -> None:
    """Run a kernel.

    Raises:
        Exception: of whatever kind; kernels do not run on the device.
    """
    found = torch.zeros(1, dtype=torch.int32, device=device)
    _one[1,](found)
    if int(found) != 1:
        raise RuntimeError("a kernel wrote nothing")


@kernel
def adam(
    value: tl.tensor, first: tl.tensor, second: tl.tensor, gradient: tl.tensor, one: tl.tensor, other: tl.tensor
) -> tl.tensor:
    """One step, given what it multiplies the first moment with, and the root of the second."""
    first = _B1 * first + _C1 * gradient
    second = _B2 * second + _C2 * gradient * gradient
    return value - one * first / (tl.sqrt(second) * other + _EPSILON), first, second


@kernel
def sigmoid(x: tl.tensor) -> tl.tensor:
    """σ(x); small values keep their relative precision."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x > 0, 1.0, small) / (1.0 + small)


@kernel
def residuals(logits: tl.tensor, sign: tl.tensor, weight: tl.tensor) -> tl.tensor:
    """Sums of cross-entropy, and derivatives by the logits, of weighted rows; see `models.mf.loss_and_residual`."""
    wrong = sign * logits
    loss = tl.sum(weight * (tl.maximum(wrong, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(wrong)))), 0)
    return loss, weight * sign * sigmoid(wrong)


@kernel
def stands_still(
    mean: tl.tensor, before: tl.tensor, epoch: tl.tensor, epochs: tl.tensor, early_stop: tl.tensor
) -> tl.tensor:
    """Whether a client stops, as in `engine.epochs.train_epochs`."""
    looked = (epoch > 0) & (epoch < epochs - 1)
    return looked & (tl.abs(mean - before) < early_stop * tl.abs(before + 1e-5))


@kernel
def load_rows(
    table: tl.tensor,
    touched: tl.tensor,
    x: tl.tensor,
    base: tl.tensor,
    rows: tl.tensor,
    dim: tl.constexpr,
    wide: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """Copy a client's rows of a table (m, d) to its place."""
    column = tl.arange(0, wide)
    for start in range(0, rows, tile):
        row = start + tl.arange(0, tile)
        item = tl.load(touched + base + row, mask=row < rows, other=0)
        inside = (row < rows)[:, None] & (column < dim)[None, :]
        values = tl.load(table + item[:, None] * dim + column[None, :], mask=inside, other=0.0)
        tl.store(x + (base + row)[:, None] * wide + column[None, :], values, mask=inside)


@kernel
def store_rows(
    table: tl.tensor,
    touched: tl.tensor,
    x: tl.tensor,
    base: tl.tensor,
    rows: tl.tensor,
    dim: tl.constexpr,
    wide: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """Copy them back."""
    column = tl.arange(0, wide)
    for start in range(0, rows, tile):
        row = start + tl.arange(0, tile)
        item = tl.load(touched + base + row, mask=row < rows, other=0)
        inside = (row < rows)[:, None] & (column < dim)[None, :]
        values = tl.load(x + (base + row)[:, None] * wide + column[None, :], mask=inside, other=0.0)
        tl.store(table + item[:, None] * dim + column[None, :], values, mask=inside)


@kernel
def batch_rows(
    order: tl.tensor,
    weights: tl.tensor,
    at: tl.tensor,
    start: tl.tensor,
    n: tl.tensor,
    ordered: tl.constexpr,
    tile: tl.constexpr,
) -> tl.tensor:
    """Rows and weights of a batch from its sample `start` on."""
    lane = start + tl.arange(0, tile)
    row = tl.load(order + at + lane, mask=lane < n, other=0)
    weight = tl.load(weights + at + lane, mask=lane < n, other=0.0) if ordered else tl.where(lane < n, 1.0, 0.0)
    return row, weight


@kernel
def train_plain(
    users: tl.tensor,
    tables: tl.tensor,
    who: tl.tensor,
    slot: tl.tensor,
    offsets: tl.tensor,
    places: tl.tensor,
    counts: tl.tensor,
    touched: tl.tensor,
    sign: tl.tensor,
    order: tl.tensor,
    weights: tl.tensor,
    x: tl.tensor,
    first: tl.tensor,
    second: tl.tensor,
    slope: tl.tensor,
    often: tl.tensor,
    scales: tl.tensor,
    losses: tl.tensor,
    samples: tl.tensor,
    items: tl.tensor,
    epochs: tl.tensor,
    batch: tl.tensor,
    lr_user: tl.tensor,
    lr_item: tl.tensor,
    ridge: tl.tensor,
    early_stop: tl.tensor,
    own: tl.constexpr,
    rule: tl.constexpr,
    counted: tl.constexpr,
    ordered: tl.constexpr,
    dim: tl.constexpr,
    wide: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """A client's round; the program's number is the client's.

    Args:
        users: (n, d). tables: (r, m, d), and `slot` (k,) the client's. who: (k,) positions in the cohort.
        offsets, places, counts, touched, sign: see `draws.Drawn`. order, weights: see `draws.Batches`.
        x, first, second: (r, wide) room for rows and moments. slope, often: (r,) 0.
        scales: (2, t) of Adam's steps, at a rate of 1. losses: (k,) float64, written.
        samples: s of all. batch: samples of one; 0: all of a client.
        own: whether rows are written back. counted: whether a step looks at how often a batch has a row.
    """
    client = tl.program_id(0)
    user, base = tl.load(who + client), tl.load(places + client)
    begin = tl.load(offsets + client)
    count = (tl.load(offsets + client + 1) - begin).to(tl.int32)
    rows = tl.load(counts + client)
    table = tables + tl.load(slot + client) * items * dim
    column = tl.arange(0, wide)
    p = tl.load(users + user * dim + column, mask=column < dim, other=0.0)
    p_first, p_second = tl.zeros((wide,), tl.float32), tl.zeros((wide,), tl.float32)
    load_rows(table, touched, x, base, rows, dim, wide, tile)
    tl.debug_barrier()
    size = tl.where(batch == 0, tl.maximum(count, 1), batch)
    total, mean = tl.zeros((), tl.float64), tl.zeros((), tl.float64)
    epoch, step, going = 0, 0, (count > 0) & (epochs > 0)
    while going:
        for start in range(0, count, size):
            n = tl.minimum(size, count - start)
            at = begin + start + epoch * samples
            share = 1.0 / n.to(tl.float32)
            by_user = tl.zeros((wide,), tl.float32)
            for some in range(0, n, tile):
                row, weight = batch_rows(order, weights, at, some, n, ordered, tile)
                q = tl.load(x + (base + row)[:, None] * wide + column[None, :])
                loss, residual = residuals(tl.sum(q * p[None, :], 1), tl.load(sign + base + row), weight)
                total += loss.to(tl.float64)
                residual = residual * share
                by_user += tl.sum(residual[:, None] * q, 0)
                if ordered:
                    tl.store(slope + base + row, residual, mask=weight > 0)
                    if counted:
                        tl.store(often + base + row, weight, mask=weight > 0)
                else:
                    tl.atomic_add(slope + base + row, residual, mask=weight > 0, sem="relaxed")
                    if counted:
                        tl.atomic_add(often + base + row, weight, mask=weight > 0, sem="relaxed")
            step += 1
            one, other = tl.load(scales + 2 * step), tl.load(scales + 2 * step + 1)
            tl.debug_barrier()
            for some in range(0, rows, tile):
                row = some + tl.arange(0, tile)
                inside, spot = row < rows, (base + row)[:, None] * wide + column[None, :]
                q = tl.load(x + spot, mask=inside[:, None], other=0.0)
                gradient = tl.load(slope + base + row, mask=inside, other=0.0)[:, None] * p[None, :]
                tl.store(slope + base + row, tl.zeros((tile,), tl.float32), mask=inside)
                rate = lr_item
                if counted:
                    times = tl.load(often + base + row, mask=inside, other=0.0)
                    tl.store(often + base + row, tl.zeros((tile,), tl.float32), mask=inside)
                    gradient += (2.0 * ridge * share * times)[:, None] * q
                    if rule == _FREQUENCY_SGD:
                        gradient = gradient * (n / tl.maximum(times, 1.0))[:, None]
                if rule == _ADAM:
                    m = tl.load(first + spot, mask=inside[:, None], other=0.0)
                    v = tl.load(second + spot, mask=inside[:, None], other=0.0)
                    q, m, v = adam(q, m, v, gradient, rate * one, other)
                    tl.store(first + spot, m, mask=inside[:, None])
                    tl.store(second + spot, v, mask=inside[:, None])
                else:
                    q = q - rate * gradient
                tl.store(x + spot, q, mask=inside[:, None])
            by_user += 2.0 * ridge * p
            if rule == _ADAM:
                p, p_first, p_second = adam(p, p_first, p_second, by_user, lr_user * one, other)
            else:
                p = p - lr_user * by_user
            tl.debug_barrier()
        before = mean
        mean = total / (count * (epoch + 1)).to(tl.float64)
        still = stands_still(mean, before, epoch, epochs, early_stop)
        epoch += 1
        going = (epoch < epochs) & (still == 0)
    tl.store(losses + client, mean)
    tl.store(users + user * dim + column, p, mask=column < dim)
    if own:
        store_rows(table, touched, x, base, rows, dim, wide, tile)
