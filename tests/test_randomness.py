"""Keyed draws: equal to a plain-integer twin, independent of shape and order, and distributed as they say."""

from __future__ import annotations

import hashlib
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from fedem_flwr.randomness import (
    keyed_bits,
    keyed_integers,
    keyed_normal,
    keyed_permutation,
    keyed_uniform,
)

MASK = (1 << 64) - 1
coordinate = st.integers(-(2**62), 2**62)


def twin_bits(seed: int, purpose: str, *coordinates: int) -> int:
    """SplitMix64's finaliser over the coordinates, in Python's unbounded integers."""
    state = int.from_bytes(hashlib.blake2b(f"{seed}:{purpose}".encode(), digest_size=8).digest(), "little")
    for c in coordinates:
        x = (state + (c + 1) * 0x9E3779B97F4A7C15) & MASK
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        state = x ^ (x >> 31)
    return state >> 1


def chi2_p(counts: np.ndarray) -> float:
    return float(stats.chisquare(counts).pvalue)


@given(st.integers(0, 2**40), st.text(max_size=12), st.lists(coordinate, max_size=4))
def test_bits_equal_the_integer_twin(seed: int, purpose: str, coordinates: list[int]) -> None:
    assert int(keyed_bits(seed, purpose, *coordinates)) == twin_bits(seed, purpose, *coordinates)


def test_bits_are_pinned() -> None:
    """Stored splits and runs are functions of these numbers: changing them silently would change every result."""
    assert int(keyed_bits(0, "pin", 1, 2, 3)) == twin_bits(0, "pin", 1, 2, 3) == 3557765427502581732


@given(st.integers(0, 50), st.permutations(range(6)), st.integers(1, 5))
def test_draws_do_not_depend_on_shape_order_or_company(seed: int, order: list[int], width: int) -> None:
    users, position = torch.arange(6), torch.arange(9)
    whole = keyed_bits(seed, "x", 3, users[:, None], position)  # (6, 9)
    index = torch.tensor(order)
    assert torch.equal(keyed_bits(seed, "x", 3, users[index][:, None], position), whole[index])
    assert torch.equal(keyed_bits(seed, "x", 3, users[:, None], position[:width]), whole[:, :width])
    assert torch.equal(keyed_bits(seed, "x", 3, users, position[:, None]), whole.T)
    assert int(keyed_bits(seed, "x", 3, order[0], width)) == int(whole[order[0], width])
    assert int(keyed_bits(seed, "x", torch.tensor(3), order[0], width)) == int(whole[order[0], width])


def test_streams_of_other_seeds_purposes_rounds_and_users_differ() -> None:
    position = torch.arange(4096)
    keys = itertools.product((0, 1), ("a", "b"), (1, 2), (0, 1))
    streams = [keyed_uniform(seed, purpose, round_, user, position) for seed, purpose, round_, user in keys]
    streams.append(keyed_uniform(0, "a", position + 9, 1, 0))  # the same numbers in other coordinates
    matrix = torch.stack(streams)
    assert len(matrix.unique()) == matrix.numel()
    correlation = torch.corrcoef(matrix) - torch.eye(len(streams), dtype=torch.float64)
    assert float(correlation.abs().max()) < 5 / math.sqrt(4096)


def test_each_bit_is_fair_and_flips_with_any_change_of_a_coordinate() -> None:
    n = 1 << 15
    users = torch.arange(n)
    bits = torch.arange(63)
    first = keyed_bits(1, "fair", users, 7)
    for users_too, last in ((users + 1, 7), (users ^ 256, 7), (users, 6)):
        other = keyed_bits(1, "fair", users_too, last)
        flipped = ((first ^ other)[:, None] >> bits & 1).double().mean(0)
        assert float((flipped - 0.5).abs().max()) < 5 * 0.5 / math.sqrt(n)
    ones = (first[:, None] >> bits & 1).double().mean(0)
    assert float((ones - 0.5).abs().max()) < 5 * 0.5 / math.sqrt(n)
    assert int(first.min()) >= 0


@pytest.mark.parametrize("bound", [2, 7, 10, 999])
def test_integers_are_uniform(bound: int) -> None:
    drawn = keyed_integers(bound, 5, "uniform", 1, torch.arange(200)[:, None], torch.arange(500))
    assert chi2_p(np.bincount(drawn.flatten().numpy(), minlength=bound)) > 1e-3


@given(st.lists(st.integers(1, 2**40), min_size=1, max_size=20), st.integers(0, 100))
def test_integers_stay_below_their_own_bound(bounds: list[int], seed: int) -> None:
    bound = torch.tensor(bounds)
    drawn = keyed_integers(bound, seed, "bound", torch.arange(len(bounds)))
    assert bool((drawn >= 0).all()) and bool((drawn < bound).all())
    alone = [int(keyed_integers(b, seed, "bound", j)) for j, b in enumerate(bounds)]
    assert drawn.tolist() == alone


def test_successive_draws_are_independent() -> None:
    pairs = keyed_integers(8, 2, "pairs", torch.arange(40_000)[:, None], torch.arange(2))
    assert chi2_p(np.bincount((pairs[:, 0] * 8 + pairs[:, 1]).numpy(), minlength=64)) > 1e-3


def test_uniform_is_uniform_with_53_bits() -> None:
    u = keyed_uniform(3, "u", torch.arange(100_000))
    assert u.dtype == torch.float64 and float(u.min()) >= 0 and float(u.max()) < 1
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3
    assert bool(((u * 2.0**53) % 2 == 1).any())  # the last of the 53 bits is in use


def test_normal_moments_and_distribution() -> None:
    x = keyed_normal(4, "n", torch.arange(500)[:, None], torch.arange(400))
    assert x.dtype == torch.float32 and bool(x.isfinite().all())
    values = x.double().flatten().numpy()
    n = len(values)
    assert abs(values.mean()) < 4 / math.sqrt(n)
    assert abs(values.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs(stats.skew(values)) < 4 * math.sqrt(6 / n)
    assert abs(stats.kurtosis(values)) < 4 * math.sqrt(24 / n)
    assert stats.kstest(values, "norm").pvalue > 1e-3
    columns = np.corrcoef(x[:, :50].double().numpy().T) - np.eye(50)
    assert np.abs(columns).max() < 5 / math.sqrt(500)


@given(st.integers(0, 200), st.integers(0, 20), st.integers(0, 20))
def test_permutation_holds_each_number_once(count: int, seed: int, round_: int) -> None:
    drawn = keyed_permutation(count, seed, "order", round_)
    assert drawn.dtype == torch.int64 and sorted(drawn.tolist()) == list(range(count))
    assert torch.equal(drawn, keyed_permutation(count, seed, "order", round_))


def test_permutations_are_uniform() -> None:
    seen = [tuple(keyed_permutation(3, 0, "order", round_).tolist()) for round_ in range(3000)]
    counts = np.array([seen.count(order) for order in itertools.permutations(range(3))])
    assert chi2_p(counts) > 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_draws_the_same_numbers() -> None:
    def draws(device: str) -> list[Tensor]:
        users = torch.arange(-500, 500, device=device)
        key = (9, "device", 3, users[:, None], torch.arange(64, device=device))
        return [keyed_bits(*key).cpu(), keyed_uniform(*key).cpu(), keyed_integers(1682, *key).cpu()]

    for here, there in zip(draws("cpu"), draws("cuda"), strict=True):
        assert torch.equal(here, there)
