"""FedCIA: groups that share how alike items are; its gradients, factors and steps by hand."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch
from test_shared_structure import DIM, ITEMS, LISTS, USERS, asked, gathered, method, options, side, users
from torch import Tensor

from fedem_flwr.aggregation.alignment import Alignment, factor_of, factor_of_table
from fedem_flwr.config import resolve
from fedem_flwr.contract.finding import method_of
from fedem_flwr.methods.fedcia import FedCIA
from fedem_flwr.methods.tasks.similarities import GroupSimilarities, UserSimilarities


def similar(generator: torch.Generator) -> Tensor:
    other = torch.randn(ITEMS, 6, generator=generator, dtype=torch.float64)
    return other @ other.T


def distance(table: Tensor, target: Tensor) -> Tensor:
    return torch.linalg.norm(table @ table.T - target)


def test_an_alignment_step_goes_along_the_gradient() -> None:
    generator = torch.manual_seed(2)
    table = torch.randn(ITEMS, DIM, generator=generator, dtype=torch.float64)
    target, rate, h = similar(generator), 1e-3, 1e-6
    step = (table - Alignment(1, rate)(table[None], factor_of(target, ITEMS))[0]) / rate
    for i, j in ((0, 0), (3, 2), (9, 1)):
        apart = torch.zeros_like(table)
        apart[i, j] = h
        slope = (distance(table + apart, target) - distance(table - apart, target)) / (2 * h)
        torch.testing.assert_close(step[i, j], slope, rtol=1e-5, atol=1e-7)


def test_at_full_rank_factors_do_what_the_whole_matrix_does() -> None:
    generator = torch.manual_seed(3)
    two, target = torch.randn(2, ITEMS, DIM, generator=generator, dtype=torch.float64), similar(generator)
    found = Alignment(25, 0.1, 0.01)(two, factor_of(target, 6))  # S has rank 6
    for table, aligned in zip(two, found, strict=True):
        dense = table.clone().requires_grad_()
        optimiser = torch.optim.SGD([dense], 0.1, weight_decay=0.01)
        for _ in range(25):
            optimiser.zero_grad()
            distance(dense, target).backward()
            optimiser.step()
        torch.testing.assert_close(aligned, dense.detach(), rtol=1e-7, atol=1e-9)


def test_steps_of_the_alignment_do_not_get_shorter() -> None:
    """Near S, too: V goes to and fro there, so that roundings grow (docs/methods.md)."""
    generator = torch.manual_seed(7)
    table, other = (torch.randn(ITEMS, DIM, generator=generator, dtype=torch.float64) for _ in range(2))
    target = other @ other.T  # which V Vᵀ can be

    def after(steps: int) -> Tensor:
        return Alignment(steps, 0.1)(table[None], factor_of(target, DIM))[0]

    near = after(500)
    assert float(distance(near, target)) < 0.1 * float(distance(table, target))
    assert float(torch.linalg.norm(after(501) - near)) > 0.8 * float(torch.linalg.norm(after(1) - table))


def test_factors_stand_for_similarities() -> None:
    generator = torch.manual_seed(4)
    table, target = torch.randn(ITEMS, DIM, generator=generator, dtype=torch.float64), similar(generator)
    for factor, whole in ((factor_of_table(table, DIM), table @ table.T), (factor_of(target, 6), target)):
        torch.testing.assert_close(factor @ factor.T, whole)
    short = factor_of_table(table, 2)
    squares = torch.linalg.svdvals(table)[2:].square()
    torch.testing.assert_close(torch.linalg.norm(short @ short.T - table @ table.T), squares.square().sum().sqrt())


def test_the_loss_is_of_scores_and_in_the_released_program_of_coordinates() -> None:
    p, met, other = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[0.5, 0.5]]]), torch.tensor([[[1.0, -1.0]]])
    for name, error in (("fedcia", (1.5 - 1) ** 2 + 1), ("fedcia-released", ((0.5 - 1) ** 2 + 0 + 1 + 4) / 2)):
        loss = method(name, **options(decay=0.1)).triple_loss(p, met, other, torch.ones(1, 1))
        assert float(loss) == pytest.approx((error + 0.1 * (5 + 0.5 + 2)) / 2)


@pytest.mark.parametrize("group", ["node", "user"])
def test_groups_are_trained_by_an_adam_that_goes_on(group: str) -> None:
    """Two rounds against torch's optimiser, one for each group."""
    local = {"epochs": 2, "batch_size": 3, "lr_user": 0.02, "lr_item": 0.05}
    learner: FedCIA = method("fedcia", local=local, model={"dim": DIM, "init_std": 0.3}, **options(group=group))
    device, task = side(learner, users()), learner.phases()[0].task
    assert isinstance(task, UserSimilarities if group == "user" else GroupSimilarities)
    state, groups = device.cohort.state, [[0], [1], [2], [3]] if group == "user" else [[0, 1, 2, 3]]
    params = [[state["user"][who].clone(), state["items"][at].clone()] for at, who in enumerate(groups)]
    optimisers = []
    for one in params:
        user, items = (x.requires_grad_() for x in one)
        optimisers.append(torch.optim.Adam([{"params": [user], "lr": 0.02}, {"params": [items], "lr": 0.05}]))
    for round_ in (1, 2):
        triples = task.triples(device, asked(round_), torch.arange(USERS))
        for epoch in range(2):
            order = triples.shuffled(round_, epoch)
            for at, (user, items) in enumerate(params):
                mine = order[at][triples.valid[at][order[at]] > 0]
                for batch in mine.split(3):
                    owner = triples.owner[at][batch] - (at if group == "user" else 0)
                    rows = (user[owner], items[triples.met[at][batch]], items[triples.other[at][batch]])
                    loss = learner.triple_loss(*(x[None] for x in rows), torch.ones(1, len(batch)))
                    optimisers[at].zero_grad()
                    loss.sum().backward()
                    optimisers[at].step()
        upload = task.contribute(device, asked(round_))
        expected = sum(items.detach().double() @ items.detach().double().T for _, items in params)
        opened = task.opened(upload.arrays)
        np.testing.assert_allclose(opened["similar"], np.asarray(expected), atol=2e-4)
        assert int(upload.arrays["groups"][0]) == len(groups)
    for at, (user, items) in enumerate(params):
        torch.testing.assert_close(state["user"][groups[at]], user.detach(), rtol=1e-3, atol=2e-5)
        torch.testing.assert_close(state["items"][at], items.detach(), rtol=1e-3, atol=2e-5)


def test_triples_are_drawn_once_and_never_hold_a_training_item_as_the_other() -> None:
    learner: FedCIA = method("fedcia")
    task, device = GroupSimilarities(learner), side(learner, users())
    first, second = (task.triples(device, asked(round_), torch.arange(USERS)) for round_ in (1, 7))
    assert torch.equal(first.other, second.other) and first.met.tolist()[0] == list(chain(*LISTS))
    for owner, item in zip(first.owner[0].tolist(), first.other[0].tolist(), strict=True):
        assert item not in LISTS[owner]


def test_a_node_that_is_everybody_says_so() -> None:
    assert any("one group" in line for line in method("fedcia", run={"users_per_node": 0}).caveats())
    assert not any("one group" in line for line in method("fedcia").caveats())


@pytest.mark.parametrize("name", ["fedcia", "fedcia-released"])
def test_the_presets_rate_lowers_the_loss_from_the_first_step(name: str) -> None:
    """At the preset's own width: of p · v a step changes d terms at once, so a rate that is too large throws it far."""
    learner = method_of(resolve({}, {"method": {"name": name}}), ITEMS)
    task, device = GroupSimilarities(learner), side(learner, users())
    losses = [task.train(device, asked(round_))[1] for round_ in range(1, 9)]
    assert learner.config.model.dim == 512 and max(losses[1:]) < losses[0] and losses[-1] < 0.8 * losses[0]


def of_rank(similar: Tensor, rank: int) -> Tensor:
    """The best approximation of that rank."""
    left, values, right = torch.linalg.svd(similar)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


@pytest.mark.parametrize(("rank", "up", "down"), [(0, DIM, DIM), (2, 2, 2), (9, DIM, 9), (1000, DIM, ITEMS)])
def test_what_crosses_has_the_rank_that_was_asked_for(rank: int, up: int, down: int) -> None:
    """Up no more than d, which is exact; down up to m, which is."""
    learner: FedCIA = method("fedcia", model={"dim": DIM, "init_std": 0.3}, **options(rank=rank))
    device, task, state = side(learner, users()), learner.phases()[0].task, learner.start()
    upload = task.contribute(device, asked(1))
    assert upload.arrays["factor"].shape == (ITEMS, up) == task.fields()["factor"].shape
    table = device.cohort.state["items"][0].double()
    mine = torch.from_numpy(task.opened(upload.arrays)["similar"])
    torch.testing.assert_close(mine, of_rank(table @ table.T, up), rtol=1e-5, atol=1e-6)
    another = torch.randn(ITEMS, ITEMS, generator=torch.manual_seed(6), dtype=torch.float64)  # S has full rank
    total = mine + another @ another.T
    state, mean = task.fold(state, gathered({"similar": total, "groups": torch.tensor([2])})), total / 2
    assert state["factor"].shape == (ITEMS, down)
    torch.testing.assert_close(state["factor"] @ state["factor"].T, of_rank(mean, down).float(), rtol=1e-4, atol=1e-5)
    cut = float(torch.linalg.norm((state["factor"] @ state["factor"].T).double() - mean))
    assert (cut < 1e-4) == (down == ITEMS)
    before = device.cohort.state["items"].clone()
    found = Alignment(5, 1e-3, 1e-6)(before.double(), factor_of(mean, down))
    learner.align = Alignment(5, 1e-3, 1e-6)
    aligned = learner.tables(device, asked(2, factor=state["factor"].numpy()))
    torch.testing.assert_close(aligned.double(), found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["fedcia", "fedcia-released"])
@pytest.mark.parametrize(
    ("dataset", "n"), [("filmtrust", 1002), ("ml-100k", 943), ("ml-1m", 6040), ("lastfm-2k", 1600)]
)
def test_there_are_about_a_hundred_groups(name: str, dataset: str, n: int) -> None:
    """As in the paper; n is of those with ten items or more."""
    run = resolve({}, {"method": {"name": name}, "data": {"dataset": dataset}}).run
    assert 95 <= -(-n // run.users_per_node) <= 101
