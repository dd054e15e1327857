"""Compiled rounds of networks over merged rows (FedEM, AAAI 2026, Eq. 9–12), against the reference and autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from back_ends import M, independent, same, start, world
from hypothesis import given, settings
from hypothesis import strategies as st
from test_layers import OPTIONS, apart, by_gradients, method, tables

from fedem_flwr.contract import Method, Update
from fedem_flwr.engine.block import Batch
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.decoys import with_decoys
from fedem_flwr.engine.downloads import Download
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.fallback import method_fallback
from fedem_flwr.engine.merged_gradients import through_merge
from fedem_flwr.engine.merging import as_gate
from fedem_flwr.engine.samples import draw_samples

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("fedncf", "fedrap", "gpfedrec", "pfedrec")  # network and vector, two tables, a pull to a second one, a head


def merging(name: str, mode: str = "elastic", schedule: str = "paper", **sections: Any) -> Method:
    merge = {"mode": mode, "schedule": schedule, "rho": 0.3, "hidden": (9, 4), "epochs": 3, "lr": 0.07}
    return method(name, merge=merge | sections.pop("merge", {}), **sections)


@pytest.mark.parametrize("schedule", ["paper", "released"])
@pytest.mark.parametrize("name", NAMES)
def test_a_round_equals_the_reference(name: str, schedule: str) -> None:
    """Batches of nearly all of a client's rows and of few of them; clients that stop at different epochs."""
    for local in ({"batch_size": 7, "epochs": 2}, {"early_stop": 0.1, "epochs": 6, "lr_item": 0.05}):
        one = merging(name, "elastic", schedule, local=local)
        assert method_fallback(one) == ""
        same(one, world(), tables(one))


@pytest.mark.parametrize(("name", "mode"), [("fedncf", "scalar"), ("fedrap", "scalar"), ("fedrap", "static")])
def test_one_weight_a_client(name: str, mode: str) -> None:
    for schedule in ("paper", "released"):
        one = merging(name, mode, schedule, local={"epochs": 2})
        same(one, world(), tables(one))


def test_decoys_secrets_and_items_for_the_adapter_alone() -> None:
    secret = with_decoys(world(), bytes(range(16)), 1.5)
    gate = as_gate(secret, torch.tensor([0, 2, 2, 4, 6, 8, 9, 10]), torch.arange(10) * 7)
    for schedule in ("paper", "released"):
        one = merging("fedncf", "elastic", schedule, merge={"gate_data": "heldout"}, local={"epochs": 2})
        same(one, secret, tables(one), gate)


def test_parts_that_move_one_after_the_other() -> None:
    one = apart(merging("fedrap", "elastic", "released", local={"epochs": 2}))
    same(one, world(), tables(one))


def test_steps_of_a_rows_own_frequency() -> None:
    """As many as its samples in the batch; those on Θ are not."""

    class Often(type(merging("fedncf"))):  # type: ignore[misc]
        def updates(self, round_: int) -> Sequence[Update]:
            return [Update({"user": 0.1, "items": 0.1, "network": 0.1}, "frequency-sgd")]

    for schedule in ("paper", "released"):
        one = Often(merging("fedncf", "elastic", schedule, local={"epochs": 2}).config, M)
        same(one, world(), tables(one))


def test_who_received_nothing_trains_as_ever() -> None:
    one = merging("gpfedrec")
    got = tables(one)
    got["items"] = Download(got["items"].values, torch.tensor([0, 1, 0, -1, 1, -1, 0]))
    same(one, world(), got)


def test_a_client_does_not_depend_on_its_cohort() -> None:
    """To the bit, whoever else is in it, and on however many threads."""
    for name, schedule in (("fedncf", "paper"), ("fedncf", "released"), ("fedrap", "paper")):
        one = merging(name, "elastic", schedule, local={"early_stop": 0.05})
        independent(one, world(), tables(one), threads=1, others=3)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(NAMES[:3]),
    hidden=st.lists(st.integers(1, 19), max_size=2),
    inside=st.lists(st.integers(1, 19), max_size=3),
    dim=st.integers(1, 21),
    seed=st.integers(0, 99),
)
def test_gradients_are_those_of_the_chain_rule(
    name: str, hidden: list[int], inside: list[int], dim: int, seed: int
) -> None:
    """Networks and adapters of any widths, by one step of rate 1 through merged rows; Θ as good as stands still."""
    options = {"hidden": tuple(hidden) or (1,)} if "hidden" in OPTIONS[name] else {}
    shape = {"merge": {"hidden": tuple(inside), "lr": 1e-9}, "model": {"dim": dim}}
    made = merging(name, "elastic", "released", options=options, local={"epochs": 1, "batch_size": 0}, **shape)
    one = by_gradients(made)
    data, got = world(seed), tables(made)
    cohort = Cohort(data, start(made), one)
    who = data.counts().nonzero().squeeze(1)
    cohort.overwrite(who, got)  # as a round under this schedule begins
    samples = draw_samples(data, who, one.local.negatives, Draws(one.seed), 2)
    block = cohort.block_of(who, got, samples, 2, merging=True)
    valid = (torch.arange(samples.row.shape[1]) < samples.size.unsqueeze(1)).float()
    (update,) = one.updates(2)
    _, expected = through_merge(one, Batch(block, samples.row, valid), list(update.rates))
    again = Cohort(data, start(made), one)
    assert again.train(who, got, 2).uncompiled == ""
    after = again.block_of(who, got, samples, 2, merging=False)
    for part in [name for name in expected if one.parts()[name].own]:
        real = block.real if block.axes[part] == "item" else slice(None)
        change, gradient = (block.parts[part] - after.parts[part])[real], expected[part][real]
        torch.testing.assert_close(change, gradient, rtol=1e-4, atol=5e-6 * max(1.0, float(gradient.abs().max())))
