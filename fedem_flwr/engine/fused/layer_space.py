"""What the rounds of methods with a network are told, and the room that they work in; see `layers`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fedem_flwr.engine.fused.moving import Moving

WEIGHTS, USER, FIRST, SECOND = range(4)
NEITHER = -1


class Steps(NamedTuple):
    """What a batch does; see `engine.plan`. Arrays are (4,): of the weights, the user's vector, both item parts.

    Attributes:
        updates: of a batch. update: the one that moves each, or −1. adam: whether by Adam.
        rates, fadings, pulls: of each.
        widths: of the folded network, from d to 1. beside: width of the user's vector, 0 without.
        biased: whether the weights have a bias in their first layer.
        rank: r, width of the first rows where they are seen through a basis, else 0.
        added: whether the second rows are added to the first ones. towards: whether these are pulled to them.
        often: whether the first rows' steps are those of their own frequency.
        merged: which rows are seen through the merge: FIRST, SECOND or NEITHER.
        apart, sparse, ridge: 2 λ / d, μ / d, 2 γ.
    """

    updates: int
    update: np.ndarray
    adam: np.ndarray
    rates: np.ndarray
    fadings: np.ndarray
    pulls: np.ndarray
    widths: np.ndarray
    beside: int
    biased: bool
    rank: int
    added: bool
    towards: bool
    often: bool
    merged: int
    apart: float
    sparse: float
    ridge: float


class LayerSpace(NamedTuple):
    """Room for one client's numbers; rows, and samples, lie in tiles of sixteen.

    Attributes:
        weights (P,), user (d,), x, y (t · d,): what moves. rates: (4,) now.
        folded, folded_gradient: the network that rows see.
        distinct, sign, weight, logits, upstream: (b,). features: (b · d,). hidden, slopes: (b · Σ h,).
        inputs, others: (d · 16,). basis: (r · d,). low: (r · 16,).
    """

    weights: Moving
    user: Moving
    x: Moving
    y: Moving
    rates: np.ndarray
    folded: np.ndarray
    folded_gradient: np.ndarray
    distinct: np.ndarray
    sign: np.ndarray
    weight: np.ndarray
    logits: np.ndarray
    upstream: np.ndarray
    features: np.ndarray
    hidden: np.ndarray
    slopes: np.ndarray
    inputs: np.ndarray
    others: np.ndarray
    basis: np.ndarray
    low: np.ndarray
