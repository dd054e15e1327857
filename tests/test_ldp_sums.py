"""`[ldp]` for sums that histories make: fedials' rows, counts and d × d matrix, clipped as one vector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import USERS, carry_out, carry_out_watched, config_of, figures, largest_difference

from fedem_flwr.aggregation.newton import nearest_gram
from fedem_flwr.config import resolve
from fedem_flwr.contract.finding import method_of
from fedem_flwr.contract.guarded_sums import GuardedSums
from fedem_flwr.contract.guarding import LIMIT
from fedem_flwr.contract.phases import Sender
from fedem_flwr.engine.clipping import shortened
from fedem_flwr.errors import InputError

NOISE: dict[str, Any] = {"noise": "gaussian", "clip": 1.0, "multiplier": 0.2}


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 999), st.floats(0, 30), st.floats(1e-3, 60), st.sampled_from([1, 2]), st.floats(0.01, 5))
def test_arrays_are_shortened_together_and_only_where_they_are_longer(
    seed: int, size: float, limit: float, order: int, weight: float
) -> None:
    draw = torch.Generator().manual_seed(seed)
    vector = {n: size * torch.randn(s, generator=draw, dtype=torch.float64) for n, s in (("a", (4, 3)), ("b", (4,)))}
    weights = {"a": 1.0, "b": weight}
    short, whole = shortened(vector, weights, limit, order)
    before, after = (
        float(np.linalg.norm(np.concatenate([(v[n] * weights[n]).numpy().ravel() for n in v]), order))
        for v in (vector, short)
    )
    assert after <= limit and whole == (before <= limit)
    if whole:
        assert all(torch.equal(short[n], vector[n]) for n in vector)
    else:
        assert after == pytest.approx(limit)
    bad = {**vector, "b": vector["b"] * float("nan")}
    none, whole = shortened(bad, weights, limit, order)
    assert not whole and not any(bool(x.any()) for x in none.values())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(1, 6))
def test_the_nearest_matrix_that_is_a_sum_of_squares(seed: int, d: int) -> None:
    """Semidefinite; as it was where it is so already; and no nearer one is found by looking around."""
    draw = torch.Generator().manual_seed(seed)
    noisy = torch.randn(d, d, generator=draw, dtype=torch.float64)
    found = nearest_gram(noisy)
    assert torch.equal(found, found.T) or torch.allclose(found, found.T, atol=1e-12)
    assert float(torch.linalg.eigvalsh(found).min()) > -1e-12
    assert torch.allclose(nearest_gram(found), found, atol=1e-10)
    both = nearest_gram(torch.stack([noisy, -noisy]))
    assert torch.allclose(both[0], found, atol=1e-10) and torch.allclose(both[1], nearest_gram(-noisy), atol=1e-10)
    for _ in range(20):
        root = torch.linalg.cholesky(found + 1e-9 * torch.eye(d, dtype=torch.float64))
        other = (root + 0.1 * torch.randn(d, d, generator=draw, dtype=torch.float64)) @ root.T
        other = nearest_gram(other)
        assert float((noisy - found).norm()) <= float((noisy - other).norm()) + 1e-9


def test_clipping_that_shortens_nothing_changes_nothing(tmp_path: Path) -> None:
    plain = carry_out(tmp_path / "plain", config_of("fedials"))
    through = carry_out(tmp_path / "through", config_of("fedials", ldp={"clip": 1e30}))
    assert through.outcome.failures == [] and largest_difference(plain.server, through.server) < 1e-5
    short = carry_out(tmp_path / "short", config_of("fedials", ldp={"clip": 0.05}))
    assert short.outcome.failures == [] and largest_difference(plain.server, short.server) > 1e-3


@pytest.mark.parametrize("noise", ["gaussian", "laplace"])
def test_noise_is_everywhere_and_the_server_stays_sane(noise: str, tmp_path: Path) -> None:
    """With noise far above what users say: every number goes up, P is not semidefinite, and the table is finite."""
    ldp = {**NOISE, "noise": noise, "multiplier": 5.0, "quantile": 0.5}
    done, grid = carry_out_watched(tmp_path, config_of("fedials", ldp=ldp, run={"rounds": 6}))
    assert done.outcome.failures == [] and "items" not in (ups := [c.arrays for c in grid.up if c.kind == "train"])[0]
    assert all(bool((x != 0).all()) for one in ups for x in one.values())
    assert min(np.linalg.eigvalsh((one["gram"] + one["gram"].T) / 2)[0] for one in ups) < -1
    assert np.linalg.eigvalsh(done.server["gram"])[0] > -1e-6 * np.trace(done.server["gram"])
    counts = done.server["counts"]
    assert counts.min() >= 0 and counts.max() <= USERS and np.isfinite(done.server["table"]).all()
    assert float(done.server[LIMIT][0]) != 1.0, "C moves"
    assert all(np.isfinite(list(figures(line)["validation"]["full"].values())).all() for line in done.lines)


def test_seeded_noise_does_not_depend_on_the_spread(tmp_path: Path) -> None:
    ldp = {**NOISE, "seeded": True}
    one, three = (
        carry_out(tmp_path / str(each), config_of("fedials", ldp=ldp, run={"users_per_node": each}))
        for each in (0, USERS // 3)
    )
    assert largest_difference(one.server, three.server) < 1e-4


def test_what_so_many_users_cannot_send_is_refused() -> None:
    method = method_of(config_of("fedials", ldp=NOISE), 60)
    task = method.schedule.at(1)[0].task
    assert isinstance(task, GuardedSums) and list(task.fields()) == ["rows", "counts", "gram"]
    sender = Sender(1, np.full(USERS, 9), 9)
    fine = {name: np.zeros(field.shape, np.float32) for name, field in task.fields().items()}  # type: ignore[arg-type]
    assert task.impossible(fine, method.start(), sender) == ""
    for name, values in fine.items():
        far = {**fine, name: values + 1e3}
        assert f"'{name}'" in task.impossible(far, method.start(), sender)


def test_those_whose_other_sums_nothing_bounds_are_still_refused() -> None:
    for name, more in (("fedials-order", {"order": {"rounds": 2}}), ("fedials-elastic", {})):
        with pytest.raises(
            InputError, match=rf"\[ldp\] with {name}: .*groups, pairs of items.*--method fedials"
        ) as caught:
            method_of(config_of(name, ldp=NOISE, run={"rounds": 30}, **more), 60)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"\[ldp\] with auto: .*--method fedials"):
        method_of(resolve({}, {"method": {"name": "auto"}, "ldp": NOISE}), 60)


def test_tables_side_by_side_are_guarded_as_one_is(tmp_path: Path) -> None:
    """`auto` in so few rounds that it has no order: without a search it is `fedials`, to the noise; with one, too."""
    same = {"ldp": {**NOISE, "seeded": True}, "ials": {"weight": 0.2, "ridge": 0.01}}
    same |= {"run": {"rounds": 2}, "model": {"dim": 8, "init_std": 0.1}}
    auto, plain = (carry_out(tmp_path / name, config_of(name, **same)) for name in ("auto", "fedials"))
    assert (
        auto.outcome.failures == []
        and largest_difference(
            {name: auto.server[name].reshape(plain.server[name].shape) for name in ("table", "gram", "counts")},
            {name: plain.server[name] for name in ("table", "gram", "counts")},
        )
        < 1e-6
    )
    search = {"weights": [0.3, 0.05], "ridges": [0.01], "learn": 1, "rounds": 3}
    found = carry_out(tmp_path / "search", config_of("auto", ldp=NOISE, search=search, run={"rounds": 3}))
    assert found.outcome.failures == [] and found.server["tried"].shape[0] == 2
    assert np.isfinite(found.server["table"]).all() and found.server["gram"].shape[-1] == found.server["gram"].shape[-2]
