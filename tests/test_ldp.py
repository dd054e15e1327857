"""Local differential privacy by the numbers: clipping, noise and its distribution, and what it comes to."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq
from worlds import config_of

from fedem_flwr.engine.clipping import Clipping, sensitivity
from fedem_flwr.engine.contribution import Contribution
from fedem_flwr.engine.noise import Kind, NoiseStream, deviation, farthest, fresh_key, seeded_key
from fedem_flwr.engine.parts import Part
from fedem_flwr.privacy import accounting

PARTS = {
    "items": Part("item", 3, up="sum"),
    "other": Part("item", 2, up="sum", mean="users"),
    "own": Part("item", 2, up="each", kept=True),
    "net": Part("model", 4, up="sum", mean="samples"),
}
DELTA = 1e-5


def a_contribution(seed: int, size: float, users: int = 3) -> Contribution:
    """Of users with two or three touched rows of six items."""
    draw = torch.Generator().manual_seed(seed)
    items = torch.tensor([[0, 2, 5], [1, 2, 0], [3, 4, 5]])[:users]
    real = torch.tensor([[True, True, True], [True, True, False], [True, True, True]])[:users]
    shapes = {"items": (users, 3, 3), "other": (users, 3, 2), "own": (users, 6, 2), "net": (users, 4)}
    before = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    after = {name: x + size * torch.randn(x.shape, generator=draw) for name, x in before.items()}
    rows, values = ({n: after[n] for n in names} for names in (("items", "other"), ("own", "net")))
    return Contribution(torch.arange(users), torch.full((users,), 5), items, real, rows, before, values)


def vector(one: Contribution, count: float) -> torch.Tensor:
    """(k, ...) what each user sends, written out."""
    factor = torch.ones(len(one.users), dtype=torch.float64) if one.factor is None else one.factor
    pieces = []
    for at in range(len(one.users)):
        real, f = one.real[at], factor[at]
        of_rows = (one.rows["items"][at][real].double() - one.before["items"][at][real]) * f
        pieces.append(
            torch.cat(
                [
                    of_rows.flatten(),
                    torch.full((int(real.sum()),), count, dtype=torch.float64) * f,
                    (one.rows["other"][at][real].double() - one.before["other"][at][real]).flatten(),
                    (one.values["own"][at].double() - one.before["own"][at]).flatten(),
                    one.values["net"][at].double() - one.before["net"][at],
                    torch.zeros(3 * (3 + 2 + 1) - int(real.sum()) * (3 + 2 + 1), dtype=torch.float64),
                ]
            )
        )
    return torch.stack(pieces)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    size=st.floats(0, 30),
    limit=st.floats(1e-3, 60),
    order=st.sampled_from([1, 2]),
    count=st.floats(0.01, 5),
)
def test_no_user_sends_more_than_the_limit(seed: int, size: float, limit: float, order: int, count: float) -> None:
    """And whoever sends less is left as it is, to the bit; and one user's shortening looks at no other's."""
    given_, clip = a_contribution(seed, size), Clipping(PARTS, limit, order, count)
    found, before = clip(given_, 1), torch.linalg.vector_norm(vector(given_, count), ord=order, dim=1)
    after = torch.linalg.vector_norm(vector(found, count), ord=order, dim=1)
    assert bool((after <= limit).all())
    assert found.factor is not None
    for at in torch.nonzero(before < limit * (1 - 1e-9)).squeeze(1):
        assert float(found.factor[at]) == 1
        for name in PARTS:
            same = found.rows if name in found.rows else found.values
            assert torch.equal(
                same[name][at].float(), (given_.rows if name in given_.rows else given_.values)[name][at]
            )
    alone = clip(a_contribution(seed, size, users=3), 1).factor
    assert alone is not None and torch.equal(alone, found.factor)
    others = replace(
        given_, values={**given_.values, "net": given_.values["net"] + torch.tensor([[0.0], [0.0], [9.0]])}
    )
    moved = clip(others, 1).factor
    assert moved is not None and torch.equal(moved[:2], found.factor[:2])


@pytest.mark.parametrize(("kind", "law"), [("laplace", stats.laplace), ("gaussian", stats.norm)])
def test_noise_has_its_distribution(kind: Kind, law: Any) -> None:
    drawn = NoiseStream(seeded_key(1, 2, 3), kind, 2.5).draw(200, 1001).numpy()
    assert stats.kstest(drawn.ravel(), law(scale=2.5).cdf).pvalue > 0.01
    assert abs(np.corrcoef(drawn[:, :-1].ravel(), drawn[:, 1:].ravel())[0, 1]) < 0.01
    half = drawn.ravel()[: drawn.size // 2]
    assert abs(np.corrcoef(half, drawn.ravel()[-len(half) :])[0, 1]) < 0.01, "both of a pair are used once"
    one, other = (NoiseStream(seeded_key(1, 2, user), kind, 2.5).draw(1000).numpy() for user in (3, 4))
    assert np.array_equal(one, drawn.ravel()[:1000]) or kind == "gaussian"  # whose pairs depend on how many there are
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.15, "users have noise of their own"
    stream = NoiseStream(fresh_key(), kind, 1.0)
    assert not torch.equal(stream.draw(50), stream.draw(50)) and fresh_key() != fresh_key()


@pytest.mark.parametrize("kind", ["laplace", "gaussian"])
def test_sums_of_noise_are_as_wide_as_is_said_and_no_wider(kind: Kind) -> None:
    sums = NoiseStream(seeded_key(0, 0, 0), kind, 0.5).draw(40, 5000).sum(0)
    assert float(sums.std()) == pytest.approx(deviation(kind, 0.5, 40), rel=0.05)
    assert float(sums.abs().max()) < farthest(kind, 0.5, 40) < 40 * deviation(kind, 0.5, 40)


def exact_gaussian(ratio: float, delta: float) -> float:
    """ε of one Gaussian release, by the closed form of Balle and Wang (2018), Theorem 8."""

    def excess(epsilon: float) -> float:
        a, b = 1 / (2 * ratio), epsilon * ratio
        return float(stats.norm.cdf(a - b) - math.exp(epsilon + stats.norm.logcdf(-a - b)) - delta)

    return float(brentq(excess, 0, 1 / ratio**2 + 20 / ratio))


def gaussian(ratio: float, releases: int) -> float:
    return accounting.composed_of({accounting.Mechanism("gaussian", ratio): releases}, DELTA)[0]


@pytest.mark.parametrize(("ratio", "releases"), [(1.0, 1), (5.0, 1), (5.0, 100), (30.0, 100), (0.5, 3)])
def test_gaussian_epsilon_is_above_the_exact_one_and_near_it(ratio: float, releases: int) -> None:
    """T Gaussian releases are one with √T times less noise. The accountant's own object says the same."""
    exact = exact_gaussian(ratio / math.sqrt(releases), DELTA)
    found = gaussian(ratio, releases)
    assert exact <= found <= 1.15 * exact
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(ratio, 1.0, releases)]
    theirs = accountant.get_epsilon(DELTA, alphas=[*np.linspace(1.05, 60, 2000)])
    assert found == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize(("ratio", "releases"), [(2.0, 1), (20.0, 100), (3.0, 10)])
def test_laplace_epsilon_holds_for_the_losses_that_are_drawn(ratio: float, releases: int) -> None:
    """One release: S / b. Many: with probability 1 - δ the loss that an observer sees is no larger, and it is no less
    than the loss of one in a hundred.
    """
    delta = 1e-3
    config = config_of("fedmf", ldp={"noise": "laplace", "clip": 3.0, "multiplier": 2 * ratio, "delta": delta})
    found = accounting.spent(config, releases)
    assert found is not None and found.round == pytest.approx(1 / ratio)
    draws = np.random.default_rng(0).laplace(0, ratio, (40_000, releases))
    loss = (np.abs(draws - 1) - np.abs(draws)).sum(1) / ratio
    exceeded = np.maximum(0, 1 - np.exp(found.composed - loss)).mean()  # δ(ε), by drawing
    assert exceeded <= delta and found.composed <= releases / ratio * (1 + 1e-9)
    assert found.composed >= np.quantile(loss, 0.99) - 1e-9 or releases == 1
    assert (found.delta == 0) == (found.composed == pytest.approx(releases / ratio))


def test_sensitivity_is_that_of_the_farthest_uploads() -> None:
    """Two users' uploads of norm C in opposite directions; and a coordinate ±C/2 that says who was shortened."""
    for order in (1, 2):
        apart = np.array([1.0, 0, 0.5]) - np.array([-1.0, 0, -0.5])
        assert sensitivity(order, told=True) == pytest.approx(np.linalg.norm(apart, order))
        assert sensitivity(order, told=False) == 2


def test_both_epsilons_by_hand() -> None:
    """S = 2 p η Z = 2 · 0.01 · 0.1 · 3, δ = 0.5 · 4: the paper's; and 2 C / δ = 4 a round of what is really sent."""
    config = config_of(
        "fedmf",
        ldp={"noise": "laplace", "clip": 4.0, "multiplier": 0.5},
        gradients={"clip": 3.0},
        local={"lr_item": 0.1},
    )
    found = accounting.spent(config, 7, 0.01)
    assert found is not None and found.paper == pytest.approx(2 * 0.01 * 0.1 * 3 / 2)
    assert found.round == pytest.approx(4) and found.composed == pytest.approx(28) and found.delta == 0
    followed = accounting.spent(config.changed("ldp", quantile=0.5), 7, 0.01)
    assert followed is not None and followed.round == pytest.approx(6), "telling who was shortened costs half a C"
    assert accounting.spent(config.changed("ldp", noise="none"), 7, 0.01) is None
    other = accounting.spent(config.changed("ldp", noise="gaussian", multiplier=20.0), 7, 0.01)
    assert other is not None and other.paper is None
    assert other.composed == pytest.approx(gaussian(10.0, 7))
    assert gaussian(1.0, 0) == 0
