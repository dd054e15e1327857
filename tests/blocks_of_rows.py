"""Made-up interactions, whole and in blocks of users."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from fedem_flwr.data import Interactions
from fedem_flwr.data.interactions import first_appearance
from fedem_flwr.protocol import Split

FEWEST = 3  # fewest rows a user that still leave one to train on
protocols = st.sampled_from(["paper", "strict"])
in_a_folder = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def interactions_of(rows: list[tuple[int, int, float, float]], *, times: bool, ratings: bool) -> Interactions:
    user, user_ids = first_appearance(np.array([f"u{row[0]}" for row in rows]))
    item, item_ids = first_appearance(np.array([f"i{row[1]}" for row in rows]))
    rating = np.array([row[2] for row in rows]) if ratings else None
    return Interactions(
        "made-up", user, item, rating, np.array([row[3] for row in rows]) if times else None, user_ids, item_ids
    )


interactions = st.builds(
    interactions_of,
    st.lists(
        st.tuples(
            st.integers(0, 5), st.integers(0, 12), st.sampled_from([0.0, 1.0, 4.5]), st.integers(0, 4).map(float)
        ),
        min_size=10,
        max_size=90,
    ),
    times=st.booleans(),
    ratings=st.booleans(),
)


@dataclass(frozen=True, eq=False)
class InBlocks:
    """Interactions whose users' rows lie together, a few users a block."""

    whole: Interactions
    block_users: int
    fails_at: int = -1

    name = "made-up"

    @property
    def users(self) -> int:
        return self.whole.users

    @property
    def items(self) -> int:
        return self.whole.items

    @property
    def item_ids(self) -> np.ndarray:
        return self.whole.item_ids

    def blocks(self) -> Iterator[Interactions]:
        for first in range(0, self.users, self.block_users):
            if first == self.fails_at:
                raise OSError("no space left")
            last = min(first + self.block_users, self.users)
            rows = (self.whole.user >= first) & (self.whole.user < last)
            part = replace(self.whole.take(rows), item=self.whole.item[rows], item_ids=self.whole.item_ids)
            assert np.array_equal(part.user_ids, self.whole.user_ids[first:last])
            yield part


def grouped(whole: Interactions) -> Interactions:
    return whole.take(np.argsort(whole.user, kind="stable"))


def same(a: Split, b: Split) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))
