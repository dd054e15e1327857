"""One client's samples of a round in compiled functions: the same keyed draws as in `engine.samples`, to the bit."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fedem_flwr.engine.fused.compiled import inner
from fedem_flwr.engine.fused.functions import fill
from fedem_flwr.engine.samples import POSITION_BITS

_u: Any = np.uint64
_GOLDEN, _MIX_1, _MIX_2 = _u(0x9E3779B97F4A7C15), _u(0xBF58476D1CE4E5B9), _u(0x94D049BB133111EB)
_ONE, _27, _30, _31 = _u(1), _u(27), _u(30), _u(31)
_POSITION = _u(POSITION_BITS)
_AT = _u((1 << POSITION_BITS) - 1)
_LEADING = 63  # bits of a draw


class Items(NamedTuple):
    """`engine.samples.TrainingItems`, with CSR offsets; without decoys their offsets are all 0."""

    users: np.ndarray
    items: int
    positive_offsets: np.ndarray
    positive_items: np.ndarray
    forbidden_offsets: np.ndarray
    forbidden_items: np.ndarray
    decoy_offsets: np.ndarray
    decoy_items: np.ndarray


class Keys(NamedTuple):
    """What keys a round's draws.

    Attributes:
        negatives, shuffle: of the two purposes, the round included.
        secret: whether draws are given instead.
        drawn: then, client by client, of each negative of all positives, and of each epoch of all samples.
        offsets: (k + 1,) where each client's begin.
    """

    negatives: np.uint64
    shuffle: np.uint64
    secret: bool
    drawn: np.ndarray
    offsets: np.ndarray


class Drawn(NamedTuple):
    """Room for one client's samples, as large as the largest client needs.

    Attributes:
        items, row: (s,) of each sample. keys, sorted: (s,) in epochs. buckets: (s + 1,).
        touched: (t,) items, ascending. slot: (m,) the touched row of each item.
        sign: (t,) −1 for positives, else 1. weight: (t,) how often each row occurs in a batch.
        taken: (e,) ranks of a positive's negatives.
    """

    items: np.ndarray
    row: np.ndarray
    keys: np.ndarray
    sorted: np.ndarray
    buckets: np.ndarray
    touched: np.ndarray
    slot: np.ndarray
    sign: np.ndarray
    weight: np.ndarray
    taken: np.ndarray


@inner
def _mix(x: Any) -> Any:
    x = (x ^ (x >> _30)) * _MIX_1
    x = (x ^ (x >> _27)) * _MIX_2
    return x ^ (x >> _31)


@inner
def keyed(state: Any, coordinate: Any) -> Any:
    """One more coordinate of a draw; see `fedem_flwr.randomness`."""
    return _mix(state + (_u(coordinate) + _ONE) * _GOLDEN)


@inner
def draw(data: Items, client: int, negatives: int, keys: Keys, at: int, room: Drawn) -> tuple[int, int]:
    """Positives, fresh negatives, decoys, and touched rows, of the client at a position of the cohort.

    Args:
        at: the client's number among those of `keys.offsets`.

    Returns:
        How many samples, and touched rows, there are.
    """
    first, last = data.positive_offsets[client], data.positive_offsets[client + 1]
    forbidden = data.forbidden_items[data.forbidden_offsets[client] : data.forbidden_offsets[client + 1]]
    allowed = data.items - len(forbidden)
    state = keyed(keys.negatives, data.users[client])
    positives, count = last - first, 0
    for p in range(positives):
        item = data.positive_items[first + p]
        room.items[count] = item
        count += 1
        of_positive = keyed(state, p)
        for j in range(negatives):
            bits: Any = keyed(of_positive, j) >> _ONE
            if keys.secret:  # else there are no offsets either
                bits = keys.drawn[keys.offsets[at] + j * positives + p]
            rank: Any = np.int64(bits % _u(max(allowed - j, 1)))
            for earlier in range(j):
                if rank >= room.taken[earlier]:
                    rank += 1
            rank = min(rank, max(allowed - 1, 0))  # only where items must repeat
            k = j
            while k > 0 and room.taken[k - 1] > rank:
                room.taken[k] = room.taken[k - 1]
                k -= 1
            room.taken[k] = rank
        for j in range(negatives):
            room.items[count] = _allowed_item(forbidden, room.taken[j]) if allowed > 0 else item
            count += 1
    weighed = count
    for d in range(data.decoy_offsets[client], data.decoy_offsets[client + 1]):
        room.items[count] = data.decoy_items[d]
        count += 1
    return count, _rows(count, weighed, negatives, room)


@inner
def _allowed_item(forbidden: np.ndarray, rank: int) -> int:
    """The item of a rank among those that are not forbidden: rank + how many forbidden ones lie before it."""
    low, high = 0, len(forbidden)
    while low < high:
        middle = (low + high) >> 1
        if forbidden[middle] - middle <= rank:
            low = middle + 1
        else:
            high = middle
    return rank + low


@inner
def _rows(count: int, weighed: int, negatives: int, room: Drawn) -> int:
    """Number the items of `count` samples in ascending order; returns how many differ.

    `slot` is −1 everywhere before and after.
    """
    rows = 0
    for s in range(count):
        item = room.items[s]
        if room.slot[item] < 0:
            room.slot[item] = 0
            room.touched[rows] = item
            rows += 1
    _ascending(room.touched, rows)
    for r in range(rows):
        room.slot[room.touched[r]] = r
        room.sign[r] = 1
    for s in range(count):
        r = room.slot[room.items[s]]
        room.row[s] = r
        if s < weighed and s % (1 + negatives) == 0:
            room.sign[r] = -1
    for r in range(rows):
        room.slot[room.touched[r]] = -1
    return rows


@inner
def _ascending(values: np.ndarray, count: int) -> None:
    """Sort the first numbers (Shell's sort, with Knuth's gaps)."""
    gap = 1
    while gap < count // 3:
        gap = 3 * gap + 1
    while gap > 0:
        for s in range(gap, count):
            value, k = values[s], s
            while k >= gap and values[k - gap] > value:
                values[k] = values[k - gap]
                k -= gap
            values[k] = value
        gap //= 3


@inner
def shuffle(data: Items, client: int, epoch: int, keys: Keys, start: int, count: int, batch: int, room: Drawn) -> None:
    """Leave in `room.sorted` the keys of the samples in an epoch's order; `row_of` has their rows.

    Where one batch takes them all their order is nobody's business, and they stay as they are.

    Args:
        epoch: number in the key. start: of the epoch's draws in `keys.drawn`.
    """
    if count <= batch:
        for s in range(count):
            room.sorted[s] = _u(s)
        return
    state = keyed(keyed(keys.shuffle, epoch), data.users[client])
    bits, buckets = 0, 1
    while buckets < count:
        bits, buckets = bits + 1, buckets * 2
    fill(room.buckets, buckets + 1, 0)
    shift = _u(_LEADING - bits)
    for s in range(count):
        drawn = keys.drawn[start + s] if keys.secret else keyed(state, s) >> _ONE
        key = ((drawn >> _POSITION) << _POSITION) | _u(s)
        room.keys[s] = key
        room.buckets[np.int64(key >> shift) + 1] += 1
    for earlier in range(buckets):
        room.buckets[earlier + 1] += room.buckets[earlier]
    for s in range(count):  # uniform keys: a bucket has about one, and neighbours are sorted by insertion
        b: Any = np.int64(room.keys[s] >> shift)
        room.sorted[room.buckets[b]] = room.keys[s]
        room.buckets[b] += 1
    for s in range(1, count):
        key, k = room.sorted[s], s
        while k > 0 and room.sorted[k - 1] > key:
            room.sorted[k] = room.sorted[k - 1]
            k -= 1
        room.sorted[k] = key


@inner
def row_of(key: Any, room: Drawn) -> Any:
    """The touched row of a shuffled sample."""
    return room.row[np.int64(key & _AT)]
