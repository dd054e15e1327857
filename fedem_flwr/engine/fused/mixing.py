"""What own rows are merged with and by, and the room that an adapter works in; see `adapter`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.engine.fused.arrays import flat
from fedem_flwr.engine.fused.lanes import LANES
from fedem_flwr.engine.fused.moving import Moving, moving
from fedem_flwr.engine.merge import ADAPTER, Merge, pooled

if TYPE_CHECKING:
    from fedem_flwr.engine.cohort import Cohort
    from fedem_flwr.engine.downloads import Download


class Mixing(NamedTuple):
    """What k clients received, and what they merge it by.

    Attributes:
        received: (r, m, d) downloaded tables. slot: (k,) the table of each client.
        theta: (n, P), trained in place; (1, 0) where nothing is learned.
        pooled: (k, 2 d) the adapter's one input, where a client has only one.
    """

    received: np.ndarray
    slot: np.ndarray
    theta: np.ndarray
    pooled: np.ndarray


class AdapterSpace(NamedTuple):
    """Room for one client's adapter, and for what it sees of a batch's rows, in tiles of sixteen.

    Attributes:
        theta: (P,). widths: of its layers, from 2 d to 1.
        received: (t · d,) the downloaded rows. features: (b · 2 d,) own rows, and what the merge would add.
        rho, upstream: (b,) ρ, and derivatives by it, then by the last layer's sum.
        hidden, slopes: (b · Σ h,). folded: (d · h,) first layer for own rows.
        pool: (2 d · 16,) the one input that a client has, in lane 0 of a tile; else nothing.
    """

    theta: Moving
    widths: np.ndarray
    received: np.ndarray
    features: np.ndarray
    rho: np.ndarray
    upstream: np.ndarray
    hidden: np.ndarray
    slopes: np.ndarray
    folded: np.ndarray
    pool: np.ndarray


def adapter_space(merge: Merge | None, rows: int, batch: int, dim: int) -> AdapterSpace:
    """For so many touched rows (t,), and rows of a batch (b,), whole vectors both.

    Args:
        merge: what rows go through; None: they go through none, and there is no room.
    """
    if merge is None:
        rows = batch = dim = 0
    learned = merge is not None and merge.learned
    widths = merge.adapter.mlp.widths if merge is not None and learned else (2 * dim, 1)
    pool = 2 * dim * LANES if merge is not None and merge.mode == "scalar" else 0
    hidden = batch * sum(widths[1:-1])
    sizes = (rows * dim, batch * 2 * dim, batch, batch, hidden, hidden, dim * widths[1], pool)
    arrays = (np.zeros(size, np.float32) for size in sizes)
    theta = moving(merge.adapter.parameters if merge is not None and learned else 0)
    return AdapterSpace(theta, np.array(widths, np.int64), *arrays)


def mixing_of(cohort: Cohort, download: Download | None, who: Tensor) -> Mixing:
    """What users `who` (k,) merge, as they have it now.

    Args:
        download: of the part that is merged; None: they merge nothing.
    """
    theta, pool = np.zeros((1, 0), np.float32), np.zeros((0, 0), np.float32)
    if download is None:
        return Mixing(np.zeros((0, 0, 0), np.float32), np.zeros(0, np.int64), theta, pool)
    merge = cohort.learner.merge
    if merge.learned:
        theta = cohort.state[ADAPTER].numpy()
    if merge.mode == "scalar":
        own, other = pooled(cohort.state[cohort.learner.merged][who], download.of(who))
        pool = torch.cat([own, other - own], -1).squeeze(1).numpy()
    return Mixing(flat(download.values), download.slot[who].numpy(), theta, pool)
