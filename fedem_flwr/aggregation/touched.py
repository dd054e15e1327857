"""Tables for single users out of tables that differ from one shared table B at a few rows each; exact, and never whole.

Client v has sent Q_v = B + S_v, where S_v is not zero at its trained rows T_v alone. Then, weights summing to 1,

- ‖Q_u − Q_v‖² = ‖S_u‖² + ‖S_v‖² − 2 ⟨S_u, S_v⟩, and the product is one over rows of T_u ∩ T_v;
- G_u = Σ_v w_uv Q_v = B + Σ_v w_uv S_v, whose row i needs those v alone that have trained it.

So an item that c clients have trained costs c² d operations twice, and the weights of a block of receivers over all K
clients are the largest thing in memory. G_u is made at T_u. Everywhere else a client gets the next shared table, B' = B
+ Σ_v w_v S_v with the weights of a receiver whose table is like nobody's (σ = 0).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.models.rows import Rows

_PAIRS = 1 << 25  # weights that are held at a time: 256 MiB

Weigh = Callable[[Tensor], Tensor]  # similarities (r, K) of receivers to all clients, to weights (r, K)
Floats = np.ndarray


@dataclass(frozen=True)
class Folded:
    """What is made of the rows of K clients.

    Attributes:
        rows: G_u at the rows that u has sent. base: (m, d) B'.
        own: (K,) each client's weight for itself. nonzero: (K,) how many weights are not zero.
        sample: (s, s) the first clients' weights for each other.
    """

    rows: Rows
    base: Tensor
    own: Tensor
    nonzero: Tensor
    sample: Tensor


@dataclass(frozen=True)
class _ByItem:
    """Rows in the order of their items, and of clients inside an item.

    Attributes:
        order: (N,) where each lies in what was sent. change: (N, d) S. who: (N,) its client.
        ends: of each item that anybody has sent, where its rows end.
    """

    order: np.ndarray
    change: Floats
    who: np.ndarray
    ends: np.ndarray

    def of(self, first: int, end: int, clients: int) -> Iterator[tuple[slice, slice]]:
        """For each item that receivers `first` to `end` have sent: all its rows, and those of these receivers."""
        starts = np.append(0, self.ends[:-1])
        keys = np.arange(len(self.ends)).repeat(self.ends - starts) * clients + self.who
        at = np.arange(len(self.ends)) * clients
        low, high = np.searchsorted(keys, at + first), np.searchsorted(keys, at + end)
        for item in np.flatnonzero(high > low):
            yield slice(starts[item], self.ends[item]), slice(low[item], high[item])


def combine_touched(base: Tensor, rows: Rows, weigh: Weigh, *, sample: int = 60, pairs: int = _PAIRS) -> Folded:
    """G_u of each client at its own rows, and the next shared table; see above.

    Args:
        base: (m, d) B. rows: of K clients. weigh: Eq. 13, say.
        sample: clients whose weights are handed on. pairs: weights held at a time.
    """
    clients, by_item = len(rows.counts), _by_item(base, rows)
    norms = np.bincount(by_item.who, np.square(by_item.change).sum(1), clients)
    made = np.empty_like(by_item.change)
    own, nonzero = np.empty(clients), np.empty(clients, np.int64)
    shown = torch.zeros(0, 0, dtype=torch.float64)
    each = max(1, pairs // max(1, clients))
    for first in range(0, clients, each):
        end = min(first + each, clients)
        products = np.zeros((end - first, clients))
        for every, some in by_item.of(first, end, clients):
            products[np.ix_(by_item.who[some] - first, by_item.who[every])] += (
                by_item.change[some] @ by_item.change[every].T
            )
        distances = np.maximum(norms[first:end, None] + norms - 2 * products, 0)
        alike = 1 / (1 + distances)
        alike[np.arange(end - first), np.arange(first, end)] = 1.0
        weights = weigh(torch.from_numpy(alike)).numpy()
        for every, some in by_item.of(first, end, clients):
            mixed = weights[np.ix_(by_item.who[some] - first, by_item.who[every])]
            made[some] = mixed @ by_item.change[every]
        own[first:end] = weights[np.arange(end - first), np.arange(first, end)]
        nonzero[first:end] = (weights > 0).sum(1)
        if not first:
            shown = torch.from_numpy(weights[:sample, :sample].copy())
    values = torch.empty_like(rows.values)
    values[torch.from_numpy(by_item.order)] = torch.from_numpy(made).to(values)
    values += base[rows.index.long()]
    common = weigh(torch.zeros(1, clients, dtype=torch.float64))[0]
    moved = base.double()
    change = torch.from_numpy(by_item.change) * common[torch.from_numpy(by_item.who)].unsqueeze(1)
    moved = moved.index_add(0, rows.index.long()[torch.from_numpy(by_item.order)], change)
    new = Rows(rows.counts, rows.index, values)
    return Folded(new, moved.to(base.dtype), torch.from_numpy(own), torch.from_numpy(nonzero), shown)


def _by_item(base: Tensor, rows: Rows) -> _ByItem:
    items = rows.index.numpy()
    order = np.argsort(items, kind="stable")
    change = (rows.values.double() - base[rows.index.long()].double()).numpy()[order]
    ends = np.append(np.flatnonzero(np.diff(items[order])) + 1, len(items)) if len(items) else np.zeros(0, np.int64)
    return _ByItem(order, change, rows.owner.numpy()[order], ends)
