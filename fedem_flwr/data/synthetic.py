"""A synthetic data set: taste clusters, power-law popularity and activity, tastes that drift in time.

Every draw is a function of (seed, user, position), so users are generated in blocks of bounded memory and the
block size does not change a single row.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedem_flwr.data.interactions import Float64Array, Int64Array, Interactions, StrArray, first_appearance
from fedem_flwr.randomness import keyed_bits, keyed_integers, keyed_normal, keyed_permutation, keyed_uniform

_TASTE_ENDS: Final = (0.6, 0.85)  # a user's rows divide 60 : 25 : 15 over three clusters
_EPOCH: Final = 1_600_000_000  # first second of the data set, 2020-09-13
_YEAR_SECONDS: Final = 31_536_000
_OVERSAMPLING: Final = 1.5  # draws per wanted row in a pass, since repeated items are dropped
_PASSES: Final = 8


class SyntheticConfig(BaseModel):
    """The shape of the synthetic data set; the defaults train in seconds, neither trivial nor hopeless."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    users: int = Field(default=600, ge=2, description="n, number of users")
    items: int = Field(default=800, ge=30, description="m, number of items in the catalogue")
    mean_interactions: float = Field(default=40.0, gt=0, description="mean rows of a user, before the cap of m / 3")
    min_interactions: int = Field(default=12, ge=1, description="fewest rows of a user")
    clusters: int = Field(default=12, ge=1, description="number of taste clusters")
    dim: int = Field(default=16, ge=1, description="width of the latent item vectors")
    sharpness: float = Field(default=12.0, ge=0, description="how much a cluster prefers items that are near it")
    popularity_exponent: float = Field(default=0.6, ge=0, description="an item of rank r is r ** -exponent popular")
    activity_exponent: float = Field(default=2.5, gt=1, description="tail exponent of rows a user (Lomax)")
    noise: float = Field(default=0.1, ge=0, le=0.99, description="share of rows drawn by popularity alone")
    drift: float = Field(default=0.2, ge=0, le=0.99, description="share of a user's last rows from a new cluster")

    @model_validator(mode="after")
    def _consistent(self) -> SyntheticConfig:
        if self.mean_interactions < self.min_interactions:
            raise ValueError("mean_interactions must be at least min_interactions")
        if self.min_interactions > self.items // 3:
            raise ValueError("min_interactions must be at most a third of items")
        return self


def synthetic_interactions(config: SyntheticConfig, seed: int, *, block_users: int = 20_000) -> Interactions:
    """Generate the data set: users in order, each user's rows oldest first, no pair twice, no ratings.

    Args:
        config: its shape.
        seed: same seed, same rows.
        block_users: users generated at once; bounds the working memory (about 10 kB a user at 50 rows) and
            leaves the result as it is.
    """
    counts = _activity(config, seed)
    cumulative = _cumulative_tastes(config, seed)
    rows = int(counts.sum())
    item, when = np.empty(rows, dtype=np.int64), np.empty(rows, dtype=np.float64)
    end = 0
    for first in range(0, config.users, block_users):
        block = counts[first : first + block_users]
        begin, end = end, end + int(block.sum())
        item[begin:end], when[begin:end] = _block(config, seed, first, block, cumulative)
    codes, appeared = first_appearance(item)
    return Interactions(
        name="synthetic",
        user=np.repeat(np.arange(config.users), counts),
        item=codes,
        rating=None,
        time=when,
        user_ids=_numerals(np.arange(config.users)),
        item_ids=_numerals(appeared),
    )


def _numerals(numbers: Int64Array) -> StrArray:
    """Labels no wider than they must be: numpy would give every int64 21 characters."""
    return numbers.astype(f"U{len(str(int(numbers.max())))}")


def _activity(config: SyntheticConfig, seed: int) -> Int64Array:
    """(n,) rows of each user: the minimum plus a Lomax (power-law) excess, at most a third of the items."""
    draws = keyed_uniform(seed, "synthetic/activity", torch.arange(config.users)).numpy()
    scale = (config.mean_interactions - config.min_interactions) * (config.activity_exponent - 1)
    excess = scale * ((1 - draws) ** (-1 / config.activity_exponent) - 1)
    # + 0.5 rounds to nearest, which keeps the mean
    counts: Int64Array = np.floor(config.min_interactions + excess + 0.5).astype(np.int64)
    return np.minimum(counts, config.items // 3)


def _cumulative_tastes(config: SyntheticConfig, seed: int) -> Float64Array:
    """((clusters + 1) * m,) ascending: row c is c + cluster c's cumulative distribution; last, popularity.

    One flat ascending array lets a single binary search draw for many clusters at once.
    """
    clusters, items = torch.arange(config.clusters), torch.arange(config.items)
    axis = torch.arange(config.dim)
    centres = keyed_normal(seed, "synthetic/centre", clusters[:, None], axis).double()  # (clusters, dim)
    home = keyed_integers(config.clusters, seed, "synthetic/home", items)  # (m,)
    vectors = centres[home] + keyed_normal(seed, "synthetic/item", items[:, None], axis)  # (m, dim)
    cosine = torch.nn.functional.normalize(centres, dim=1) @ torch.nn.functional.normalize(vectors, dim=1).T
    rank = keyed_permutation(config.items, seed, "synthetic/popularity").numpy() + 1.0
    tastes = np.vstack([np.exp(config.sharpness * cosine.numpy()), np.ones(config.items)])
    cumulative = np.cumsum(tastes * rank**-config.popularity_exponent, axis=1)
    cumulative /= cumulative[:, -1:]
    return (cumulative + np.arange(config.clusters + 1)[:, None]).ravel()


def _block(
    config: SyntheticConfig, seed: int, first: int, counts: Int64Array, cumulative: Float64Array
) -> tuple[Int64Array, Float64Array]:
    """Items and times of users first .. first + len(counts) - 1, user by user, oldest first.

    A user's rows are the first distinct items of an endless stream of draws; more passes extend it.
    """
    # user is numbered inside the block; a user's rows stay in the order they were drawn until the last step
    user, item, moment = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    drawn = np.zeros_like(counts)
    missing = counts
    for attempt in range(_PASSES + 1):
        short = np.flatnonzero(missing)
        if not len(short):
            break
        if attempt < _PASSES:
            take = np.ceil(missing[short] * _OVERSAMPLING).astype(np.int64)
        else:  # tastes too concentrated to fill the count: complete it with the catalogue in random order
            take = np.full(len(short), config.items)
        new_user = np.repeat(short, take)
        position = drawn[new_user] + np.arange(len(new_user)) - np.repeat(np.cumsum(take) - take, take)
        new_moment = _uniform(seed, "synthetic/moment", new_user + first, position)
        if attempt < _PASSES:
            new_item = _draw(config, seed, new_user + first, position, new_moment, cumulative)
        else:
            new_item = _shuffled_catalogues(config, seed, short + first)
        drawn[short] += take
        user, item = np.concatenate([user, new_user]), np.concatenate([item, new_item])
        moment = np.concatenate([moment, new_moment])
        kept = _first_distinct(user, item, counts, config.items)
        user, item, moment = user[kept], item[kept], moment[kept]
        missing = counts - np.bincount(user, minlength=len(counts))
    # moments have no more to do with the order of drawing: drawn first means popular, which old must not mean
    tick = (moment * (1 << 32)).astype(np.int64)
    order = np.argsort((user << 32) | tick, kind="stable")
    return item[order], _seconds(seed, first, counts, moment[order])


def _uniform(seed: int, purpose: str, user: Int64Array, position: Int64Array) -> Float64Array:
    """(rows,) uniform draws in [0, 1), one for each (user, position)."""
    drawn: Float64Array = keyed_uniform(seed, purpose, torch.from_numpy(user), torch.from_numpy(position)).numpy()
    return drawn


def _first_distinct(user: Int64Array, item: Int64Array, counts: Int64Array, items: int) -> Int64Array:
    """Row numbers of each user's first `counts` distinct items, by user, in the order of the rows."""
    rows = np.flatnonzero(~pd.Index(user * items + item).duplicated())
    rows = rows[np.argsort(user[rows], kind="stable")]
    distinct = np.bincount(user[rows], minlength=len(counts))
    rank = np.arange(len(rows)) - np.repeat(np.cumsum(distinct) - distinct, distinct)
    kept: Int64Array = rows[rank < counts[user[rows]]]
    return kept


def _draw(
    config: SyntheticConfig,
    seed: int,
    user: Int64Array,
    position: Int64Array,
    moment: Float64Array,
    cumulative: Float64Array,
) -> Int64Array:
    """One item a (user, position): by popularity, from the cluster drifted to, or one of the user's own."""
    share = _uniform(seed, "synthetic/source", user, position)
    own = (share - config.noise) / (1 - config.noise)  # uniform on [0, 1) for rows that are not noise
    drifted = config.drift * moment
    slot = np.searchsorted(_TASTE_ENDS, (own - drifted) / (1 - drifted), side="right")
    slot[own < drifted] = len(_TASTE_ENDS) + 1  # the slot after the user's own is the cluster drifted to
    chosen = keyed_integers(config.clusters, seed, "synthetic/taste", torch.from_numpy(user), torch.from_numpy(slot))
    row = np.where(share < config.noise, config.clusters, chosen.numpy())
    within = _uniform(seed, "synthetic/draw", user, position)
    found: Int64Array = np.searchsorted(cumulative, row + within, side="right") - row * config.items
    return np.minimum(found, config.items - 1)  # row + within may round up to the next row


def _shuffled_catalogues(config: SyntheticConfig, seed: int, users: Int64Array) -> Int64Array:
    """Every item once for each user, in an order of the user's own: flat (users * m,)."""
    bits = keyed_bits(seed, "synthetic/shuffle", torch.from_numpy(users)[:, None], torch.arange(config.items))
    order: Int64Array = bits.argsort(dim=1).ravel().numpy()
    return order


def _seconds(seed: int, first: int, counts: Int64Array, moment: Float64Array) -> Float64Array:
    """Unix times in whole seconds: a user arrives some time in the first year and stays for up to a year."""
    users = torch.arange(first, first + len(counts))
    arrival = keyed_uniform(seed, "synthetic/arrival", users).numpy()
    stay = 0.1 + 0.9 * keyed_uniform(seed, "synthetic/stay", users).numpy()
    years = np.repeat(arrival, counts) + np.repeat(stay, counts) * moment
    return np.floor(_EPOCH + _YEAR_SECONDS * years)
