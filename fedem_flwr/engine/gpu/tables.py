"""Whole tables of many clients merged by kernels."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedem_flwr.engine.gpu.merged import merge_tables, pool_tables
from fedem_flwr.engine.gpu.space import THROUGH_MERGE, Shape, tile_of, widened

if TYPE_CHECKING:
    from fedem_flwr.engine.downloads import Download
    from fedem_flwr.engine.merge import Merge


def merge_whole(
    merge: Merge, own: Tensor, slot: Tensor, theta: Tensor, who: Tensor, download: Download, *, seen: bool
) -> Tensor:
    """See `engine.merging.merge_compiled`."""
    items, dim = own.shape[1:]
    rho = own.new_empty((len(who), items) if seen else (0, 0))
    if not len(who):
        return rho
    tile, sent, values = tile_of(dim, 0, THROUGH_MERGE), download.slot[who], download.values.contiguous()
    single = merge.mode == "scalar"
    merge_tables[len(who), -(-items // tile)](
        own,
        values,
        theta,
        pool_of(own, slot, values, sent) if single else theta,
        slot,
        sent,
        who,
        rho if seen else torch.empty(1, device=own.device),
        items,
        theta.shape[1],
        single=single,
        seen=seen,
        dim=dim,
        wide=widened(dim),
        **asdict(Shape.of(merge)),
        tile=tile,
    )
    return rho[:, :1] if single else rho


def pool_of(own: Tensor, slot: Tensor, received: Tensor, sent: Tensor) -> Tensor:
    """(k, 2, wide) the one row a client that `scalar` merging looks at, of tables own[slot] and received[sent]."""
    items, dim = own.shape[1:]
    pool = own.new_empty((len(slot), 2, widened(dim)))
    pool_tables[len(slot),](own, received, slot, sent, pool, items, dim=dim, wide=widened(dim), tile=tile_of(dim, 0))
    return pool
