"""How alike the clients' item tables are: the σ_uv of FedEM's Eq. 13 and of its released program."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fedem_flwr.aggregation.combine import item_blocks

SimilarityKind = Literal["frobenius", "pca", "cosine"]
PcaSign = Literal["raw", "fixed"]

_TILE = 128  # clients a tile of the Gram matrix; only tiles on and above the diagonal are computed


def similarity(
    tables: Tensor,
    kind: SimilarityKind = "frobenius",
    *,
    pca_sign: PcaSign = "raw",
    saturate: float | None = None,
    block_items: int | None = None,
    place: torch.device | None = None,
) -> Tensor:
    """Similarity of every pair of clients, from their uploaded tables.

    - ``frobenius`` (the paper, Eq. 13): 1 / (1 + ||Q_u - Q_v||²_F) on whole tables.
    - ``pca`` (the released program): 1 / (1 + ||x_u - x_v||) with x_u = `principal_scores` of client u.
    - ``cosine``: max(0, cos) of the flattened tables; 0 where a table is all zeros.

    Args:
        tables: (K, m, d) uploaded tables, any float type.
        kind: which of the three.
        pca_sign: for ``pca`` only, see `principal_scores`.
        saturate: values above it become 1 (0.9 in the released program); None leaves them.
        block_items: items read at a time; None chooses by memory.
        place: device to compute on, to which blocks of tables are brought; default: theirs.

    Returns:
        (K, K) float64 on that device, symmetric, in [0, 1], the diagonal exactly 1.

    Raises:
        ValueError: if the shape or the kind is wrong, or a table is not finite (the message names its row).
    """
    if tables.ndim != 3:
        raise ValueError(f"tables have shape {tuple(tables.shape)}; want (K, m, d)")
    if kind == "frobenius":
        result = squared_distances(tables, block_items, place).add_(1).reciprocal_()
    elif kind == "pca":
        scores = principal_scores(tables, pca_sign, place).unsqueeze(-1)  # (K, m, 1)
        result = squared_distances(scores, block_items).sqrt_().add_(1).reciprocal_()
    elif kind == "cosine":
        result = cosines(tables, block_items, torch.float64, place).clamp_(min=0)
    else:
        raise ValueError(f"unknown similarity '{kind}'; valid: cosine, frobenius, pca")
    if saturate is not None:
        result.masked_fill_(result > saturate, 1.0)
    result.fill_diagonal_(1.0)
    return result


def cosines(
    tables: Tensor,
    block_items: int | None = None,
    precision: torch.dtype = torch.float32,
    place: torch.device | None = None,
) -> Tensor:
    """Cosine of every pair of flattened tables: (K, m, d) -> (K, K) float64 in [−1, 1], the diagonal exactly 1.

    Args:
        precision: of the products inside an item block; those of all blocks are added up in float64.
        place: see `similarity`.
    """
    result = _gram(tables, centred=False, block_items=block_items, precision=precision, place=place)
    norm = result.diagonal().sqrt()
    norm = norm.where(norm > 0, torch.ones_like(norm))
    return _mirror_(result.div_(norm[:, None]).div_(norm[None, :]).clamp_(-1, 1)).fill_diagonal_(1.0)


def squared_distances(tables: Tensor, block_items: int | None = None, place: torch.device | None = None) -> Tensor:
    """||Q_u - Q_v||²_F of every pair: (K, m, d) -> (K, K) float64, never negative, the diagonal exactly 0.

    It is ||a||² + ||b||² - 2 a·b on tables from which the cohort's mean was taken, item block by item
    block. That changes no distance, but what the clients share (most rows still hold the common initial
    values) need not cancel.
    """
    products = _gram(tables, centred=True, block_items=block_items, place=place)
    norm = products.diagonal().clone()
    products.mul_(-2).add_(norm[:, None]).add_(norm[None, :]).clamp_(min=0)
    return _mirror_(products).fill_diagonal_(0.0)


def principal_scores(tables: Tensor, pca_sign: PcaSign = "raw", place: torch.device | None = None) -> Tensor:
    """Each client's items on the first principal axis of its own table: x_u = (Q_u - mean row) v_1.

    v_1 is the first right singular vector of the centred table, here the last eigenvector of its d x d
    covariance. Its sign is arbitrary, and x_u and -x_u are far apart: with ``raw`` (the released program)
    two like clients may come out as unlike. The eigenvectors are always taken on the CPU in float64, one
    matrix at a time, so that the sign depends on the client's table only: not on the cohort, on the block
    or on the device.

    Args:
        tables: (K, m, d).
        pca_sign: ``raw`` keeps the eigensolver's sign; ``fixed`` makes v_1's largest component positive.

    Returns:
        (K, m) float64 on `place`, by default the tables' device.

    Raises:
        ValueError: if the sign option is unknown or a table is not finite (the message names its row).
    """
    if pca_sign not in ("raw", "fixed"):
        raise ValueError(f"unknown pca_sign '{pca_sign}'; valid: fixed, raw")
    clients, items, width = tables.shape
    place = tables.device if place is None else place
    scores = torch.empty((clients, items), dtype=torch.float64, device=place)
    for rows in item_blocks(clients, items * width * 8):  # here blocks of clients: v_1 needs a whole table
        block = tables[rows].to(place, torch.float64)  # (block, m, d)
        _require_finite(block, rows.start)
        centred = block - block.mean(dim=1, keepdim=True)
        covariance = centred.mT @ centred  # (block, d, d)
        axis = torch.linalg.eigh(covariance.cpu()).eigenvectors[:, :, -1]  # (block, d)
        if pca_sign == "fixed":
            largest = axis.gather(1, axis.abs().argmax(dim=1, keepdim=True))  # (block, 1)
            axis = torch.where(largest < 0, -axis, axis)
        scores[rows] = (centred @ axis.to(place).unsqueeze(-1)).squeeze(-1)
    return scores


def _gram(
    tables: Tensor,
    *,
    centred: bool,
    block_items: int | None,
    precision: torch.dtype = torch.float64,
    place: torch.device | None = None,
) -> Tensor:
    """Inner products of all flattened tables, optionally about the cohort's mean table.

    Returns (K, K) float64; tiles below the diagonal are left for `_mirror_`, once nothing more is computed
    on them.
    """
    clients, items, width = tables.shape
    place = tables.device if place is None else place
    products = torch.zeros((clients, clients), dtype=torch.float64, device=place)
    room = torch.empty(0, dtype=precision, device=place)  # one block's, kept: fresh memory costs as much as a copy
    for block in item_blocks(items, clients * width * 8, block_items):
        brought = tables[:, block]  # (K, block, d)
        room = room if room.numel() else torch.empty(brought.shape, dtype=precision, device=place)
        part = room.view(-1)[: brought.numel()].view(brought.shape).copy_(brought).view(clients, -1)  # (K, block * d)
        if centred:
            part -= part.mean(dim=0)
        for start in range(0, clients, _TILE):
            rows = slice(start, start + _TILE)
            into = products[rows, start:]
            into.add_(part[rows] @ part[start:].T) if part.dtype != into.dtype else into.addmm_(
                part[rows], part[start:].T
            )
    if not bool(products.diagonal().isfinite().all()):  # what is not finite reaches its client's own square, at least
        for block in item_blocks(items, clients * width * 8, block_items):
            _require_finite(tables[:, block], 0)
        raise ValueError("the tables hold numbers whose squares are too large to be added up")
    return products


def _mirror_(matrix: Tensor) -> Tensor:
    """Fill the tiles below the diagonal from those above, in place; (K, K), exactly symmetric afterwards."""
    for start in range(0, len(matrix), _TILE):
        stop = start + _TILE
        matrix[stop:, start:stop] = matrix[start:stop, stop:].T
        tile = matrix[start:stop, start:stop]
        tile.copy_((tile + tile.T) / 2)
    return matrix


def _require_finite(block: Tensor, first_row: int) -> None:
    """Raise a ValueError that names the first client whose part of the block, (rows, ...), is not finite."""
    finite = block.isfinite().flatten(1).all(dim=1)  # (rows,)
    if not bool(finite.all()):
        row = first_row + int((~finite).nonzero()[0])
        raise ValueError(f"the table in row {row} holds a value that is not finite")
