"""Local training against a slow twin: one client at a time, autograd, torch's dense Adam over the whole table.

Everything runs in float64, so that the batched, compact, hand-differentiated path has to agree to rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from factorised import learner, received
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from fedem_flwr.contract import Method, State
from fedem_flwr.engine import cohort as cohort_module
from fedem_flwr.engine.downloads import Downloads
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.merge import MergeMode, Schedule
from fedem_flwr.engine.optimizer import CohortAdam
from fedem_flwr.engine.samples import TrainingItems, draw_samples, shuffled_rows
from fedem_flwr.models.mf import initial_table, initial_user, loss_and_residual, scores

M, D = 60, 4
POSITIVES = (3, 8, 5, 9, 9, 4)  # with 3 negatives each and batches of 10: 2 to 4 batches, the last one partly filled
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def in_double(one_thread: None) -> Iterator[None]:
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(dtype)


def world() -> TrainingItems:
    """Six users with some items in common; user 4 has a duplicate."""
    g = torch.Generator().manual_seed(0)
    lists = [torch.randperm(M, generator=g)[:p].sort().values for p in POSITIVES]
    lists[4][1] = lists[4][0]
    offsets = torch.tensor([0, *itertools.accumulate(POSITIVES)])
    forbidden = [x.unique() for x in lists]
    ends = torch.tensor([0, *itertools.accumulate(map(len, forbidden))])
    names = torch.tensor([4, 7, 1, 12, 30, 31])
    return TrainingItems(names, M, offsets, torch.cat(lists), ends, torch.cat(forbidden))


def method(mode: MergeMode, schedule: Schedule, early_stop: float = 0.0, epochs: int = 4) -> Method:
    local = {"epochs": epochs, "batch_size": 10, "negatives": 3, "lr_user": 0.05, "lr_item": 0.1}
    sections: dict[str, Any] = {
        "model": {"dim": D},
        "local": {**local, "early_stop": early_stop},
        "merge": {"rho": 0.3, "hidden": (6, 5), "epochs": 3, "lr": 0.07},
        "run": {"seed": 5},
    }
    return learner("fedem", M, mode, schedule, **sections)


def start(settings: Method, seed: int = 1) -> State:
    """State as after some rounds: every client has its own values."""
    g = torch.Generator().manual_seed(seed)
    k = len(POSITIVES)
    theta = 0.6 * torch.randn(k, settings.merge.adapter.parameters, generator=g)
    state = {"user": torch.randn(k, D, generator=g), "items": torch.randn(k, M, D, generator=g)}
    return state | ({"adapter": theta} if settings.merge.learned else {})


def downloads(seed: int = 2) -> Downloads:
    """Tables for all but user 2, in another order than the users."""
    tables = torch.randn(5, M, D, generator=torch.Generator().manual_seed(seed))
    return received(tables, torch.tensor([3, 0, -1, 4, 1, 2]))


@dataclass
class Client:
    """The slow twin of one client."""

    user: nn.Parameter
    table: nn.Parameter
    net: nn.Sequential
    glob: Tensor | None
    settings: Method
    epochs_run: int = 0
    loss: float = 0.0

    def rho(self, pool: tuple[Tensor, Tensor] | None) -> Tensor:
        """ρ of every item (m, 1), or of the whole table (1, 1)."""
        merge = self.settings.merge
        if merge.mode in ("replace", "static") or self.glob is None:
            return torch.full((1, 1), 1.0 if merge.mode == "replace" else merge.rho)
        own, glob = pool if pool is not None else (self.table, self.glob)
        rho: Tensor = self.net(torch.cat([own, glob - own], dim=-1))
        return rho

    def pool(self) -> tuple[Tensor, Tensor] | None:
        if self.settings.merge.mode != "scalar" or self.glob is None:
            return None
        return self.table.detach().mean(0, keepdim=True), self.glob.mean(0, keepdim=True)

    def merged(self, pool: tuple[Tensor, Tensor] | None) -> Tensor:
        if self.glob is None:
            return self.table
        return self.table + self.rho(pool) * (self.glob - self.table)

    def overwrite(self) -> None:
        with torch.no_grad():
            self.table.copy_(self.merged(self.pool()))

    def run_epochs(self, orders: list[tuple[Tensor, Tensor]], step: Callable[[Tensor, Tensor], float]) -> None:
        """Batches of every epoch, until the running mean loss stands still."""
        local, total, mean = self.settings.local, 0.0, 0.0
        for epoch, (items, sign) in enumerate(orders):
            for i, s in zip(items.split(local.batch_size), sign.split(local.batch_size), strict=True):
                total += step(i, s) * len(i)
            before, mean = mean, total / ((epoch + 1) * len(items))
            self.epochs_run, self.loss = epoch + 1, mean
            if local.early_stop and epoch and abs(mean - before) / abs(before + 1e-5) < local.early_stop:
                return

    def train(self, samples: list[tuple[Tensor, Tensor]], adapter_samples: list[tuple[Tensor, Tensor]]) -> None:
        settings, local = self.settings, self.settings.config.local
        merge, released = settings.merge, settings.merge.schedule == "released"
        if merge.mode == "none":
            self.glob = None
        learned = merge.learned and self.glob is not None
        adapter = torch.optim.Adam(self.net.parameters(), lr=merge.lr)
        rates = [{"params": [self.user], "lr": local.lr_user}, {"params": [self.table], "lr": local.lr_item}]

        def loss_of(table: Tensor, items: Tensor, sign: Tensor) -> Tensor:
            return softplus(sign * (table[items] @ self.user)).mean()

        def step(optimizer: torch.optim.Optimizer, items: Tensor, sign: Tensor, through: bool) -> float:
            for parameter in (self.user, self.table, *self.net.parameters()):
                parameter.grad = None
            loss = loss_of(self.merged(pool) if through else self.table, items, sign)
            loss.backward()
            optimizer.step()
            return loss.item()

        if not learned or released:
            self.overwrite()
        pool = self.pool()
        if learned and not released:
            self.run_epochs(adapter_samples, lambda i, s: step(adapter, i, s, True))
            self.overwrite()
        main = torch.optim.Adam(rates)
        through = released and self.glob is not None and merge.mode != "replace"

        def batch(items: Tensor, sign: Tensor) -> float:
            if learned and released:
                step(adapter, items, sign, True)
            return step(main, items, sign, through)

        self.run_epochs(samples, batch)


def twins(histories: TrainingItems, settings: Method, tables: Downloads, round_: int) -> list[Client]:
    """Every client of the world, trained alone for one round."""
    clients, state, epochs = [], start(settings), settings.local.epochs
    for u in range(len(POSITIVES)):
        net = nn.Sequential(nn.Linear(2 * D, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1), nn.Sigmoid())
        if "adapter" in state:
            nn.utils.vector_to_parameters(state["adapter"][u], net.parameters())
        slot = int(tables["items"].slot[u]) if tables else -1
        glob = tables["items"].values[slot] if slot >= 0 else None
        client = Client(nn.Parameter(state["user"][u]), nn.Parameter(state["items"][u]), net, glob, settings)
        alone = draw_samples(histories, torch.tensor([u]), 3, Draws(settings.seed), round_)
        size, name = int(alone.size[0]), histories.users[[u]]
        orders = []
        for epoch in range(epochs + settings.merge.epochs):
            row = shuffled_rows(alone, name, Draws(settings.seed), round_, epoch)[0, :size]
            orders.append((alone.touched[0, row], alone.sign[0, row].double()))
        client.train(orders[:epochs], orders[epochs:])
        clients.append(client)
    return clients


def assert_equal(state: State, loss: Tensor, clients: list[Client]) -> None:
    for u, client in enumerate(clients):
        torch.testing.assert_close(state["user"][u], client.user.data, rtol=0, atol=1e-9)
        torch.testing.assert_close(state["items"][u], client.table.data, rtol=0, atol=1e-9)
        assert float(loss[u]) == pytest.approx(client.loss, abs=1e-9)
        if "adapter" in state:
            theta = nn.utils.parameters_to_vector(client.net.parameters()).detach()
            torch.testing.assert_close(state["adapter"][u, : len(theta)], theta, rtol=0, atol=1e-9)


MODES: tuple[MergeMode, ...] = ("none", "replace", "static", "scalar", "elastic")
SCHEDULES: tuple[Schedule, ...] = ("paper", "released")


@pytest.mark.parametrize("early_stop", [0.0, 0.12])
@pytest.mark.parametrize(("mode", "schedule"), list(itertools.product(MODES, SCHEDULES)))
def test_a_round_equals_the_slow_twin(mode: MergeMode, schedule: Schedule, early_stop: float) -> None:
    settings, histories, tables = method(mode, schedule, early_stop, epochs=8), world(), downloads()
    cohort = settings.cohort(histories, start(settings))
    result = cohort.train(torch.arange(len(POSITIVES)), tables, 3)
    clients = twins(histories, settings, tables, 3)
    assert_equal(cohort.state, result.loss, clients)
    epochs = [client.epochs_run for client in clients]
    assert result.samples.tolist() == [4 * p for p in POSITIVES]
    pair, three = {epochs[0], epochs[5]}, {epochs[1], epochs[3], epochs[4]}  # blocks of 2 and of 4 batches
    assert max(len(pair), len(three)) > 1 if early_stop else set(epochs) == {8}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_first_round_has_no_merging(schedule: Schedule) -> None:
    settings, histories = method("elastic", schedule), world()
    cohort = settings.cohort(histories, start(settings))
    result = cohort.train(torch.arange(len(POSITIVES)), {}, 1)
    assert_equal(cohort.state, result.loss, twins(histories, settings, {}, 1))
    assert torch.equal(cohort.state["adapter"], start(settings)["adapter"])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_many_small_blocks_on_threads_give_the_same(schedule: Schedule, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, histories, tables = method("elastic", schedule, 0.12, 8), world(), downloads()
    monkeypatch.setattr(cohort_module, "BLOCK_FLOATS", 1)
    monkeypatch.setattr(cohort_module, "MERGE_FLOATS", 1)
    torch.set_num_threads(2)
    cohort = settings.cohort(histories, start(settings))
    result = cohort.train(torch.arange(len(POSITIVES)), tables, 3)
    assert torch.get_num_threads() == 2
    assert_equal(cohort.state, result.loss, twins(histories, settings, tables, 3))


def test_loss_and_residual_equal_autograd_and_torch() -> None:
    g = torch.Generator().manual_seed(3)
    logits = (8 * torch.randn(3, 40, generator=g)).requires_grad_()
    label = (torch.rand(3, 40, generator=g) < 0.3).double()
    weight = torch.rand(3, 40, generator=g)
    loss, residual = loss_and_residual(logits, 1 - 2 * label, weight)
    expected = binary_cross_entropy_with_logits(logits, label, weight=weight, reduction="none").sum(1)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(residual.detach(), gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("z", [20.0, 40.0, 80.0])
def test_the_residual_of_a_well_fitted_sample_keeps_its_precision(z: float) -> None:
    logits = torch.tensor([[z, -z]], dtype=torch.float32)  # a positive and a negative, both right
    sign = torch.tensor([[-1.0, 1.0]], dtype=torch.float32)
    loss, residual = loss_and_residual(logits, sign, torch.ones(1, 2, dtype=torch.float32))
    exact = float(torch.sigmoid(torch.tensor(-z)))  # in float64
    assert residual[0].tolist() == pytest.approx([-exact, exact], rel=1e-5)
    assert float(loss[0]) == pytest.approx(2 * exact, rel=1e-5)


def test_initial_values_are_standard_normal_times_std_and_scores_are_dot_products() -> None:
    table = initial_table(4000, 8, 0.5, 3)
    assert table.shape == (4000, 8) and float(table.std()) == pytest.approx(0.5, rel=0.02)
    assert torch.equal(initial_table(10, 8, 0.5, 3), table[:10])
    users, rows = initial_user(8, 0.5, 3).repeat(2, 1), table[:6].view(2, 3, 8)
    expected = torch.stack([rows[u] @ users[u] for u in range(2)])
    torch.testing.assert_close(scores(users, rows), expected)


def test_compact_adam_equals_dense_adam_over_the_whole_table() -> None:
    """A row without a gradient so far stays; one with goes on moving in batches that do not hold it."""
    g = torch.Generator().manual_seed(4)
    table = torch.randn(2, M, D, generator=g)
    dense = nn.Parameter(table.clone())
    reference = torch.optim.Adam([dense], lr=0.1)
    touched = torch.tensor([2, 3, 5, 8, 13, 40])
    values = table[:, touched]
    compact = CohortAdam([values], [0.1])
    batches = ([0, 1, 2], [3, 4], [1, 1, 5], [0], [2, 3, 5])
    for number, batch in enumerate(batches):
        gradient = torch.zeros(len(dense), len(touched), D)
        for row in batch:
            gradient[:, row] += torch.randn(len(dense), D, generator=g)
        whole = torch.zeros_like(dense)
        whole[:, touched] = gradient
        dense.grad = whole
        reference.step()
        if number == 3:  # the first client leaves; the other's moments and bias correction go on
            compact.keep(torch.tensor([1]))
            values = values[1:]
        compact.step([values], [gradient[1:] if number >= 3 else gradient])
        rows = dense.data[:, touched]
        torch.testing.assert_close(values, rows[1:] if number >= 3 else rows, rtol=0, atol=1e-12)
    rest = torch.ones(M, dtype=torch.bool).index_fill_(0, touched, False)
    assert torch.equal(dense.data[:, rest], table[:, rest])
