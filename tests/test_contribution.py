"""From single users' contributions to sums: kinds of means, stages in between, and what is declared of uploads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from factorised import cohort_of, learner, of_users
from test_samples import histories_of
from torch import Tensor

from fedem_flwr.contract.adding import Adder, contributed
from fedem_flwr.contract.fields import Field, empty, fault_of, indexed
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.contribution import Collector, Contribution, Stage, staged
from fedem_flwr.engine.downloads import Download
from fedem_flwr.engine.optimizer import CohortSgd
from fedem_flwr.engine.parts import Part
from fedem_flwr.methods.fedmf import FedMF

CPU, ITEMS, DIM = torch.device("cpu"), 12, 3
LISTS = [[0, 1, 2], [2, 3], [4, 5, 6, 7], [1, 8]]


def given(users: int = 2) -> Contribution:
    """Two users, of whom each has trained two rows; both the row of item 1."""
    before = torch.arange(12, dtype=torch.float32).view(2, 2, 3)
    return Contribution(
        torch.arange(users),
        torch.tensor([10, 30]),
        torch.tensor([[0, 1], [1, 2]]),
        torch.tensor([[True, True], [True, True]]),
        {"items": before + 1},
        {"items": before},
        {"net": torch.tensor([[1.0, 2.0], [3.0, 6.0]])},
    )


def collected(parts: dict[str, Part], stages: Sequence[Stage] = ()) -> Collector:
    collector = Collector(parts, 4, CPU, 1, stages)
    collector.add(given())
    return collector


def test_rows_are_divided_by_their_own_clients() -> None:
    sums = collected({"items": Part("item", 3, up="sum")}).sums["items"]
    assert sums.weight.tolist() == [1, 2, 1, 0]
    assert sums.total[1].tolist() == [4 + 7, 5 + 8, 6 + 9] and sums.total[3].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("mean", "weights"), [("samples", (10, 30)), ("users", (1, 1))])
def test_whole_tables_are_divided_by_all(mean: Any, weights: tuple[int, int]) -> None:
    """Changes of touched rows first, then the tables behind them."""
    collector = collected({"items": Part("item", 3, up="sum", mean=mean)})
    start = torch.full((4, 3), 5.0)
    collector.complete("items", [(start.as_strided((2, 4, 3), (0, 3, 1)), given().samples, torch.ones(2))])
    sums = collector.sums["items"]
    assert float(sums.weight) == sum(weights)
    expected = start.double() * sum(weights)
    expected[0] += weights[0]
    expected[1] += weights[0] + weights[1]
    expected[2] += weights[1]
    assert torch.equal(sums.total, expected)


def test_weights_of_a_network_are_weighted_by_samples() -> None:
    sums = collected({"net": Part("model", 2, up="sum", mean="samples")}).sums["net"]
    assert sums.total.tolist() == [100, 200] and float(sums.weight) == 40


def test_rows_before_are_kept_only_where_somebody_looks_at_them() -> None:
    rows, whole = Part("item", 3, up="sum"), Part("item", 3, up="sum", mean="samples")
    assert not Collector({"items": rows}, 4, CPU, 1).needs_before
    assert Collector({"items": whole}, 4, CPU, 1).needs_before
    assert Collector({"items": rows}, 4, CPU, 1, [lambda one, _: one]).needs_before
    collector = Collector({"items": rows, "p": Part("user", 3, private=True)}, 4, CPU, 1)
    assert list(collector.sums) == ["items"], "and nothing is added up that does not go up"


def test_stages_follow_each_other() -> None:
    def doubled(one: Contribution, round_: int) -> Contribution:
        return replace(one, values={"net": one.values["net"] * 2})

    def raised(one: Contribution, round_: int) -> Contribution:
        return replace(one, values={"net": one.values["net"] + round_})

    found = staged(given(), [doubled, raised], 7).values["net"]
    assert torch.equal(found, given().values["net"] * 2 + 7)


class Clipped(FedMF):
    """No user moves a row further than .02."""

    def stages(self) -> Sequence[Stage]:
        return [self.clip]

    def clip(self, given: Contribution, round_: int) -> Contribution:
        before = given.before["items"]
        return replace(given, rows={"items": before + clip(given.rows["items"] - before)})


def clip(change: Tensor) -> Tensor:
    return change * (0.02 / change.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1)


def trained(method: Any, users: list[int]) -> tuple[Cohort, Tensor, Tensor]:
    cohort = cohort_of(histories_of([LISTS[u] for u in users], ITEMS, users=users), method)
    start = torch.linspace(-1, 1, ITEMS * DIM).view(ITEMS, DIM)
    down = of_users({"items": Download.for_all(start, len(LISTS))}, torch.tensor(users))
    sums = cohort.train(torch.arange(len(users)), down, 1, sums=True).sums["items"]
    return cohort, sums.total, sums.weight


@pytest.mark.parametrize("weights", ["rows", "average"])
def test_each_user_is_clipped_before_the_sum(weights: str) -> None:
    """In a cohort of four as in four cohorts of one; and a client's own state is as it was trained."""
    plain = learner("fedmf", ITEMS, "replace", model={"dim": DIM}, local={"epochs": 2}, aggregate={"weights": weights})
    clipped = Clipped(plain.config, ITEMS)
    cohort, total, weight = trained(clipped, [0, 1, 2, 3])
    alone = [trained(clipped, [u]) for u in range(4)]
    torch.testing.assert_close(total, torch.stack([one[1] for one in alone]).sum(0), rtol=0, atol=1e-5)
    free = [trained(plain, [u]) for u in range(4)]
    start = torch.linspace(-1, 1, ITEMS * DIM).view(ITEMS, DIM).double()
    for (_, mine, count), (_, theirs, same) in zip(alone, free, strict=True):
        scale = count.unsqueeze(-1).clamp(min=1)
        moved = theirs / scale - start * (count > 0).unsqueeze(-1) if weights == "rows" else theirs / scale - start
        expected = clip(moved) * scale + start * count.unsqueeze(-1)
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5)
        assert torch.equal(count, same) and float(moved.norm(dim=-1).max()) > 0.02
    assert torch.equal(cohort.state["user"], torch.cat([one[0].state["user"] for one in free]))
    assert torch.equal(weight, torch.stack([one[2] for one in alone]).sum(0))


# What goes up, declared.

SPARSE = {
    **indexed("items", 5, rows=Field((None, 2), terms=1), counts=Field((None,), "int32", count=True)),
    "gram": Field((2,), least=0.0),
}


def upload(items: list[int], counts: list[int], gram: float = 1.0, rows: float = 1.0) -> dict[str, np.ndarray]:
    return {
        "items": np.array(items, np.int32),
        "rows": np.full((len(items), 2), rows, np.float32),
        "counts": np.array(counts, np.int32),
        "gram": np.full(2, gram, np.float32),
    }


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (upload([0, 4], [1, 2]), ""),
        (upload([], []), ""),
        (upload([0, 0], [1, 1]), "'items' are not ascending item codes below 5"),
        (upload([3, 5], [1, 1]), "'items' are not ascending item codes below 5"),
        (upload([1], [1, 1]), "'counts' has 2 rows for 1 items"),
        (upload([1], [0]), "'counts' are not whole numbers between 1 and 2"),
        (upload([1], [3]), "'counts' are not whole numbers between 1 and 2"),
        (upload([1], [1], gram=-0.1), "'gram' has an entry below 0"),
        (upload([1], [1], rows=21.0), "'rows' has an entry of 21, more than 20"),
    ],
)
def test_what_a_declared_upload_cannot_be(arrays: dict[str, np.ndarray], words: str) -> None:
    assert fault_of(arrays, SPARSE, 2, 10.0) == words


def test_uploads_add_up_and_pack_again() -> None:
    adder = Adder(SPARSE)
    adder.add(upload([0, 4], [1, 2]))
    adder.add(upload([4], [1], gram=0.5, rows=3.0))
    assert adder.sums["rows"][:, 0].tolist() == [1, 0, 0, 0, 4] and adder.sums["counts"].tolist() == [1, 0, 0, 0, 3]
    packed = adder.packed()
    assert packed["items"].tolist() == [0, 4] and packed["gram"].tolist() == [1.5, 1.5]
    assert {name: array.dtype for name, array in packed.items()} == {name: f.dtype for name, f in SPARSE.items()}
    assert [array.size for array in empty(SPARSE).values()] == [0, 0, 0, 2]


def test_steps_by_frequency_are_means_over_an_items_own_samples() -> None:
    """Three samples of one item and one of another, in a batch of four: the first's gradient counts 4 / 3, not 1."""
    rows, gradient = torch.zeros(1, 2, 1), torch.tensor([[[3.0], [1.0]]])

    class Four:
        size, weight = torch.tensor([[4.0]]), torch.tensor([[3.0, 1.0]])

    batch: Any = Four()
    CohortSgd([0.5], [True]).step([rows], [gradient], batch)
    torch.testing.assert_close(rows.flatten(), torch.tensor([-0.5 * 3 * 4 / 3, -0.5 * 1 * 4]))
    CohortSgd([0.5], [False]).step([rows], [gradient], batch)
    torch.testing.assert_close(rows.flatten(), torch.tensor([-2.0 - 1.5, -2.0 - 0.5]))


def test_without_stages_a_task_sums_by_itself() -> None:
    class Counting:
        handles_stages, asked = False, 0

        def contribute(self, device: Any, asked: Any) -> str:
            self.asked += 1
            return "summed"

    task: Any = Counting()
    nobody: Any = None
    assert contributed(task, nobody, nobody, ()) == "summed" and task.asked == 1  # type: ignore[comparison-overlap]
