"""Whole tables of many clients merged by a compiled function, on all threads."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.engine.fused.arrays import flat
from fedem_flwr.engine.fused.flush import flushed
from fedem_flwr.engine.fused.lanes import LANES
from fedem_flwr.engine.fused.rounds import merge_tables
from fedem_flwr.engine.parallel import in_parallel

if TYPE_CHECKING:
    from fedem_flwr.engine.downloads import Download
    from fedem_flwr.engine.merge import Merge


def merge_whole(
    merge: Merge, own: Tensor, slot: Tensor, theta: Tensor, who: Tensor, download: Download, *, seen: bool
) -> Tensor:
    """See `engine.merging.merge_compiled`."""
    rho = torch.empty((len(who), own.shape[1]) if seen else (0, 0))
    received, widths = flat(download.values), np.array(merge.adapter.mlp.widths, np.int64)
    tables, parameters = own.numpy(), theta.numpy()

    def merged(part: slice) -> None:
        at = rho[part].numpy() if seen else np.empty((1, own.shape[1]), np.float32)
        places = (slot[part].numpy(), received, download.slot[who[part]].numpy(), parameters, who[part].numpy())
        room = (np.empty(size * LANES, np.float32) for size in (widths[0], widths[1:-1].sum(), 1))
        with flushed():
            merge_tables(tables, *places, widths, at, *room)

    each = max(1, -(-len(who) // (4 * torch.get_num_threads())))
    parts = [slice(start, start + each) for start in range(0, len(who), each)]
    deque(in_parallel(merged, parts, own.device), maxlen=0)
    return rho
