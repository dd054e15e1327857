"""Whole tables of many clients merged by a kernel."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedem_flwr.engine.gpu.merged import merge_tables
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
    tile = tile_of(dim, 0, THROUGH_MERGE)
    merge_tables[len(who), -(-items // tile)](
        own,
        download.values.contiguous(),
        theta,
        slot,
        download.slot[who],
        who,
        rho if seen else torch.empty(1, device=own.device),
        items,
        theta.shape[1],
        seen=seen,
        dim=dim,
        wide=widened(dim),
        **asdict(Shape.of(merge)),
        tile=tile,
    )
    return rho
