"""CoLR, GPFedRec and FedCIA: low-rank changes, a graph of users, similarities of items; each by hand."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from factorised import cohort_of
from test_samples import histories_of
from torch import Tensor

from fedem_flwr.aggregation.alignment import Alignment, factor_of, factor_of_table
from fedem_flwr.config import merge_trees, resolve
from fedem_flwr.contract import Asked, Device, Gathered
from fedem_flwr.contract.finding import method_of
from fedem_flwr.engine.downloads import Download
from fedem_flwr.engine.history import History
from fedem_flwr.engine.samples import TrainingItems
from fedem_flwr.errors import InputError
from fedem_flwr.methods import gpfedrec
from fedem_flwr.methods.colr import CoLR
from fedem_flwr.methods.fedcia import FedCIA
from fedem_flwr.methods.gpfedrec import GPFedRec
from fedem_flwr.methods.tasks.similarities import GroupSimilarities, UserSimilarities

ITEMS, DIM = 14, 4
LISTS = [[0, 1, 2], [2, 3], [4, 5, 6, 7], [1, 8]]
USERS = len(LISTS)
CPU = torch.device("cpu")


def method(name: str, **sections: Any) -> Any:
    """A preset on a small catalogue."""
    small = {"method": {"name": name}, "model": {"dim": DIM}, "local": {"batch_size": 4, "negatives": 1}}
    return method_of(resolve({}, merge_trees(small, sections)), ITEMS)


def options(**values: Any) -> dict[str, Any]:
    return {"method": {"options": values}}


def users() -> TrainingItems:
    return histories_of(LISTS, ITEMS)


def side(learner: Any, data: TrainingItems) -> Device:
    """A node with all users, before they have trained."""
    cohort = cohort_of(data, learner)
    ends = np.cumsum([0, *map(len, LISTS)])
    history = History(np.arange(USERS), ITEMS, ends, np.concatenate(LISTS))
    return Device(np.arange(USERS), ITEMS, CPU, False, lambda: history, lambda: cohort)


def asked(round_: int, **arrays: np.ndarray) -> Asked:
    """A message to everybody."""
    return Asked(round_, "train", np.arange(USERS), np.arange(USERS), arrays, {}, CPU, False)


def gathered(sums: dict[str, Tensor], round_: int = 1, **each: Tensor) -> Gathered:
    return Gathered(round_, round_, sums, each, np.arange(USERS), USERS, USERS, np.array([3, 2, 4, 2]))


# ---- CoLR


def test_the_basis_is_orthogonal_and_new_in_every_round() -> None:
    learner: CoLR = method("colr", **options(rank=3))
    first, second = learner.basis(1), learner.basis(2)
    torch.testing.assert_close(first @ first.T, DIM / 3 * torch.eye(3))
    assert not torch.allclose(first, second)
    torch.testing.assert_close(first, method("colr", **options(rank=3)).basis(1), rtol=0, atol=0)
    with pytest.raises(InputError, match=r"at most model\.dim = 4"):
        method("colr", **options(rank=5))


def test_what_goes_up_has_rank_r_and_is_all_that_changes_the_table() -> None:
    learner: CoLR = method("colr", local={"negatives": 0}, **options(rank=2))
    task, state = learner.phases()[0].task, learner.start()
    device = side(learner, users())
    upload = task.contribute(device, asked(1, items=state["items"].numpy()))
    assert upload.arrays["factor"].shape == (ITEMS, 2) and set(task.fields()) == {"factor", "factor-weight"}
    sums = {name: torch.from_numpy(array.astype(np.float64)) for name, array in upload.arrays.items()}
    change = task.fold(state, gathered(sums))["items"] - state["items"]
    assert int(torch.linalg.matrix_rank(change)) == 2
    counts = np.maximum(upload.arrays["factor-weight"], 1)[:, None]  # visits of each item, and not clients
    mean = torch.from_numpy(upload.arrays["factor"] / counts).float()
    torch.testing.assert_close(change, mean @ learner.basis(1), rtol=1e-4, atol=1e-6)
    untouched = upload.arrays["factor-weight"] == 0
    assert untouched.any() and float(change[untouched].abs().max()) == 0


def test_at_full_rank_the_table_moves_as_fedmf_would_move_it() -> None:
    one = {"epochs": 1, "batch_size": 64, "lr_user": 0.3, "lr_item": 0.3}
    full: CoLR = method("colr", local=one, **options(rank=DIM, ridge=0.0))
    plain = method("fedmf", local={**one, "optimiser": "frequency-sgd"}, model={"init_std": 0.125})
    start, k = full.start()["items"], USERS
    trained = {}
    for learner in (full, plain):
        given = {"items": Download.for_all(start, k), "basis": Download.for_all(full.basis(1).flatten(), k)}
        downloads = {name: value for name, value in given.items() if name in learner.parts()}
        trained[learner] = cohort_of(users(), learner).train(torch.arange(k), downloads, 1, sums=True).sums
    seen = trained[plain]["items"].weight > 0
    moved = trained[plain]["items"].total - start * trained[plain]["items"].weight[:, None]
    by_factor = trained[full]["factor"].total @ full.basis(1).double()
    torch.testing.assert_close(by_factor[seen], moved[seen], rtol=1e-4, atol=1e-5)
    assert float(moved[seen].abs().max()) > 1e-3


# ---- GPFedRec


def tables() -> Tensor:
    """Two alike, one against both of them, one apart."""
    a = torch.zeros(4, 2, 2)
    a[0, 0, 0] = a[1, 0, 0] = a[3, 1, 1] = 1.0
    a[1, 0, 1], a[2, 0, 0] = 0.1, -1.0
    return a


def test_a_graphs_rows_sum_to_one() -> None:
    alike: GPFedRec = method("gpfedrec")
    graph = alike.graph(tables())  # the mean of the sixteen cosines is about .127
    expected = torch.tensor([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(graph, expected)
    nearest = method("gpfedrec", **options(neighbours=2)).graph(torch.randn(6, 5, 3, generator=torch.manual_seed(0)))
    assert ((nearest > 0).sum(1) == 2).all() and bool((nearest.diagonal() == 0.5).all())
    twice = method("gpfedrec", **options(neighbours=2, layers=2)).graph(tables())
    torch.testing.assert_close(twice.sum(1), torch.ones(4, dtype=torch.float64))
    lonely = method("gpfedrec", **options(threshold=50.0)).graph(tables())
    torch.testing.assert_close(lonely, torch.eye(4, dtype=torch.float64))


def test_a_graph_is_made_on_the_runs_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it: no step of it meets a tensor that lies elsewhere."""
    there = torch.device("meta")

    def alike(tables: Tensor, block_items: int | None, place: torch.device) -> Tensor:
        return torch.empty(len(tables), len(tables), dtype=torch.float64, device=place)

    monkeypatch.setattr(gpfedrec, "resolve_device", {"cuda": there}.__getitem__)
    monkeypatch.setattr(gpfedrec, "cosines", alike)
    for how in ({}, {"neighbours": 2, "layers": 2}, {"similarity": "cosine-distance"}):
        assert method("gpfedrec", run={"device": "cuda"}, **options(**how)).graph(tables()).device == there


def test_the_released_program_takes_a_distance_for_a_similarity() -> None:
    graph = method("gpfedrec-released").graph(tables())  # 1 − cosine; the mean of the sixteen is about .873
    assert graph.diagonal().abs().max() == 0 and graph[0, 1] == 0  # neither itself nor its like
    assert graph[0, 2] > 0 and graph[2, 0] > 0


def test_each_gets_its_neighbours_mean_and_all_the_mean_of_those() -> None:
    learner: GPFedRec = method("gpfedrec")
    state = learner.phases()[0].task.fold(learner.start(), gathered({}, items=tables()))
    near = tables()[:2].mean(0)
    torch.testing.assert_close(state["items"], torch.stack([near, near, tables()[2], tables()[3]]))
    torch.testing.assert_close(state["common"], state["items"].mean(0))


def test_the_pull_halves_the_way_in_every_batch_at_the_papers_settings() -> None:
    learner = method_of(resolve({}, {"method": {"name": "gpfedrec"}}), 1682)
    (update,) = learner.updates(1)
    assert update.rates["items"] == pytest.approx(13455.9) and update.rates["user"] == pytest.approx(7.9)
    assert 1 - update.rates["items"] * update.pulls["items"].strength == pytest.approx(0.5, abs=1e-5)


def test_rows_that_no_batch_touches_are_pulled_in_closed_form() -> None:
    learner: GPFedRec = method("gpfedrec", local={"epochs": 2}, **options(factor=8.0))
    device, generator = side(learner, users()), torch.manual_seed(1)
    common, own = torch.randn(ITEMS, DIM, generator=generator), torch.randn(2, ITEMS, DIM, generator=generator)
    arrays = {"common": common.numpy(), "items": own.numpy(), "receivers": np.array([1, 3])}
    downloads = learner.downloads(device, asked(2, **arrays))
    learner.engine = "torch"
    device.cohort.train(torch.arange(USERS), downloads, 2)
    (update,) = learner.updates(2)
    left = 1 - update.rates["items"] * update.pulls["items"].strength
    for user, liked in enumerate(LISTS):
        anchor = {1: own[0], 3: own[1]}.get(user, common)  # who has no r is pulled to where it starts from
        batches = 2 * -(-2 * len(liked) // 4)
        closed = anchor + left**batches * (common - anchor)
        kept = device.cohort.state["items"][user]
        still = torch.isclose(kept, closed, atol=1e-6).all(1)
        assert not bool(still[liked].any()) and int(still.sum()) >= ITEMS - 2 * len(liked)


# ---- FedCIA


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
