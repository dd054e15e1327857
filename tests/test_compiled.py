"""Compiled rounds against the reference back end: one client at a time, autograd, torch's own optimisers."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from back_ends import D, K, M, independent, same, start, trained, world
from factorised import learner, received
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedem_flwr.contract import Method
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.decoys import with_decoys
from fedem_flwr.engine.downloads import Download, Downloads
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.fallback import LONGEST, fallback, method_fallback
from fedem_flwr.engine.fused.backend import FusedRound
from fedem_flwr.engine.learner import Products
from fedem_flwr.engine.merge import MergeMode, Schedule
from fedem_flwr.engine.merging import as_gate
from fedem_flwr.engine.parts import Part
from fedem_flwr.engine.samples import draw_samples

MODES: tuple[MergeMode, ...] = ("none", "replace", "static", "scalar", "elastic")
SCHEDULES: tuple[Schedule, ...] = ("paper", "released")


pytestmark = pytest.mark.usefixtures("one_thread")


def method(mode: MergeMode, schedule: Schedule = "paper", name: str = "fedem", **sections: Any) -> Method:
    local = {"epochs": 4, "batch_size": 20, "negatives": 3, "lr_user": 0.05, "lr_item": 0.1}
    merge = {"rho": 0.3, "hidden": (9, 4), "epochs": 3, "lr": 0.07} | sections.pop("merge", {})
    return learner(
        name, M, mode, schedule, model={"dim": D}, local=local | sections.pop("local", {}), merge=merge, **sections
    )


def tables() -> Downloads:
    """Tables for all but user 3, in another order than the users."""
    values = 0.4 * torch.randn(6, M, D, generator=torch.Generator().manual_seed(2))
    return received(values, torch.tensor([3, 0, 5, -1, 4, 1, 2]))


@pytest.mark.parametrize("early_stop", [0.0, 0.1])
@pytest.mark.parametrize(("mode", "schedule"), list(itertools.product(MODES, SCHEDULES)))
def test_a_round_equals_the_reference(mode: MergeMode, schedule: Schedule, early_stop: float) -> None:
    same(method(mode, schedule, local={"early_stop": early_stop, "epochs": 6}), world(), tables())


@pytest.mark.parametrize("weights", ["rows", "average"])
@pytest.mark.parametrize("local", [{}, {"optimiser": "sgd"}, {"optimiser": "frequency-sgd", "ridge": 0.01}])
def test_sums_of_one_table_for_all(local: dict[str, Any], weights: str) -> None:
    got = {"items": Download.for_all(torch.randn(M, D, generator=torch.Generator().manual_seed(4)), K)}
    same(method("replace", name="fedmf", local=local, aggregate={"weights": weights}), world(), got)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sums_of_merged_tables(schedule: Schedule) -> None:
    same(method("elastic", schedule, name="fedmf", aggregate={"weights": "average"}), world(), tables())


@pytest.mark.parametrize("optimiser", ["sgd", "frequency-sgd"])
def test_another_optimiser_where_the_adapter_alone_passes_the_merge(optimiser: str) -> None:
    """Eq. 11 has Adam for Θ; Eq. 12 sees rows as they lie."""
    local = {"optimiser": optimiser}
    for mode, weights in (("elastic", "rows"), ("scalar", "average")):
        same(method(mode, name="fedmf", local=local, aggregate={"weights": weights}), world(), tables())


@pytest.mark.parametrize("hidden", [(), (1,), (8,), (3, 11, 2)])
def test_adapters_of_any_shape(hidden: tuple[int, ...]) -> None:
    for schedule in SCHEDULES:
        same(method("elastic", schedule, merge={"hidden": hidden}), world(), tables())


def test_decoys_secrets_and_items_for_the_adapter_alone() -> None:
    secret = with_decoys(world(), bytes(range(16)), 1.5)
    gate = as_gate(secret, torch.tensor([0, 2, 2, 4, 6, 8, 9, 10]), torch.arange(10) * 7)
    for schedule in SCHEDULES:
        same(method("elastic", schedule, merge={"gate_data": "heldout"}), secret, tables(), gate)


@settings(max_examples=25, deadline=None)
@given(negatives=st.integers(0, 6), round_=st.integers(1, 10**6), seed=st.integers(0, 10**6), epochs=st.integers(0, 3))
def test_samples_are_those_of_the_other_back_ends(negatives: int, round_: int, seed: int, epochs: int) -> None:
    """To the bit; also where a user has met nearly everything, so that negatives repeat."""
    data = replace(world(seed), items=M)
    crowded = torch.arange(M)[torch.arange(M) % 45 != 0]
    ends = torch.tensor([0, *itertools.accumulate([len(crowded)] * K)])
    for one in (data, replace(data, forbidden_offsets=ends, forbidden_items=crowded.repeat(K))):
        trained_by = method("replace", name="fedmf", local={"negatives": negatives, "epochs": max(1, epochs)})
        cohort = Cohort(one, trained_by.initial_state(K, torch.device("cpu")), trained_by)
        products = trained_by.products(round_)
        assert isinstance(products, Products)
        size, none = one.sizes(negatives), torch.zeros(K, dtype=torch.bool)
        drawn = draw_samples(one, torch.arange(K), negatives, Draws(trained_by.seed), round_)
        for index, found in FusedRound(cohort, {}, round_, True, False, products).train(torch.arange(K), size, none):
            samples = found.block.samples
            for at, user in enumerate(index.tolist()):
                count = int(drawn.touched_count[user])
                assert int(samples.touched_count[at]) == count and int(samples.size[at]) == int(drawn.size[user])
                assert torch.equal(samples.touched[at, :count], drawn.touched[user, :count])
                assert torch.equal(samples.sign[at, :count], drawn.sign[user, :count])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_who_has_no_samples_is_merged_all_the_same(schedule: Schedule) -> None:
    one, data, got = method("elastic", schedule), world(), tables()
    expected = trained("torch", one, data, got)[0]
    one.engine = "fused"
    cohort = Cohort(data, start(one), one)
    assert float(cohort.train(torch.tensor([1]), got, 3).loss) == 0.0
    assert not torch.equal(expected["items"][1], start(one)["items"][1])
    for name, values in cohort.state.items():
        torch.testing.assert_close(values[1], expected[name][1], rtol=0, atol=5e-6)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_client_does_not_depend_on_its_cohort(threads: int) -> None:
    """To the bit, whoever else is in it, and on however many threads."""
    independent(method("elastic", "released", local={"early_stop": 0.05}), world(), tables(), threads)


def test_a_whole_table_is_merged_as_by_torch() -> None:
    one = method("elastic")
    cohort = Cohort(world(), start(one), one)
    everyone = torch.arange(K)
    found, rho = cohort.seen(everyone, tables())
    one.engine = "torch"
    expected, weights = cohort.seen(everyone, tables())
    assert rho is not None and weights is not None and rho.shape == (K - 1, M)
    torch.testing.assert_close(found["items"], expected["items"], rtol=0, atol=5e-6)
    torch.testing.assert_close(rho, weights, rtol=0, atol=5e-6)


def size_of(count: int) -> Tensor:
    return torch.full((1,), count)


def test_what_compiled_functions_do_not_know_is_said() -> None:
    """Each reason, and that torch then trains."""

    def why(one: Method) -> str:
        return method_fallback(one)

    assert why(method("elastic")) == ""
    assert why(method("elastic", run={"engine": "torch"})) == "run.engine = 'torch'"
    assert why(learner("fedrecgel", M, "replace")) == "its steps are not known to compiled functions"
    assert why(method("replace", gradients={"sharpness": 0.1})) == "its steps are not known to compiled functions"
    decay, steps = "its weight decay passes merged rows", "its steps through merged rows are not by Adam"
    assert (
        why(method("elastic", local={"ridge": 0.1})) == why(method("static", "released", local={"ridge": 0.1})) == decay
    )
    for optimiser in ("sgd", "frequency-sgd"):
        local = {"optimiser": optimiser}
        assert why(method("scalar", "released", local=local)) == why(method("static", "released", local=local)) == steps
        assert why(method("elastic", "released", local=local, merge={"gate_data": "heldout"})) == steps
        assert why(method("elastic", local=local)) == why(method("static", local=local | {"ridge": 0.1})) == ""

    class More(type(method("elastic"))):  # type: ignore[misc]
        def parts(self) -> Any:
            return {**super().parts(), "bias": Part("model", 3, up="sum", mean="users")}

    assert why(More(method("elastic").config, M)) == "it sends up parts that compiled functions do not know"
    one = method("elastic")
    doubled = Cohort(world(), {name: x.double() for name, x in start(one).items()}, one)
    assert fallback(doubled, size_of(4), 1).startswith("its users' state is not in single precision")
    cohort = Cohort(world(), start(one), one)
    assert fallback(cohort, size_of(1 << 20), 1) == fallback(cohort, size_of(LONGEST // 4 + 1), 1) != ""
    assert fallback(cohort, size_of(1 << 19), 1) == "" == fallback(cohort, size_of(4)[:0], 1)
    on_meta = replace(world(), users=world().users.to("meta"))
    assert fallback(Cohort(on_meta, start(one), one), size_of(4), 1) == "tensors are on meta"
    long = method("elastic", local={"epochs": 10**9})
    assert fallback(Cohort(world(), start(long), long), size_of(4), 1) != ""
