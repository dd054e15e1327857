"""A synthetic data set: taste clusters, power-law popularity and activity, tastes that drift in time.

Every draw is a function of (seed, user, position), so users are generated in blocks of bounded memory and the
block size does not change a single row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedem_flwr.data.interactions import Float64Array, Int64Array, Interactions, StrArray, gather
from fedem_flwr.data.sorting import first_of_each, stable_order
from fedem_flwr.randomness import keyed_bits, keyed_integers, keyed_normal, keyed_permutation, keyed_uniform

_TASTE_ENDS: Final = (0.6, 0.85)  # a user's rows divide 60 : 25 : 15 over three clusters
_EPOCH: Final = 1_600_000_000  # first second of the data set, 2020-09-13
_YEAR_SECONDS: Final = 31_536_000
_OVERSAMPLING: Final = 1.5  # draws per wanted row in a pass, since repeated items are dropped
_PASSES: Final = 8
_GUIDES: Final = 1 << 14  # a power of two, so that multiplying by it is exact

_Rows = tuple[Int64Array, Int64Array, Float64Array]  # user, item, moment


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


@dataclass(frozen=True)
class SyntheticSource:
    """The synthetic data set as a source: users in order, each user's rows oldest first, no pair twice, no ratings.

    Attributes:
        config: its shape.
        seed: same seed, same rows.
        block_users: users generated at once; bounds the working memory (about 10 kB a user at 50 rows) and
            leaves the rows as they are. Blocks that fit into the processor's cache are the fastest.
    """

    config: SyntheticConfig
    seed: int
    block_users: int = 1000

    name: ClassVar[str] = "synthetic"

    @property
    def users(self) -> int:
        """Number of users (n)."""
        return self.config.users

    @property
    def items(self) -> int:
        """Number of items in the catalogue; a small data set meets only some of them."""
        return self.config.items

    @property
    def item_ids(self) -> StrArray:
        """(items,) labels: the items' numbers."""
        return _numerals(np.arange(self.items), self.items)

    def blocks(self) -> Iterator[Interactions]:
        """`block_users` users each; the item codes are the catalogue's."""
        counts = _activity(self.config, self.seed)
        world = _World.of(self.config, self.seed)
        item_ids = self.item_ids
        for first in range(0, self.users, self.block_users):
            block = counts[first : first + self.block_users]
            item, when = _block(world, first, block)
            yield Interactions(
                name=self.name,
                user=np.repeat(np.arange(len(block)), block),
                item=item,
                rating=None,
                time=when,
                user_ids=_numerals(np.arange(first, first + len(block)), self.users),
                item_ids=item_ids,
            )


def synthetic_interactions(config: SyntheticConfig, seed: int, *, block_users: int = 1000) -> Interactions:
    """Generate the whole data set in memory; arguments as for `SyntheticSource`."""
    return gather(SyntheticSource(config, seed, block_users))


def _numerals(numbers: Int64Array, bound: int) -> StrArray:
    """Labels no wider than those below `bound` must be: numpy would give every int64 21 characters."""
    return numbers.astype(f"U{len(str(bound - 1))}")


@dataclass(frozen=True)
class _World:
    """What all users have in common.

    Attributes:
        config, seed: what the data set is a function of.
        cumulative: see `_cumulative_tastes`.
        guide: ((clusters + 1) * _GUIDES + 1,) how many entries of `cumulative` are at most i / _GUIDES.
    """

    config: SyntheticConfig
    seed: int
    cumulative: Float64Array
    guide: Int64Array

    @classmethod
    def of(cls, config: SyntheticConfig, seed: int) -> _World:
        cumulative = _cumulative_tastes(config, seed)
        edges = np.arange((config.clusters + 1) * _GUIDES + 1) / _GUIDES
        return cls(config, seed, np.append(cumulative, np.inf), np.searchsorted(cumulative, edges, side="right"))

    def find(self, points: Float64Array) -> Int64Array:
        """What ``np.searchsorted(cumulative, points, side="right")`` gives: mostly read from a table."""
        found: Int64Array = self.guide[(points * _GUIDES).astype(np.int64)]
        further = np.flatnonzero(self.cumulative[found] <= points)
        found[further] = np.searchsorted(self.cumulative, points[further], side="right")
        return found


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


def _block(world: _World, first: int, counts: Int64Array) -> tuple[Int64Array, Float64Array]:
    """Items and times of users first .. first + len(counts) - 1, user by user, oldest first.

    A user's rows are the first distinct items of an endless stream of draws; more passes extend it.
    """
    config, seed = world.config, world.seed
    # user is numbered inside the block; a user's rows stay in the order they were drawn until the last step
    rows: _Rows = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    complete: list[_Rows] = []  # rows of users who need no further pass
    drawn, missing = np.zeros_like(counts), counts
    for attempt in range(_PASSES + 1):
        short = np.flatnonzero(missing)
        if not len(short):
            break
        if attempt < _PASSES:
            take = np.ceil(missing[short] * _OVERSAMPLING).astype(np.int64)
        else:  # tastes too concentrated to fill the count: complete it with the catalogue in random order
            take = np.full(len(short), config.items)
        user = np.repeat(short, take)
        position = np.arange(len(user)) + np.repeat(drawn[short] - (np.cumsum(take) - take), take)
        moment = _uniform(seed, "synthetic/moment", user + first, position)
        if attempt < _PASSES:
            item = _draw(world, first, user, position, moment)
        else:
            item = _shuffled_catalogues(config, seed, short + first)
        drawn[short] += take
        if attempt:
            user, item, moment = (np.concatenate(pair) for pair in zip(rows, (user, item, moment), strict=True))
        kept = _first_distinct(user, item, counts, config.items)
        user, item, moment = user[kept], item[kept], moment[kept]
        missing = np.where(missing > 0, counts - np.bincount(user, minlength=len(counts)), 0)
        lasting = missing[user] > 0
        complete.append((user[~lasting], item[~lasting], moment[~lasting]))
        rows = (user[lasting], item[lasting], moment[lasting])
    user, item, moment = (np.concatenate(column) for column in zip(*complete, strict=True))
    # moments have no more to do with the order of drawing: drawn first means popular, which old must not mean
    tick = (moment * (1 << 32)).astype(np.int64)
    order = stable_order((user << 32) | tick, len(counts) << 32)
    return item[order], _seconds(seed, first, counts, moment[order])


def _uniform(seed: int, purpose: str, user: Int64Array, position: Int64Array) -> Float64Array:
    """(rows,) uniform draws in [0, 1), one for each (user, position)."""
    drawn: Float64Array = keyed_uniform(seed, purpose, torch.from_numpy(user), torch.from_numpy(position)).numpy()
    return drawn


def _first_distinct(user: Int64Array, item: Int64Array, counts: Int64Array, items: int) -> Int64Array:
    """Row numbers of each user's first `counts` distinct items, by user, in the order of the rows."""
    rows = first_of_each(user * items + item, len(counts) * items)
    owner = user[rows]
    if (owner[1:] < owner[:-1]).any():  # rows of a later pass stand behind everybody's earlier ones
        order = stable_order(owner, len(counts))
        rows, owner = rows[order], owner[order]
    distinct = np.bincount(owner, minlength=len(counts))
    rank = np.arange(len(rows)) - np.repeat(np.cumsum(distinct) - distinct, distinct)
    kept: Int64Array = rows[rank < counts[owner]]
    return kept


def _draw(world: _World, first: int, user: Int64Array, position: Int64Array, moment: Float64Array) -> Int64Array:
    """One item a (user, position): by popularity, from the cluster drifted to, or one of the user's own.

    Args:
        world: the configuration, the seed and the cumulative tastes.
        first: number of the block's first user.
        user: (rows,) ascending, numbered inside the block.
        position: (rows,) which of the user's draws it is.
        moment: (rows,) when in the user's stay, in [0, 1).
    """
    config, seed = world.config, world.seed
    share = _uniform(seed, "synthetic/source", user + first, position)
    own = (share - config.noise) / (1 - config.noise)  # uniform on [0, 1) for rows that are not noise
    drifted = config.drift * moment
    left = (own - drifted) / (1 - drifted)
    # slots 0 to 2 are the user's own clusters; 3 is the cluster drifted to
    slot = np.where(own < drifted, len(_TASTE_ENDS) + 1, sum((left >= end).astype(np.int64) for end in _TASTE_ENDS))
    slots, users = torch.arange(len(_TASTE_ENDS) + 2), torch.arange(first, first + int(user[-1]) + 1)
    clusters = keyed_integers(config.clusters, seed, "synthetic/taste", users[:, None], slots).numpy()
    row = np.where(share < config.noise, config.clusters, clusters[user, slot])
    within = _uniform(seed, "synthetic/draw", user + first, position)
    found: Int64Array = world.find(row + within) - row * config.items
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
