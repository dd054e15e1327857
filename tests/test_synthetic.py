"""The synthetic data set: against its slow twin, its tails, tastes and drift."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedem_flwr.data import (
    Interactions,
    SyntheticConfig,
    SyntheticSource,
    gather,
    load_dataset,
    open_source,
    synthetic_interactions,
)
from fedem_flwr.data.synthetic import _OVERSAMPLING, _PASSES, _activity, _cumulative_tastes
from fedem_flwr.randomness import keyed_bits, keyed_integers, keyed_uniform

SMALL = SyntheticConfig(users=90, items=120, mean_interactions=20)


def same(left: Interactions, right: Interactions) -> bool:
    fields = ("user", "item", "time", "user_ids", "item_ids")
    return all(np.array_equal(getattr(left, field), getattr(right, field)) for field in fields)


def test_synthetic_is_a_function_of_the_seed_alone() -> None:
    data = synthetic_interactions(SMALL, 3)
    assert same(data, synthetic_interactions(SMALL, 3))
    assert not same(data, synthetic_interactions(SMALL, 4))
    assert same(data, load_dataset("synthetic", None, seed=3, synthetic=SMALL))
    for block_users in (1, 7, 90):
        assert same(data, synthetic_interactions(SMALL, 3, block_users=block_users))


@settings(max_examples=20, deadline=None)
@given(
    users=st.integers(2, 40),
    items=st.integers(36, 80),
    sharpness=st.sampled_from([0.0, 12.0, 60.0]),
    seed=st.integers(0, 2**31),
)
@example(users=20, items=36, sharpness=500.0, seed=1)  # tastes too narrow: the catalogue completes the rows
def test_synthetic_invariants(users: int, items: int, sharpness: float, seed: int) -> None:
    config = SyntheticConfig(users=users, items=items, sharpness=sharpness)
    data = synthetic_interactions(config, seed)
    counts = np.bincount(data.user, minlength=users)
    assert counts.min() >= config.min_interactions
    assert counts.max() <= items // 3
    assert len(np.unique(data.user * data.items + data.item)) == data.rows  # no pair twice
    assert data.users == users
    assert data.items <= items
    assert data.rating is None
    assert data.time is not None
    same_user = np.diff(data.user) == 0
    assert (np.diff(data.time)[same_user] >= 0).all()
    assert set(np.diff(data.user).tolist()) <= {0, 1}
    first = np.unique(data.item, return_index=True)[1]
    assert (np.diff(first) > 0).all()  # codes by first appearance
    assert len(set(data.item_ids.tolist())) == data.items


def test_synthetic_activity_and_popularity_have_heavy_tails() -> None:
    config = SyntheticConfig(users=4000, items=1000, drift=0, popularity_exponent=0.9, sharpness=0)
    data = synthetic_interactions(config, 0)
    counts = np.bincount(data.user)
    assert abs(counts.mean() - config.mean_interactions) < 2
    assert counts.max() > 5 * counts.mean()
    popularity = np.sort(np.bincount(data.item))[::-1]
    ranks = np.arange(20, 500)
    slope = np.polyfit(np.log(ranks), np.log(popularity[ranks]), 1)[0]
    assert -1.05 < slope < -0.7  # near -0.9; the head is flatter, since no user meets an item twice


def hit_ratio(scores: np.ndarray, seen: np.ndarray, target: np.ndarray) -> float:
    scores = np.where(seen, -np.inf, scores)
    own = np.take_along_axis(scores, target[:, None], axis=1)
    return float(((scores >= own).sum(axis=1) <= 10).mean())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_synthetic_rewards_collaborative_filtering(seed: int) -> None:
    """Leave one out on the whole catalogue: EASE (Steck 2019) far above popularity, and far from perfect."""
    data = load_dataset("synthetic", None, seed=seed)
    last = np.cumsum(np.bincount(data.user)) - 1
    seen = np.zeros((data.users, data.items), dtype=bool)
    seen[data.user, data.item] = True
    users, target = np.arange(data.users), data.item[last]
    seen[users, target] = seen[users, data.item[last - 1]] = False
    inverse = np.linalg.inv(seen.T.astype(float) @ seen + 100 * np.eye(data.items))
    ease = -inverse / np.diag(inverse)
    np.fill_diagonal(ease, 0)
    popularity = hit_ratio(np.tile(seen.sum(axis=0), (data.users, 1)), seen, target)
    collaborative = hit_ratio(seen @ ease, seen, target)
    assert 0.04 < popularity < 0.14
    assert 1.8 * popularity < collaborative < 0.6


def early_late_affinity(drift: float) -> float:
    """How much nearer a user's first half is to the user's own last quarter than to another's."""
    config = SyntheticConfig(users=800, items=3000, mean_interactions=20, noise=0, drift=drift, dim=64)
    data = synthetic_interactions(config, 0)
    counts = np.bincount(data.user)
    rank = (np.arange(data.rows) - np.repeat(np.cumsum(counts) - counts, counts)) / counts[data.user]
    early, late = np.zeros((2, data.users, data.items))
    early[data.user[rank < 0.5], data.item[rank < 0.5]] = 1
    late[data.user[rank >= 0.75], data.item[rank >= 0.75]] = 1
    norms = np.linalg.norm(early, axis=0) + 1e-9
    alike = (early / norms).T @ (early / norms)  # cosine of items
    np.fill_diagonal(alike, 0)
    profile = early @ alike
    return float((profile * late).sum() / (profile * np.roll(late, 1, axis=0)).sum())


def test_synthetic_tastes_drift_to_another_cluster() -> None:
    steady, drifting = early_late_affinity(0.0), early_late_affinity(0.9)
    assert steady > 1.2
    assert drifting - 1 < 0.6 * (steady - 1)


@pytest.mark.parametrize(
    "wrong", [{"users": 1}, {"mean_interactions": 5}, {"items": 33}, {"noise": 2.0}, {"unknown": 1}]
)
def test_synthetic_config_refuses_nonsense(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        SyntheticConfig.model_validate(wrong)


# --- against one draw at a time


def slow_history(config: SyntheticConfig, seed: int, user: int, count: int, cumulative: np.ndarray) -> list[int]:
    """The generator's slow twin: one user's items, oldest first, one draw at a time."""

    def uniform(purpose: str, position: int) -> float:
        return float(keyed_uniform(seed, f"synthetic/{purpose}", user, position))

    found: dict[int, float] = {}
    position = 0
    for attempt in range(_PASSES + 1):
        missing = count - len(found)
        catalogue = keyed_bits(seed, "synthetic/shuffle", user, torch.arange(config.items)).argsort().tolist()
        for step in range(int(np.ceil(missing * _OVERSAMPLING)) if attempt < _PASSES else config.items * (missing > 0)):
            moment, share = uniform("moment", position), uniform("source", position)
            if attempt == _PASSES:
                item = catalogue[step]
            else:
                own, drifted = (share - config.noise) / (1 - config.noise), config.drift * moment
                left = (own - drifted) / (1 - drifted)
                slot = 3 if own < drifted else (0 if left < 0.6 else 1 if left < 0.85 else 2)
                cluster = int(keyed_integers(config.clusters, seed, "synthetic/taste", user, slot))
                row = config.clusters if share < config.noise else cluster
                place = int(np.searchsorted(cumulative, row + uniform("draw", position), side="right"))
                item = min(place - row * config.items, config.items - 1)
            position += 1
            if len(found) < count:
                found.setdefault(item, moment)
    return sorted(found, key=lambda item: int(found[item] * 2**32))


@settings(max_examples=8, deadline=None)
@given(st.integers(36, 80), st.sampled_from([0.0, 12.0]), st.integers(0, 2**31), st.integers(1, 5))
@example(36, 500.0, 1, 2)  # tastes too narrow: the catalogue completes the rows
def test_the_generator_equals_its_slow_twin(items: int, sharpness: float, seed: int, block_users: int) -> None:
    config = SyntheticConfig(users=5, items=items, sharpness=sharpness, mean_interactions=13)
    data = synthetic_interactions(config, seed, block_users=block_users)
    counts, cumulative = _activity(config, seed), _cumulative_tastes(config, seed)
    for user in range(config.users):
        labels = data.item_ids[data.item[data.user == user]].astype(int).tolist()
        assert labels == slow_history(config, seed, user, int(counts[user]), cumulative)


def test_a_source_is_opened_without_its_rows() -> None:
    source = open_source("synthetic", seed=3, synthetic=SyntheticConfig(users=10**6, items=10**4))
    assert isinstance(source, SyntheticSource)
    assert (source.name, source.users, source.items) == ("synthetic", 10**6, 10**4)
    first = next(source.blocks())
    assert first.users == source.block_users
    assert first.user_ids[:2].tolist() == ["0", "1"]
    small = SyntheticConfig(users=50)
    data = load_dataset("synthetic", seed=3, synthetic=small)
    assert np.array_equal(data.item, gather(open_source("synthetic", seed=3, synthetic=small)).item)
