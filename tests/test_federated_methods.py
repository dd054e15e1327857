"""PFedRec, FedNCF, FedRAP and FedMF's second reference setting: what makes each of them what it is, by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from factorised import cohort_of
from test_samples import histories_of
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from fedem_flwr.config import merge_trees, resolve
from fedem_flwr.contract import Gathered, Method, Pull, Update
from fedem_flwr.contract.finding import method_of
from fedem_flwr.engine.block import Batch, Block
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.optimizer import stepper_of
from fedem_flwr.engine.parts import Part
from fedem_flwr.engine.samples import RoundSamples, TrainingItems, draw_samples, shuffled_rows
from fedem_flwr.errors import InputError
from fedem_flwr.models.mlp import Mlp

ITEMS, DIM = 12, 3
LISTS = [[0, 1, 2], [2, 3], [4, 5, 6, 7], [1, 8]]


def method(name: str, **sections: Any) -> Method:
    """A preset on a small catalogue."""
    small = {"method": {"name": name}, "model": {"dim": DIM}, "local": {"batch_size": 4, "negatives": 1}}
    return method_of(resolve({}, merge_trees(small, sections)), ITEMS)


def users(lists: list[list[int]] = LISTS) -> TrainingItems:
    return histories_of(lists, ITEMS)


def one_batch(parts: dict[str, Tensor], axes: dict[str, str], row: list[int], sign: list[float]) -> Batch:
    """One user whose samples are the touched rows `row`, of signs (−1 positive) by row."""
    t = len(sign)
    samples = RoundSamples(
        torch.arange(t)[None], torch.tensor([t]), torch.tensor([sign]), torch.tensor([row]), torch.tensor([len(row)]),
        torch.tensor([len(row)]),
    )  # fmt: skip
    block = Block(torch.zeros(1, dtype=torch.int64), samples, parts, axes)
    return Batch(block, samples.row, torch.ones(1, len(row)))


def stepped(learner: Method, batch: Batch) -> dict[str, Tensor]:
    """The parts after one batch, in the first round."""
    step = learner.step(batch.block, 1)
    step(batch.row, batch.valid)
    return {name: values[0] for name, values in batch.block.parts.items()}


# ---- presets


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pfedrec", {"model": {"dim": 32, "init_std": 1.0}, "local": {"epochs": 1, "batch_size": 256, "negatives": 4}}),
        ("fedncf", {"model": {"dim": 16}, "local": {"epochs": 10, "lr_item": 0.01}, "aggregate": {"weights": "rows"}}),
        ("fedncf-released", {"aggregate": {"weights": "average"}, "local": {"epochs": 10, "lr_user": 0.01}}),
        ("fedfast", {"model": {"init_std": 0.01}, "run": {"participants": 0.1}, "local": {"batch_size": 256}}),
        ("fedrap", {"model": {"dim": 32}, "local": {"epochs": 10, "batch_size": 2048, "early_stop": 1e-4}}),
        ("fedrap-released", {"model": {"dim": 32}, "local": {"epochs": 10, "batch_size": 2048, "early_stop": 1e-4}}),
        ("fedmf-visits", {"local": {"epochs": 2, "ridge": 5e-4, "lr_item": 0.5}, "run": {"rounds": 1000}}),
    ],
)
def test_presets_are_those_of_the_papers_and_programs(name: str, expected: dict[str, dict[str, Any]]) -> None:
    config = resolve({}, {"method": {"name": name}, "data": {"dataset": "ml-1m"}})
    for section, values in expected.items():
        assert {key: getattr(getattr(config, section), key) for key in values} == values
    assert config.run.rounds == (1000 if name == "fedmf-visits" else 100)


def test_options_are_those_of_the_papers_and_programs() -> None:
    def options(name: str, data: str) -> dict[str, Any]:
        return dict(resolve({}, {"method": {"name": name}, "data": {"dataset": data}}).method.options)

    assert options("pfedrec", "ml-1m") == {"lr": 0.1, "factor": 80.0}
    both = {"apart": 0.1, "sparse": 0.1, "lr_user": 0.5, "lr_tables": 200.0, "decay": 1e-4}
    both |= {"fading": 0.95, "fading_rounds": 0.97}
    assert options("fedrap", "ml-1m") == {**both, "curriculum": "tanh", "head": False}
    assert options("fedrap-released", "ml-1m") == {**both, "curriculum": "constant", "head": True}
    assert options("fedrap", "ml-100k")["lr_tables"] == 1000.0
    assert options("fedncf", "ml-1m") == {"hidden": (16, 8), "lr": 0.01, "decay": 1e-3}
    assert options("fedfast", "ml-1m") == {"clusters": 20, "fading": 1.0}
    visits = resolve({}, {"method": {"name": "fedmf-visits"}, "data": {"dataset": "ml-1m"}})
    assert math.floor(6040 * visits.run.participants) == 60 and visits.model.init_std**2 == 1 / visits.model.dim


# ---- PFedRec


def test_pfedrec_steps_on_the_head_and_then_on_the_items_with_the_new_head() -> None:
    """By hand, in numpy: two samples of item 0, one of item 1; the items' rate is η · factor · m."""
    learner = method("pfedrec", method={"options": {"lr": 0.2, "factor": 3.0}})
    w, b, q = np.array([0.3, -0.2, 0.1]), 0.05, np.array([[0.5, 0.4, -0.1], [0.2, -0.3, 0.6]])
    parts = {"head": torch.tensor([[*w, b]]).float(), "items": torch.tensor(q[None]).float()}
    found = stepped(learner, one_batch(parts, {"head": "model", "items": "item"}, [0, 1, 0], [-1.0, 1.0]))
    e = 1 / (1 + np.exp(-(q @ w + b))) - np.array([1, 0])
    count = np.array([2, 1])
    w_new, b_new = w - 0.2 * (count * e / 3) @ q, b - 0.2 * (count * e / 3).sum()
    e = 1 / (1 + np.exp(-(q @ w_new + b_new))) - np.array([1, 0])
    q_new = q - 0.2 * 3 * ITEMS * (count * e / 3)[:, None] * w_new
    np.testing.assert_allclose(found["head"], [*w_new, b_new], rtol=1e-5)
    np.testing.assert_allclose(found["items"], q_new, rtol=1e-5)


def test_pfedrec_uploads_the_mean_of_whole_tables_and_nothing_of_the_head() -> None:
    learner = method("pfedrec", method={"options": {"factor": 1.0}})
    assert {name: (part.private, part.up) for name, part in learner.parts().items()} == {
        "head": (True, "none"),
        "items": (False, "sum"),
    }
    assert list(learner.phases()[0].task.fields()) == ["items", "items-weight"]
    cohort = cohort_of(users(), learner)
    heads = cohort.state["head"].clone()
    sums = cohort.train(cohort.everyone, {}, 1, sums=True).sums["items"]
    torch.testing.assert_close(sums.total, cohort.state["items"].double().sum(0))
    assert float(sums.weight) == len(LISTS)
    assert bool((cohort.state["head"] != heads).all(1).all()), "each trains a head of its own"


# ---- FedNCF


def test_the_network_sees_user_and_item_side_by_side() -> None:
    learner = method("fedncf")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2 * DIM, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))
    theta = torch.cat([p.detach().flatten() for p in net.parameters()])
    p, q = torch.randn(2, DIM), torch.randn(2, 5, DIM)
    expected = net(torch.cat([p.unsqueeze(1).expand(-1, 5, -1), q], 2)).squeeze(-1)
    for of_all in (theta.expand(2, -1), theta.repeat(2, 1)):
        found = learner.score({"user": p, "items": q, "network": of_all})
        torch.testing.assert_close(found, expected)
    same = q[:1].expand(2, -1, -1)
    found = learner.score({"user": p, "items": same, "network": theta.expand(2, -1)})
    torch.testing.assert_close(found, net(torch.cat([p.unsqueeze(1).expand(-1, 5, -1), same], 2)).squeeze(-1))
    assert Mlp((2 * DIM, 16, 8, 1)).size == len(theta) == learner.parts()["network"].width


def test_split_aggregation_is_an_option_that_the_released_setting_turns_off() -> None:
    split, whole = method("fedncf").parts(), method("fedncf-released").parts()
    assert (split["items"].mean, split["network"].mean) == ("rows", "samples")
    assert (whole["items"].mean, whole["network"].mean) == ("samples", "samples")
    with pytest.raises(InputError, match=r"aggregate\.weights must be average or rows, not 'eq13'"):
        method("fedncf", aggregate={"weights": "eq13"})


def test_only_the_network_decays() -> None:
    """A gradient of zero leaves embeddings where they are; Adam's first step on the network is a decay's sign."""
    learner = method("fedncf")
    (update,) = learner.updates(1)
    axes = {name: part.axis for name, part in learner.parts().items()}
    parts = {"user": torch.ones(1, DIM), "items": torch.ones(1, 2, DIM), "network": torch.tensor([[2.0, -3.0, 0.0]])}
    batch = one_batch(parts, axes, [0, 1], [-1.0, 1.0])
    zeros = [torch.zeros_like(parts[name]) for name in update.rates]
    stepper_of(update, batch.block).step([parts[name] for name in update.rates], zeros, batch)
    torch.testing.assert_close(parts["network"], torch.tensor([[1.99, -2.99, 0.0]]), rtol=0, atol=1e-5)
    assert bool((parts["user"] == 1).all() and (parts["items"] == 1).all())


# ---- FedRAP


def test_fedraps_penalty_for_a_batch_of_two() -> None:
    """λ = .3, μ = .5: −.3 · mean of (D − C)² + .5 · mean of |C| over 2 · 2 entries; a third sample is padding."""
    parts = {
        "own": torch.tensor([[[1.0, 0.0], [2.0, -1.0], [9.0, 9.0]]]),
        "shared": torch.tensor([[[0.0, 1.0], [-2.0, 0.0], [5.0, 5.0]]]),
    }
    apart, size = (1 + 1 + 16 + 1) / 4, (0 + 1 + 2 + 0) / 4
    valid = torch.tensor([[1.0, 1.0, 0.0]])
    for name, grown in (("fedrap", math.tanh(0.3)), ("fedrap-released", 1.0)):
        learner = method(name, method={"options": {"apart": 0.3, "sparse": 0.5}})
        found = learner.penalty(parts, valid, 3)
        assert found is not None
        torch.testing.assert_close(found, torch.tensor([grown * (0.5 * size - 0.3 * apart)]))


def test_a_user_of_fedrap_is_a_vector_or_a_layer() -> None:
    rows = {"own": torch.ones(1, 2, DIM), "shared": torch.tensor([[[1.0, 0, 0], [0, 1, 0]]])}
    vector, layer = method("fedrap"), method("fedrap-released")
    assert (vector.parts()["user"].width, layer.parts()["user"].width) == (DIM, DIM + 1)
    assert vector.score({"user": torch.tensor([[1.0, 2.0, 3.0]]), **rows}).tolist() == [[7.0, 8.0]]
    assert layer.score({"user": torch.tensor([[1.0, 2.0, 3.0, 0.5]]), **rows}).tolist() == [[7.5, 8.5]]


def test_a_round_of_fedrap_is_that_of_whole_tables() -> None:
    """A naive twin: every row of both tables decays in every batch, rates fade, the server averages whole tables."""
    options = {"apart": 0.2, "sparse": 0.3, "lr_user": 0.5, "lr_tables": 4.0, "decay": 0.02, "fading": 0.9}
    learner = method("fedrap", method={"options": options}, local={"epochs": 3, "early_stop": 0.0})
    cohort, data, round_ = cohort_of(users(), learner), users(), 2
    starts = {n: p.initial(n, ITEMS, 0) for n, p in learner.parts().items()}
    sums = cohort.train(cohort.everyone, {}, round_, sums=True).sums["shared"]
    tables = torch.zeros(ITEMS, DIM)
    for user in range(len(LISTS)):
        samples = draw_samples(data, torch.tensor([user]), 1, Draws(0), round_)
        u, own, shared = (starts[name].clone().requires_grad_() for name in ("user", "own", "shared"))
        groups = [{"params": [u], "lr": 0.5 * 0.97}, {"params": [own, shared], "lr": 4.0 * 0.97}]
        sgd = torch.optim.SGD(groups, weight_decay=0.02)
        fade = torch.optim.lr_scheduler.ExponentialLR(sgd, 0.9)
        for epoch in range(3):
            order = shuffled_rows(samples, data.users[user : user + 1], Draws(0), round_, epoch)[0]
            for row in order[: int(samples.size[0])].split(4):
                items, wanted = samples.touched[0][row], (samples.sign[0][row] < 0).float()
                d, c = own[items], shared[items]
                grown = math.tanh(round_ / 10)
                loss = binary_cross_entropy_with_logits((d + c) @ u, wanted)
                loss = loss - 0.2 * grown * (d - c).square().mean() + 0.3 * grown * c.abs().mean()
                sgd.zero_grad()
                loss.backward()
                sgd.step()
                fade.step()
        tables += shared.detach()
        torch.testing.assert_close(cohort.state["own"][user], own.detach(), rtol=0, atol=1e-5)
        torch.testing.assert_close(cohort.state["user"][user], u.detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close((sums.total / sums.weight).float(), tables / len(LISTS), rtol=0, atol=1e-5)


def test_what_has_no_closed_form_is_refused() -> None:
    with pytest.raises(ValueError, match="only the rates of sgd fade"):
        Update({"items": 1.0}, "adam", fading=0.9)
    block = one_batch({"items": torch.ones(1, 1, DIM)}, {"items": "item"}, [0], [-1.0]).block
    with pytest.raises(ValueError, match="Adam pulls no rows"):
        stepper_of(Update({"items": 1.0}, "adam", {"items": Pull(0.1)}), block)
    with pytest.raises(ValueError, match="only an item part has rows"):
        Part("user", 3, up="sum", mean="distance")


# ---- FedMF's second reference setting


def test_steps_free_of_frequency_in_numpy() -> None:
    """p − η [mean of e q + 2 γ p]; q_i − η [mean of e p over the item's own samples + 2 γ q_i]."""
    learner = method("fedmf-visits", local={"ridge": 0.1})
    p, q = np.array([0.4, -0.5, 0.2]), np.array([[0.5, 0.4, -0.1], [0.2, -0.3, 0.6]])
    parts = {"user": torch.tensor(p[None]).float(), "items": torch.tensor(q[None]).float()}
    found = stepped(learner, one_batch(parts, {"user": "user", "items": "item"}, [0, 1, 0], [-1.0, 1.0]))
    e = 1 / (1 + np.exp(-(q @ p))) - np.array([1, 0])
    np.testing.assert_allclose(found["user"], p - 0.5 * ((np.array([2, 1]) * e / 3) @ q + 0.2 * p), rtol=1e-5)
    np.testing.assert_allclose(found["items"], q - 0.5 * (e[:, None] * p + 0.2 * q), rtol=1e-5)


def test_items_are_divided_by_the_clients_that_visited_them() -> None:
    """Touched by nobody: it stays. By one: that one's. By two: their mean, whoever else took part."""
    learner = method("fedmf-visits", local={"negatives": 0})
    state = learner.start()
    cohort = cohort_of(users([[0, 1], [1, 2], [3]]), learner)
    task = learner.phases()[0].task
    found = cohort.train(cohort.everyone, {}, 1, sums=True).sums["items"]
    single = []
    for user in range(3):
        again = cohort_of(users([[0, 1], [1, 2], [3]]), learner)
        single.append(again.train(torch.tensor([user]), {}, 1, sums=True).sums["items"].total)
    gathered: Any = type("Gathered", (), {"sums": {"items": found.total, "items-weight": found.weight}})
    new = task.fold(state, gathered)["items"].double()
    torch.testing.assert_close(new[4], state["items"][4].double(), rtol=0, atol=0)
    torch.testing.assert_close(new[0], single[0][0], rtol=0, atol=1e-6)
    torch.testing.assert_close(new[1], (single[0][1] + single[1][1]) / 2, rtol=0, atol=1e-6)
    assert bool((new[1] != state["items"][1]).all())


@pytest.mark.parametrize("shares", ["samples", "users"])
@pytest.mark.parametrize("weights", ["average", "eq13"])
def test_a_users_share_is_that_of_its_data_or_one_of_n(weights: str, shares: str) -> None:
    """Eq. 13's prior p_v, and FedAvg's weights: by interactions, or 1/n as in FCF."""
    tables, held = torch.randn(3, ITEMS, DIM), np.array([1, 2, 5])
    alpha = {"average": 0.9, "eq13": 0.0}[weights]  # without similarity Eq. 13 is its prior
    learner = method("fedem", aggregate={"weights": weights, "alpha": alpha, "shares": shares})
    gathered = Gathered(1, 1, {}, {"items": tables}, np.arange(3), 3, 3, held)
    found = learner.phases()[0].task.fold(learner.start(), gathered)["items"]
    by = torch.tensor([1.0, 2.0, 5.0] if shares == "samples" else [1.0, 1.0, 1.0])
    mean = (tables * (by / by.sum())[:, None, None]).sum(0)
    torch.testing.assert_close(found, mean.expand_as(found), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "part"), [("fedmf-sr", "items"), ("fedncf-released", "items"), ("fedncf", "network")])
def test_one_table_is_a_mean_by_data_or_by_users(name: str, part: str) -> None:
    for shares in ("samples", "users"):
        learner = method(name, aggregate={"shares": shares})
        assert learner.parts()[part].mean == shares
    found = cohort_of(users(), learner).train(torch.arange(len(LISTS)), {}, 1, sums=True).sums[part]
    assert float(found.weight.max()) == len(LISTS)
