"""What the compiled rounds are told, and the room that they work in: made once a thread, as large as a client needs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fedem_flwr.engine.fused.draws import Drawn
from fedem_flwr.engine.fused.lanes import LANES
from fedem_flwr.engine.fused.mixing import AdapterSpace, Mixing, adapter_space
from fedem_flwr.engine.merge import Merge

ADAM, SGD, FREQUENCY_SGD = 0, 1, 2


class Rules(NamedTuple):
    """How a client trains.

    Attributes:
        epochs, batch_size, negatives, early_stop: as in `engine.epochs.LocalSettings`; batch_size 0: all at once.
        first_epoch: number of the first epoch in the key of its shuffle.
        optimiser: of p and Q, and so on: where the score is a product.
        lr_user, lr_item, lr_theta: rates.
        ridge: γ, weight decay of p and of a batch's rows.
        rho: the fixed ρ where none is learned.
        adapts, trains: whether a batch takes a step on Θ, and its others.
    """

    epochs: int
    first_epoch: int
    batch_size: int
    negatives: int
    early_stop: float
    optimiser: int = ADAM
    lr_user: float = 0.0
    lr_item: float = 0.0
    lr_theta: float = 0.0
    ridge: float = 0.0
    rho: float = 0.0
    adapts: bool = False
    trains: bool = True


class Values(NamedTuple):
    """What a cohort's clients have, and where of each client it is.

    Attributes:
        who: (k,) positions in the cohort.
        users: (n, d). tables: (r, m, d) what item rows start from. slot: (k,) the table of each client.
        own: whether the trained rows are written back there.
        mixing: what they are merged with, if anything.
    """

    who: np.ndarray
    users: np.ndarray
    tables: np.ndarray
    slot: np.ndarray
    own: bool
    mixing: Mixing


class Result(NamedTuple):
    """What k clients leave; see `engine.samples.RoundSamples`. Without a width (k, 0) nothing but the loss is kept.

    Attributes:
        loss: (k,) mean a sample. size, weight, touched_count: (k,).
        touched, sign: (k, t). rows, before: (k, t, d).
    """

    loss: np.ndarray
    size: np.ndarray
    weight: np.ndarray
    touched_count: np.ndarray
    touched: np.ndarray
    sign: np.ndarray
    rows: np.ndarray
    before: np.ndarray


class Space(NamedTuple):
    """Room for one client's numbers. Rows lie in tiles of sixteen, as samples do in `network`.

    Attributes:
        x, first, second, gradient: (t · d,) rows, Adam's moments, their gradient.
        p, p_first, p_second, p_gradient: (d,) in whole vectors. p_lanes: (d · 16,).
        distinct: (b,) rows of a batch. sign, weight, plain, slope, direct: (b,). inputs: (d · 16,).
        adapter: of what rows are merged by.
    """

    x: np.ndarray
    first: np.ndarray
    second: np.ndarray
    gradient: np.ndarray
    p: np.ndarray
    p_first: np.ndarray
    p_second: np.ndarray
    p_gradient: np.ndarray
    p_lanes: np.ndarray
    distinct: np.ndarray
    sign: np.ndarray
    weight: np.ndarray
    plain: np.ndarray
    slope: np.ndarray
    direct: np.ndarray
    inputs: np.ndarray
    adapter: AdapterSpace


def whole(count: int) -> int:
    """The same, rounded up to whole vectors."""
    return -(-count // LANES) * LANES


def drawn_room(samples: int, items: int, negatives: int) -> Drawn:
    """For clients of at most so many samples."""
    rows = whole(min(samples, items))
    buckets = 1 << max(0, samples - 1).bit_length()
    ints, floats = np.int32, np.float32
    return Drawn(
        items=np.empty(samples, np.int64),
        row=np.empty(samples, ints),
        keys=np.empty(samples, np.uint64),
        sorted=np.empty(samples, np.uint64),
        buckets=np.empty(buckets + 1, ints),
        touched=np.empty(rows, np.int64),
        slot=np.full(items, -1, ints),
        sign=np.ones(rows, floats),
        weight=np.zeros(rows, floats),
        taken=np.empty(max(1, negatives), np.int64),
    )


def space_for(rows: int, batch: int, dim: int, merge: Merge | None) -> Space:
    """For clients of at most so many touched rows, and batches of so many samples.

    Args:
        merge: what rows go through; None: they lie as they are.
    """
    rows = whole(rows)
    batch = whole(min(batch, rows)) if merge is not None else 0
    sizes = {
        **dict.fromkeys(("x", "first", "second"), rows * dim),
        "gradient": rows * dim if merge is not None else 0,
        **dict.fromkeys(("p", "p_first", "p_second", "p_gradient"), whole(dim)),
        **dict.fromkeys(("p_lanes", "inputs"), dim * LANES),
        **dict.fromkeys(("sign", "weight", "plain", "slope", "direct"), batch),
    }
    made = {name: np.zeros(size, np.float32) for name, size in sizes.items()}
    return Space(**made, distinct=np.zeros(batch, np.int32), adapter=adapter_space(merge, rows, batch, dim))
