"""What the compiled rounds are told, and the room that they work in: made once a thread, as large as a client needs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fedem_flwr.engine.fused.draws import Drawn
from fedem_flwr.engine.fused.lanes import LANES

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
        adapts, trains: whether a batch takes a step on Θ, and one on p and Q.
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
    """What a cohort's clients have and have received, and where of each client it is.

    Attributes:
        who: (k,) positions in the cohort.
        users: (n, d). tables: (r, m, d) what item rows start from. slot: (k,) the table of each client.
        own: whether the trained rows are written back there.
        received: (r', m, d) downloaded tables. received_slot: (k,).
        theta: (n, P), or (1, 0) where nothing is learned. widths: of the adapter.
        pooled: (k, 2 d) its one input, where it has only one.
    """

    who: np.ndarray
    users: np.ndarray
    tables: np.ndarray
    slot: np.ndarray
    own: bool
    received: np.ndarray
    received_slot: np.ndarray
    theta: np.ndarray
    widths: np.ndarray
    pooled: np.ndarray


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
        x, first, second, gradient, received: (t · d,) rows, Adam's moments, their gradient, the downloaded rows.
        p, p_first, p_second, p_gradient: (d,) in whole vectors. p_lanes: (d · 16,).
        t_first, t_second, t_gradient: (P,). folded: (d · h,) first layer for own rows.
        distinct: (b,) rows of a batch. features: (b · 2 d,). logits, upstream, sign, weight, plain, slope: (b,).
        hidden, slopes: (b · Σ h,). inputs: (d · 16,). pool: (2 d · 16,).
    """

    x: np.ndarray
    first: np.ndarray
    second: np.ndarray
    gradient: np.ndarray
    received: np.ndarray
    p: np.ndarray
    p_first: np.ndarray
    p_second: np.ndarray
    p_gradient: np.ndarray
    p_lanes: np.ndarray
    t_first: np.ndarray
    t_second: np.ndarray
    t_gradient: np.ndarray
    folded: np.ndarray
    distinct: np.ndarray
    features: np.ndarray
    logits: np.ndarray
    upstream: np.ndarray
    sign: np.ndarray
    weight: np.ndarray
    plain: np.ndarray
    slope: np.ndarray
    hidden: np.ndarray
    slopes: np.ndarray
    inputs: np.ndarray
    pool: np.ndarray


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


def space_for(rows: int, batch: int, dim: int, widths: tuple[int, ...], parameters: int) -> Space:
    """For clients of at most so many touched rows, and batches of so many samples.

    Args:
        widths: of the adapter; empty: nothing is merged. parameters: P.
    """
    rows, merging = whole(rows), bool(widths)
    batch = whole(min(batch, rows)) if merging else 0
    hidden, first_hidden = sum(widths[1:-1]), widths[1] if merging else 0
    sizes = {
        **dict.fromkeys(("x", "first", "second"), rows * dim),
        **dict.fromkeys(("gradient", "received"), rows * dim if merging else 0),
        **dict.fromkeys(("p", "p_first", "p_second", "p_gradient"), whole(dim)),
        **dict.fromkeys(("p_lanes", "inputs"), dim * LANES),
        "pool": 2 * dim * LANES,
        **dict.fromkeys(("t_first", "t_second", "t_gradient"), parameters),
        "folded": dim * first_hidden,
        "features": batch * 2 * dim,
        **dict.fromkeys(("logits", "upstream", "sign", "weight", "plain", "slope"), batch),
        **dict.fromkeys(("hidden", "slopes"), batch * hidden),
    }
    made = {name: np.zeros(size, np.float32) for name, size in sizes.items()}
    return Space(**made, distinct=np.zeros(batch, np.int32))
