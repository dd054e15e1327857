"""CoLR and GPFedRec: low-rank changes, and a graph of users; each by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factorised import cohort_of
from test_samples import histories_of
from torch import Tensor
from worlds import carry_out_watched, config_of

from fedem_flwr.config import merge_trees, resolve
from fedem_flwr.contract import Asked, Device, Gathered
from fedem_flwr.contract.finding import method_of
from fedem_flwr.engine.downloads import Download
from fedem_flwr.engine.history import History
from fedem_flwr.engine.samples import TrainingItems
from fedem_flwr.errors import InputError
from fedem_flwr.methods import gpfedrec
from fedem_flwr.methods.colr import CoLR
from fedem_flwr.methods.gpfedrec import GPFedRec

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


@pytest.mark.parametrize("name", ["colr", "fedmf-visits"])
@pytest.mark.parametrize(
    ("dataset", "n"), [("filmtrust", 1002), ("ml-100k", 943), ("ml-1m", 6040), ("lastfm-2k", 1600)]
)
def test_sixty_users_train_in_a_round(name: str, dataset: str, n: int) -> None:
    """As in the program, whatever the data set; n is of those with ten items or more."""
    run = resolve({}, {"method": {"name": name}, "data": {"dataset": dataset}}).run
    assert run.participants * n == pytest.approx(60, abs=1)


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
    six = torch.randn(6, 5, 3, generator=torch.manual_seed(0))
    nearest = method("gpfedrec", **options(neighbours=2)).graph(six)
    assert ((nearest > 0).sum(1) == 2).all() and bool((nearest.diagonal() == 0.5).all())
    twice = method("gpfedrec", **options(neighbours=2, layers=2)).graph(six)
    torch.testing.assert_close(twice, nearest @ nearest)  # r = A² Q
    assert not torch.equal(twice, nearest)
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


@pytest.mark.parametrize(("share", "rate"), [(1.0, 7.9), (0.5, 15.9), (0.1, 79.9)])
def test_users_rates_grow_as_fewer_of_them_train(share: float, rate: float) -> None:
    """The program's: η 80 / ratio − η."""
    (update,) = method("gpfedrec", run={"participants": share}).updates(1)
    assert update.rates["user"] == pytest.approx(rate) and update.rates["network"] == 0.1


def test_where_some_train_the_graph_is_of_them_and_others_keep_the_mean_that_waits(tmp_path: Path) -> None:
    """A whole run with .6 of the users a round: what crosses, against the graph of what was uploaded."""
    world = {"data": {"synthetic": {"users": 12}}, "evaluation": {"every": 3}}
    run = {"participants": 0.6, "engine": "torch"}
    config = config_of("gpfedrec", **world, run=run, model={"dim": DIM}, local={"epochs": 1})
    done, grid = carry_out_watched(tmp_path / "run", config)
    learner: GPFedRec = method_of(config, len(done.server["common"]))
    down, up = ([one for one in way if one.kind != "query"] for way in (grid.down, grid.up))
    waiting: dict[int, Tensor] = {}
    for asked_for, reply, later in zip(down[:-1], up[:-1], down[1:], strict=True):
        np.testing.assert_array_equal(reply.arrays["users"], asked_for.arrays["uploaders"])
        uploads = torch.from_numpy(reply.arrays["items"]).double()
        assert len(uploads) == 7
        means = torch.einsum("uv,vmd->umd", learner.graph(uploads.float()), uploads).float()
        waiting |= dict(zip(reply.arrays["users"].tolist(), means, strict=True))
        assert later.arrays["receivers"].tolist() == sorted(waiting)
        expected = {"items": torch.stack([waiting[who] for who in sorted(waiting)]), "common": means.mean(0)}
        for name, values in expected.items():
            torch.testing.assert_close(torch.from_numpy(later.arrays[name]), values, rtol=1e-4, atol=1e-4)
    assert len(waiting) > 7, "somebody's is of an earlier round"


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


@pytest.mark.parametrize("name", ["gpfedrec", "gpfedrec-released", "fedrecgel", "fedncf", "mlp-central"])
@pytest.mark.parametrize("width", [0, -1])
def test_a_network_has_layers_of_one_number_at_least(name: str, width: int) -> None:
    with pytest.raises(InputError, match=r"hidden\.1.* 1") as refusal:
        method(name, **options(hidden=[4, width]))
    assert "\n" not in str(refusal.value)
