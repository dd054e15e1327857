"""Sharpness-aware gradients, which any method can be given, and FedRecGEL, which is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from factorised import cohort_of
from test_shared_structure import ITEMS, LISTS, USERS, asked, gathered, method, options, side, users
from torch import Tensor

from fedem_flwr.config import resolve
from fedem_flwr.contract.finding import method_of
from fedem_flwr.engine.block import Batch, Block
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.gradients import GradientStep, automatic, sharp
from fedem_flwr.engine.samples import draw_samples
from fedem_flwr.errors import InputError
from fedem_flwr.methods.fedmf import FedMF
from fedem_flwr.methods.fedrecgel import FedRecGEL
from fedem_flwr.models.neumf import NeuMF

RHO = 0.3


class Quadratic:
    """½ θᵀ H θ over both parts together, for two users."""

    def __init__(self, *groups: Sequence[str]) -> None:
        root = torch.randn(4, 4, generator=torch.manual_seed(0))
        self.h, self.groups, self.rho = root @ root.T, groups, {"a": RHO, "b": RHO}

    def gradients(self, batch: Any, names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        theta = torch.cat([batch.block.parts[name] for name in ("a", "b")], 1)
        slope = dict(zip(("a", "b"), (theta @ self.h).split([3, 1], 1), strict=True))
        return (theta @ self.h * theta).sum(1) / 2, {name: slope[name] for name in names}

    def perturbed(self, names: Sequence[str]) -> Sequence[Sequence[str]]:
        return self.groups

    def sharpness(self, name: str) -> float:
        return self.rho[name]


def batch_of(theta: Tensor) -> Any:
    return SimpleNamespace(block=SimpleNamespace(parts={"a": theta[:, :3], "b": theta[:, 3:]}))


def test_of_a_quadratic_it_is_the_gradient_at_the_perturbed_point() -> None:
    theta, learner = torch.randn(2, 4, generator=torch.manual_seed(1)), Quadratic(("a", "b"))
    batch = batch_of(theta)
    loss, found = sharp(learner, batch, ["a", "b"])  # type: ignore[arg-type]
    slope = theta @ learner.h
    expected = (theta + RHO * slope / slope.norm(dim=1, keepdim=True)) @ learner.h
    torch.testing.assert_close(torch.cat([found["a"], found["b"]], 1), expected)
    torch.testing.assert_close(loss, (theta * slope).sum(1) / 2)
    assert torch.equal(torch.cat(list(batch.block.parts.values()), 1), theta), "the parts are where they were"


def test_groups_are_perturbed_in_turn() -> None:
    """While one is moved, the other stays."""
    theta, learner = torch.randn(2, 4, generator=torch.manual_seed(2)), Quadratic(("a",), ("b",))
    _, found = sharp(learner, batch_of(theta), ["a", "b"])  # type: ignore[arg-type]
    for name, part in (("a", slice(0, 3)), ("b", slice(3, 4))):
        moved, slope = theta.clone(), (theta @ learner.h)[:, part]
        moved[:, part] += RHO * slope / slope.norm(dim=1, keepdim=True)
        torch.testing.assert_close(found[name], (moved @ learner.h)[:, part])


@pytest.mark.parametrize("rho", [(0.3, 0.0), (0.0, 0.3), (0.3, 0.1)])
@pytest.mark.parametrize("groups", [(("a", "b"),), (("a",), ("b",))])
def test_each_part_is_moved_as_far_as_its_own_rho_says(rho: tuple[float, float], groups: Any) -> None:
    """By the one norm of its group; a group that stays is not looked at twice."""
    theta, learner = torch.randn(2, 4, generator=torch.manual_seed(3)), Quadratic(*groups)
    learner.rho = dict(zip(("a", "b"), rho, strict=True))
    _, found = sharp(learner, batch_of(theta), ["a", "b"])  # type: ignore[arg-type]
    parts, slope = {"a": slice(0, 3), "b": slice(3, 4)}, theta @ learner.h
    for group in groups:
        moved, norm = theta.clone(), torch.cat([slope[:, parts[name]] for name in group], 1).norm(dim=1, keepdim=True)
        for name in group:
            moved[:, parts[name]] += learner.rho[name] * slope[:, parts[name]] / norm
        for name in group:
            torch.testing.assert_close(found[name], (moved @ learner.h)[:, parts[name]])


def block_of(learner: Any) -> tuple[Block, Batch]:
    cohort, draws = cohort_of(users(), learner), Draws(learner.seed)
    samples = draw_samples(cohort.data, cohort.everyone, learner.local.negatives, draws, 1)
    block = cohort.block_of(cohort.everyone, {}, samples, 1, merging=False)
    valid = (torch.arange(samples.row.shape[1]) < samples.size[:, None]).float()
    return block, Batch(block, samples.row, valid)


@pytest.mark.parametrize(("rho", "private", "passes"), [(0.0, None, 1), (0.1, None, 3), (0.1, 0.0, 2), (0.0, 0.1, 2)])
def test_without_sharpness_nothing_is_done_twice(
    rho: float, private: float | None, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = method("fedmf", gradients={"sharpness": rho, "sharpness_private": private})
    assert list(learner.perturbed(["user", "items"])) == [["items"], ["user"]]
    block, batch = block_of(learner)
    asked: list[Sequence[str]] = []

    def counted(batch: Batch, names: Sequence[str]) -> Any:
        asked.append(names)
        return FedMF.gradients(learner, batch, names)

    monkeypatch.setattr(learner, "gradients", counted)
    GradientStep(learner, block, 1).gradients(batch, ["user", "items"])
    assert len(asked) == passes


@pytest.mark.parametrize("name", ["fedmf", "pfedrec", "fedncf", "colr", "fedrecgel"])
def test_any_method_can_be_given_it_and_its_slow_twin_agrees(name: str) -> None:
    """One update of two parts, two updates, a network, frequency-free steps, an Adam that is kept."""
    small = options(hidden=[6, 3]) if name == "fedrecgel" else {}
    found = []
    for engine, rho in (("torch", 0.2), ("reference", 0.2), ("torch", 0.0)):
        local = {"epochs": 2, "batch_size": 4}
        learner = method(name, gradients={"sharpness": rho}, run={"engine": engine}, local=local, **small)
        cohort = cohort_of(users(), learner)
        sums = cohort.train(cohort.everyone, {}, 1, sums=True).sums
        found.append({**cohort.state, **{f"sum of {part}": one.total for part, one in sums.items()}})
    fast, slow, plain = found
    for part, values in fast.items():
        torch.testing.assert_close(
            values, slow[part], rtol=1e-3, atol=5e-5, msg=lambda text, part=part: f"{part}: {text}"
        )
    assert any(not torch.allclose(fast[part], plain[part]) for part in fast)


@pytest.mark.parametrize("which", ["sharpness", "sharpness_private"])
def test_shared_and_private_parts_have_a_rho_each(which: str) -> None:
    """On both back ends, the other ρ being 0."""
    found = []
    for engine, rho in (("torch", 0.5), ("reference", 0.5), ("torch", 0.0)):
        gradients = {"sharpness": 0.0, "sharpness_private": 0.0, which: rho}
        learner = method("fedmf", gradients=gradients, run={"engine": engine}, local={"epochs": 1, "batch_size": 0})
        block = cohort_of(users(), learner)
        sums = block.train(block.everyone, {}, 1, sums=True).sums
        found.append({"user": block.state["user"], "items": sums["items"].total})
    fast, slow, plain = found
    for part in fast:
        torch.testing.assert_close(fast[part], slow[part], rtol=1e-3, atol=5e-5)
    moved = "items" if which == "sharpness" else "user"
    assert not torch.equal(fast[moved], plain[moved])


def test_a_pull_is_added_where_the_table_is() -> None:
    """What gpfedrec's table is pulled with is in neither the direction nor the gradient of the moved parts."""
    found = []
    for pull in (0.0, 3.0):
        learner = method("gpfedrec", gradients={"sharpness": 0.2}, **options(pull=pull))
        block, batch = block_of(learner)
        block.parts["anchor"] = block.parts["items"] + 1
        found.append(GradientStep(learner, block, 1).gradients(batch, ["network", "user", "items"])[1])
    for name, values in found[0].items():
        torch.testing.assert_close(values, found[1][name], rtol=0, atol=0)
        assert float(values.abs().max()) > 0


@pytest.mark.parametrize("name", ["fedials", "fedem-released", "fedcia"])
@pytest.mark.parametrize("which", ["sharpness", "sharpness_private"])
def test_where_it_cannot_be_one_line_says_so(name: str, which: str) -> None:
    with pytest.raises(InputError, match=rf"gradients\.{which} = 0\.1: ") as refusal:
        method_of(resolve({}, {"method": {"name": name}, "gradients": {which: 0.1}}), ITEMS)
    assert "\n" not in str(refusal.value)


# ---- FedRecGEL


def recgel(**sections: Any) -> FedRecGEL:
    found: FedRecGEL = method("fedrecgel", **{"local": {"batch_size": 0, "lr_user": 0.05}, **sections})
    return found


def test_the_loss_adds_up_the_means_of_chunks() -> None:
    learner = recgel(**options(hidden=[6, 3], chunk=2))
    logits = torch.tensor([[0.0, 1.0, 2.0, 9.0], [3.0, 9.0, 9.0, 9.0]])
    valid = torch.tensor([[1.0, 1, 1, 0], [1, 0, 0, 0]])
    entropy = torch.nn.functional.softplus(logits)
    expected = torch.stack([(entropy[0, 0] + entropy[0, 1]) / 2 + entropy[0, 2], entropy[1, 0]])
    torch.testing.assert_close(learner.loss(logits, torch.ones(2, 4), valid), expected)


def test_neumf_is_a_product_and_a_network_beside_each_other() -> None:
    model = NeuMF(2, 3, (3, 2))
    theta = torch.randn(1, model.size, generator=torch.manual_seed(3))
    generator = torch.manual_seed(4)
    user, wide, items, wide_items = (
        torch.randn(*s, generator=generator) for s in ((1, 2), (1, 3), (1, 5, 2), (1, 5, 3))
    )
    x, at = torch.cat([wide.expand(5, -1), wide_items[0]], 1), 0
    for n_in, n_out in pairwise((6, 3, 2)):
        weight, bias = theta[0, at : at + n_in * n_out].view(n_out, n_in), theta[0, at + n_in * n_out :][:n_out]
        x, at = torch.relu(x @ weight.T + bias), at + (n_in + 1) * n_out
    out = torch.cat([user * items[0], x], 1) @ theta[0, at : at + 4] + theta[0, at + 4]
    torch.testing.assert_close(model.logits(theta, user, wide, items, wide_items)[0], out)
    several = [x.expand(3, *x.shape[1:]) for x in (theta, user, wide, items, wide_items)]  # one table for all
    torch.testing.assert_close(model.logits(*several), out.expand(3, 5))


def test_what_goes_up_is_the_gradient_of_one_step_on_all_samples() -> None:
    once = {"batch_size": 0, "negatives": 0}
    learner = recgel(gradients={"sharpness": 0.0}, local=once, **options(hidden=[6, 3]))
    _, batch = block_of(learner)
    shared = ["items", "items-wide", "network"]
    _, expected = automatic(learner, batch, shared)
    cohort = cohort_of(users(), learner)
    sums = cohort.train(cohort.everyone, {}, 1, sums=True).sums
    torch.testing.assert_close(-sums["network"].total.float(), expected["network"].sum(0), rtol=1e-4, atol=1e-6)
    table, touched = torch.zeros(ITEMS, 4), batch.block.samples.touched
    for user in range(USERS):
        table.index_add_(0, touched[user][batch.block.real[user]], expected["items"][user][batch.block.real[user]])
    torch.testing.assert_close(-sums["items"].total.float(), table, rtol=1e-4, atol=1e-6)
    assert (table == 0).all(1).any() and torch.equal(sums["items"].total == 0, table == 0), "nobody: exactly nothing"
    assert float(sums["items"].weight) == USERS


def test_users_keep_their_adam_and_the_server_has_one() -> None:
    plain = {"gradients": {"sharpness": 0.0}, "model": {"dim": 4, "init_std": 0.3}}
    learner = recgel(**plain, **options(hidden=[6, 3], lr_server=0.01))
    task, state = learner.phases()[0].task, learner.start()
    device = side(learner, users())
    cohort, shared = device.cohort, {name: state[name].clone().requires_grad_() for name in learner.sends()}
    for name in ("user", "user-wide"):  # else gradients of a positive and a negative cancel, and Adam makes much of it
        cohort.state[name] = torch.randn(cohort.state[name].shape, generator=torch.manual_seed(5))
    own = {name: cohort.state[name].clone().requires_grad_() for name in ("user", "user-wide")}
    theirs = torch.optim.Adam(own.values(), 0.05)
    servers = torch.optim.Adam(shared.values(), 0.01)
    for round_ in (1, 2, 3):
        samples = draw_samples(users(), torch.arange(USERS), 1, Draws(learner.seed), round_)
        total = torch.zeros(())
        for user, liked in enumerate(LISTS):
            items = samples.touched[user][samples.row[user, : 2 * len(liked)]]
            sign = samples.sign[user][samples.row[user, : 2 * len(liked)]]
            mine = {name: values[user : user + 1] for name, values in own.items()}
            rows = {"items": shared["items"][items][None], "items-wide": shared["items-wide"][items][None]}
            parts = {**mine, **rows, "network": shared["network"][None]}
            total = total + learner.loss(learner.score(parts), sign[None], torch.ones(1, len(items))).sum()
        for optimiser in (theirs, servers):
            optimiser.zero_grad()
        total.backward()
        for value in shared.values():
            assert value.grad is not None
            value.grad /= USERS
        for optimiser in (theirs, servers):
            optimiser.step()
        arrays = {name: state[name].numpy() for name in learner.sends()}
        upload = task.contribute(device, asked(round_, **arrays))
        state = task.fold(
            state, gathered({n: torch.from_numpy(x.astype(np.float64)) for n, x in upload.arrays.items()})
        )
        for name, value in own.items():
            torch.testing.assert_close(cohort.state[name], value.detach(), rtol=1e-3, atol=1e-4)
        for name, value in shared.items():
            torch.testing.assert_close(state[name], value.detach(), rtol=1e-3, atol=3e-4)  # of steps of .01
