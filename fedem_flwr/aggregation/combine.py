"""Combining tables on the server: weighted sums for personalised methods, row means for one global table."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_BYTES = 64 * 2**20
"""What one gathered item block may take, in bytes, where the caller sets no `block_items`."""


def item_blocks(items: int, bytes_per_item: int, block_items: int | None = None) -> Iterator[slice]:
    """Cut the item axis into consecutive slices.

    Args:
        items: m, the length of the axis.
        bytes_per_item: memory that one item takes in a gathered block (all clients, all components).
        block_items: items a slice; None chooses as many as fit `BLOCK_BYTES`.

    Raises:
        ValueError: if `block_items` is not positive.
    """
    if block_items is None:
        block_items = max(1, BLOCK_BYTES // max(1, bytes_per_item))
    if block_items < 1:
        raise ValueError(f"block_items is {block_items}; it must be at least 1")
    for start in range(0, items, block_items):
        yield slice(start, min(start + block_items, items))


def combine_blocks(weights: Tensor, tables: Tensor, block_items: int | None = None) -> Iterator[tuple[slice, Tensor]]:
    """Form `G_u = Σ_v w_uv Q_v` one item block at a time, so that a caller may spill or send each block.

    Temporary memory is O((K + r) · block · d). Half-precision tables are summed in float32.

    Args:
        weights: (r, K) weights of the r receivers over the K uploaded tables; any float type.
        tables: (K, m, d) uploaded tables; a block at a time is brought to the weights' device.
        block_items: items a block; None chooses as many as fit `BLOCK_BYTES`.

    Yields:
        (slice of items, (r, block, d) combined rows in the tables' type); the rows are fresh memory.

    Raises:
        ValueError: if the shapes disagree or `block_items` is not positive.
    """
    if weights.ndim != 2 or tables.ndim != 3 or weights.shape[1] != tables.shape[0]:
        raise ValueError(
            f"weights {tuple(weights.shape)} do not fit tables {tuple(tables.shape)}; want (r, K) and (K, m, d)"
        )
    clients, items, width = tables.shape
    precision = torch.promote_types(tables.dtype, torch.float32)
    matrix = weights.to(precision)
    bytes_per_item = (clients + len(weights)) * width * precision.itemsize
    for block in item_blocks(items, bytes_per_item, block_items):
        uploaded = tables[:, block].to(matrix.device, precision).reshape(clients, -1)  # (K, block * d)
        combined = (matrix @ uploaded).view(len(weights), -1, width)  # (r, block, d)
        yield block, combined.to(tables.device, tables.dtype)


def combine_tables(
    weights: Tensor, tables: Tensor, block_items: int | None = None, *, out: Tensor | None = None
) -> Tensor:
    """Form the receivers' global tables `G_u = Σ_v w_uv Q_v` (after Eq. 13), one item block at a time.

    Args:
        weights: (r, K) weights of the r receivers over the K uploaded tables.
        tables: (K, m, d) uploaded tables.
        block_items: items a block; None chooses as many as fit `BLOCK_BYTES`.
        out: (r, m, d) tensor to write to. It may be `tables` itself when r = K: a block is read whole before
            it is written. That halves the memory of a server round.

    Returns:
        (r, m, d) combined tables in the tables' type; `out` if it was given.

    Raises:
        ValueError: if the shapes disagree or `block_items` is not positive.
    """
    shape = (len(weights), *tables.shape[1:])
    if out is None:
        out = tables.new_empty(shape)
    elif tuple(out.shape) != shape:
        raise ValueError(f"out has shape {tuple(out.shape)}; want {shape}")
    for block, combined in combine_blocks(weights, tables, block_items):
        out[:, block] = combined
    return out


def average_rows(sums: Tensor, counts: Tensor, previous: Tensor) -> Tensor:
    """Mean of each item row over the clients that touched it; a row that nobody touched stays as it was.

    Args:
        sums: (m, d) sum of the uploaded rows, each times its client's weight where clients are weighted.
        counts: (m,) clients that touched the row, or the sum of their weights; not negative.
        previous: (m, d) the global table before this round.

    Returns:
        (m, d) the new global table, in the type of `previous`.

    Raises:
        ValueError: if the shapes disagree or a count is negative or not finite.
    """
    if sums.shape != previous.shape or counts.shape != sums.shape[:1]:
        raise ValueError(
            f"sums {tuple(sums.shape)}, counts {tuple(counts.shape)} and previous {tuple(previous.shape)} disagree"
        )
    valid = (counts >= 0) & counts.isfinite()
    if not bool(valid.all()):
        row = int((~valid).nonzero()[0])
        raise ValueError(f"counts row {row} is {float(counts[row])}; it must be finite and not negative")
    touched = (counts > 0).unsqueeze(-1)  # (m, 1)
    divisor = counts.where(counts > 0, torch.ones_like(counts)).unsqueeze(-1)  # (m, 1) avoids 0 / 0
    return torch.where(touched, sums / divisor, previous).to(previous.dtype)
