"""Items of a client's own history that its training leaves out, so that something can be fitted on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fedem_flwr.engine.history import History, IntArray
from fedem_flwr.engine.samples import TrainingItems
from fedem_flwr.randomness import keyed_bits


@dataclass(frozen=True, eq=False)
class HeldOut:
    """TrainingItems cut in two.

    Attributes:
        rest: what is trained on.
        items: (k, L) what is held out, padded with m.
    """

    rest: History
    items: IntArray

    def counts(self) -> IntArray:
        """(k,) held-out items of each user."""
        return np.asarray((self.items < self.rest.items).sum(1))


def take(history: History, who: IntArray) -> History:
    """The histories of positions `who`, in that order; a newest item becomes one of the others."""
    starts, counts = np.asarray(history.offsets[who]), np.asarray(history.offsets[who + 1] - history.offsets[who])
    offsets = np.append(0, np.cumsum(counts))
    flat = np.repeat(starts - offsets[:-1], counts) + np.arange(offsets[-1])
    values = np.asarray(history.values[flat] if len(flat) else history.values[:0], np.int64)
    if history.newest is not None:
        values = np.insert(values, offsets[1:], history.newest[who])
        offsets = offsets + np.arange(len(offsets))
    return History(history.users[who], history.items, offsets, values)


def take_held(held: HeldOut, who: IntArray) -> HeldOut:
    """The cut histories of positions `who`, in that order."""
    return HeldOut(take(held.rest, who), held.items[who])


def hold_out(history: History, count: int, seed: int, *, by_time: bool) -> HeldOut:
    """Leave items of every user out: at most half of its history.

    Args:
        history: without a `newest` item of its own; see `take`.
        count: L, of each user.
        seed: of the draw where there are no times.
        by_time: hold out the newest; else those with the smallest keyed number of (user, item), so that an item more
            in the history adds at most itself.
    """
    values, offsets = np.asarray(history.values, np.int64), np.asarray(history.offsets, np.int64)
    counts = np.diff(offsets)
    owner = np.repeat(np.arange(len(counts)), counts)
    rank = np.repeat(offsets[1:], counts) - 1 - np.arange(len(values))  # 0: the newest of its user
    if not by_time:
        users, items = torch.from_numpy(np.asarray(history.users, np.int64)[owner]), torch.from_numpy(values)
        order = np.lexsort((keyed_bits(seed, "held-out", users, items).numpy(), owner))
        rank = np.empty(len(values), np.int64)
        rank[order] = np.arange(len(values)) - np.repeat(offsets[:-1], counts)
    held = rank < np.minimum(count, counts // 2)[owner]
    items_held = np.full((len(counts), count), history.items, np.int64)
    items_held[owner[held], rank[held]] = values[held]
    left = np.append(0, np.cumsum(np.bincount(owner[~held], minlength=len(counts))))
    return HeldOut(History(history.users, history.items, left, values[~held]), items_held)


def without(histories: TrainingItems, held: HeldOut) -> TrainingItems:
    """TrainingItems that know nothing of what is held out: it is no positive, and may be drawn as a negative."""
    device, m = histories.users.device, histories.items
    offsets, items = histories.forbidden_offsets.cpu().numpy(), histories.forbidden_items.cpu().numpy()
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    hidden = np.arange(len(held.items))[:, None] * m + held.items
    kept = ~np.isin(owner * m + items, hidden[held.items < m])
    left = np.append(0, np.cumsum(np.bincount(owner[kept], minlength=len(offsets) - 1)))
    arrays = (held.rest.offsets, held.rest.values, left, items[kept])
    tensors = [torch.from_numpy(np.asarray(array, np.int64)).to(device) for array in arrays]
    return TrainingItems(histories.users, m, *tensors, decoys=histories.decoys, secret=histories.secret)
