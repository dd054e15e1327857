"""Decoys: negatives of a user that stay the same over rounds, so that they come back like its positives do."""

from __future__ import annotations

from dataclasses import replace

import torch

from fedem_flwr.engine.samples import TrainingItems, padded_rows
from fedem_flwr.randomness import secret_bits

_HELD = 1 << 22  # numbers of users' orders of the catalogue that are held at a time
_LAST = (1 << 63) - 1


def with_decoys(histories: TrainingItems, secret: bytes, each: float) -> TrainingItems:
    """The histories, with decoys: the first allowed items in an order of the catalogue that a user's secret keys.

    A history that grows keeps its decoys and gets more; a decoy that the user meets becomes a positive, and comes back
    as before.

    Args:
        secret: 16 bytes that only the node knows.
        each: decoys a positive, rounded up; all allowed items, where there are fewer.
    """
    m, device = histories.items, histories.users.device
    wanted = (histories.counts() * each).ceil().long()
    counts, chosen = [wanted[:0]], [wanted[:0]]
    for rows in torch.arange(len(wanted), device=device).split(max(1, _HELD // m)):
        forbidden, real = padded_rows(histories.forbidden_offsets, histories.forbidden_items, rows, m)
        order = secret_bits(secret, "decoys", (), histories.users[rows], m + 1)
        best = order.scatter(1, forbidden, _LAST)[:, :m].argsort(1)  # padding marks the column behind the items
        count = torch.minimum(wanted[rows], m - real.sum(1))
        counts.append(count)
        chosen.append(best[torch.arange(m, device=device) < count[:, None]])
    offsets = torch.cat([wanted.new_zeros(1), torch.cat(counts).cumsum(0)])
    return replace(histories, decoys=(offsets, torch.cat(chosen)), secret=secret)
