"""Elastic merging as a plug-in: gradients, the ends of ρ, held-out items, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conformance.methods import Subject
from factorised import cohort_of
from torch import Tensor
from worlds import config_of, done, largest_difference, prepare

from fedem_flwr.contract import Method
from fedem_flwr.contract.finding import method_of
from fedem_flwr.engine.block import Batch, Block
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.downloads import Download, Downloads
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.merge import ADAPTER
from fedem_flwr.engine.merged_gradients import MergedGradientStep, through_merge
from fedem_flwr.engine.samples import TrainingItems, draw_samples
from fedem_flwr.errors import InputError
from fedem_flwr.experiment.rounds import carry_out_rounds
from fedem_flwr.nodes.host import NodeHost
from fedem_flwr.report.run_directory import RunDirectory
from fedem_flwr.runtime.prepared import PreparedRun

M, POSITIVES = 40, (3, 8, 5)
BACKBONES = ["pfedrec", "fedrap", "fedncf", "gpfedrec", "fedmf"]


def method(name: str, mode: str, **merge: Any) -> Method:
    """With a table of the clients' own."""
    return method_of(Subject(name).config(merge={"mode": mode, "hidden": [3], **merge}), M)


def world() -> TrainingItems:
    g = torch.Generator().manual_seed(0)
    items = torch.cat([torch.randperm(M, generator=g)[:p].sort().values for p in POSITIVES])
    offsets = torch.tensor([0, *itertools.accumulate(POSITIVES)])
    return TrainingItems(torch.arange(3), M, offsets, items, offsets, items)


def shared(trained: Method, seed: int = 1) -> Downloads:
    """Something for everybody of each part that goes down."""
    g, found = torch.Generator().manual_seed(seed), {}
    for name, part in trained.parts().items():
        if part.private:
            continue
        value = part.initial(name, M, 0)
        found[name] = Download.for_all(value + 0.3 * torch.randn(value.shape, generator=g), 3)
    return found


def differing(trained: Method) -> Cohort:
    """Users who have trained for a round, apart."""
    cohort = cohort_of(world(), trained)
    cohort.train(cohort.everyone, {}, 1)
    return cohort


def block_of(cohort: Cohort, downloads: Downloads) -> tuple[Block, Batch]:
    draws = Draws(0)
    samples = draw_samples(cohort.data, cohort.everyone, 2, draws, 2)
    block = cohort.block_of(cohort.everyone, downloads, samples, 2, merging=True)
    row = torch.cat([samples.row[:, :7], samples.row[:, :2]], 1)  # two rows twice
    valid = torch.ones(row.shape)
    valid[1, 6:] = 0
    return block, Batch(block, row, valid)


def by_hand(trained: Method, batch: Batch, names: Sequence[str]) -> tuple[Tensor, ...]:
    """Automatic differentiation through the merge of all touched rows."""
    block, merge, name = batch.block, trained.merge, trained.merged
    leaves = {n: block.parts[n].clone().requires_grad_() for n in names}
    values = {**block.parts, **leaves}
    own, glob = values[name], block.received[name]
    if merge.learned:
        looked = block.pool or (own, glob)
        x = torch.cat([looked[0], looked[1] - looked[0]], 2)
        (w1, b1), (w2, b2) = merge.adapter.layers(values[ADAPTER])
        rho = torch.sigmoid(torch.relu(x @ w1.mT + b1) @ w2.mT + b2)
    else:
        rho = torch.full((1, 1, 1), merge.rho)
    values[name] = own + rho * (glob - own)
    rows = {n: batch.of_samples(v) if block.axes[n] == "item" else v for n, v in values.items()}
    loss, more = trained.loss(trained.score(rows), batch.sign, batch.valid), trained.penalty(rows, batch.valid, 2)
    return torch.autograd.grad((loss if more is None else loss + more).sum(), list(leaves.values()))


@pytest.mark.parametrize("mode", ["static", "scalar", "elastic"])
@pytest.mark.parametrize("name", BACKBONES)
def test_gradients_through_a_merge_are_those_of_autograd(name: str, mode: str) -> None:
    trained = method(name, mode, schedule="released", rho=0.3)
    cohort = differing(trained)
    block, batch = block_of(cohort, shared(trained))
    asked = [list(update.rates) for update in trained.updates(2)]
    for names in [*asked, *([[ADAPTER]] if trained.merge.learned else [])]:
        _, found = through_merge(trained, batch, names)
        for part, expected in zip(names, by_hand(trained, batch, names), strict=True):
            assert found[part].shape == block.parts[part].shape and bool(expected.abs().max() > 1e-6)
            torch.testing.assert_close(found[part], expected, rtol=1e-4, atol=1e-6, msg=f"{names}: {part}")


def test_the_step_that_is_written_out_is_the_general_one() -> None:
    trained = method("fedmf", "elastic", schedule="released")
    blocks = [block_of(differing(trained), shared(trained))[0] for _ in range(2)]
    steps = [trained.step(blocks[0], 2), MergedGradientStep(trained, blocks[1], 2)]
    assert type(steps[0]) is not type(steps[1])
    for start in (0, 3):
        row, valid = blocks[0].samples.row[:, start : start + 3], torch.ones(3, 3)
        losses = [step(row, valid) for step in steps]
        torch.testing.assert_close(losses[0].double(), losses[1].double())
    for part, values in blocks[0].parts.items():
        torch.testing.assert_close(values, blocks[1].parts[part], rtol=1e-4, atol=1e-5, msg=part)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_ends_of_rho(name: str) -> None:
    """ρ = 1 is the method with the table that it downloads, ρ = 0 clients that train their own table on."""
    plain = method_of(Subject(name).config(), M)
    backbone, replaced, own, alone = (
        differing(each) for each in (plain, method(name, "static", rho=1.0), *2 * [method(name, "static", rho=0.0)])
    )
    received = shared(plain)
    part = own.learner.merged
    others = {n: value for n, value in received.items() if n != part}
    sums = [cohort.train(cohort.everyone, received, 2, sums=True).sums for cohort in (backbone, replaced)]
    own.train(own.everyone, received, 2)
    alone.train(alone.everyone, others, 2)
    for n, values in backbone.state.items():
        torch.testing.assert_close(replaced.state[n], values, rtol=0, atol=0, msg=n)
    for n, total in sums[0].items():
        torch.testing.assert_close(sums[1][n].total, total.total, rtol=1e-5, atol=1e-6, msg=n)
    for n, values in alone.state.items():
        torch.testing.assert_close(own.state[n], values, rtol=0, atol=0, msg=n)
    assert not torch.equal(own.state[part], replaced.state[part])


def host_of(run: PreparedRun) -> NodeHost:
    return NodeHost(run.directory.path.resolve(), run.nodes, 1, resident=True)


def test_the_gate_sees_no_target_and_nothing_else_sees_its_items(tmp_path: Path) -> None:
    """Splits that differ in nothing but validation and test items end alike; held-out items are trained by Θ alone."""
    config = config_of("fedem", merge={"gate_data": "heldout", "hold_out": 3}, run={"rounds": 3}, model={"dim": 4})
    one = prepare(tmp_path / "one", config)
    split, rng = one.split, np.random.default_rng(0)
    met = [set(split.train_items[a:b]) for a, b in itertools.pairwise(split.train_offsets)]
    other = [rng.permutation([item for item in range(split.items) if item not in known])[:2] for known in met]
    validation, test = np.array(other).T
    swapped = replace(split, validation=validation, test=test)
    assert (swapped.test != split.test).mean() > 0.8
    two = PreparedRun.create(RunDirectory(tmp_path / "two").create(), config, swapped)
    ended = [done(run, carry_out_rounds(run, lambda _: None)) for run in (one, two)]
    assert largest_difference(ended[0].server, ended[1].server) == 0
    assert largest_difference(ended[0].nodes, ended[1].nodes) == 0
    host = host_of(one)
    cohort = host.method.training_cohort(host.side(0, 0))
    gate, rest = cohort.merging.gate, cohort.data
    assert gate is not None and int(gate.counts().min()) == 3
    for user, known in enumerate(met):
        held, left = (
            set(x.positive_items[x.positive_offsets[user] : x.positive_offsets[user + 1]].tolist())
            for x in (gate, rest)
        )
        assert held | left == known and not held & left
        assert set(split.train_items[split.train_offsets[user + 1] - 3 : split.train_offsets[user + 1]]) == held
    samples = draw_samples(gate, cohort.everyone, 4, Draws(0), 1)
    drawn = samples.touched[samples.sign < 0].view(split.users, 3)
    assert [set(row) for row in drawn.tolist()] == [
        set(split.train_items[end - 3 : end].tolist()) for end in split.train_offsets[1:]
    ]
    for user, known in enumerate(met):
        negatives = {*samples.touched[user, : samples.touched_count[user]].tolist()} - {*drawn[user].tolist()}
        assert negatives and not known & negatives, "no item of a user's own is a negative"


@pytest.mark.parametrize(
    ("name", "merge", "words"),
    [
        ("colr", {"mode": "elastic"}, "are not sent 'factor'"),
        ("fedials", {"mode": "static"}, 'set merge.mode = "replace"'),
        ("fedmf-elastic", {"mode": "elastic"}, "[group_tables]"),
        ("fedials-elastic", {"mode": "scalar"}, "[group_tables]"),
        ("fedmf", {"mode": "none"}, "local-only"),
        ("fedmf", {"mode": "elastic", "part": "table"}, "item tables that go up are items"),
    ],
)
def test_what_cannot_merge_is_refused_in_one_line(name: str, merge: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as refusal:
        method_of(Subject(name).config(merge=merge), M)
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


def test_sharpness_does_not_go_through_the_merge_in_every_batch() -> None:
    def made(schedule: str) -> Method:
        merge = {"mode": "elastic", "schedule": schedule}
        return method_of(Subject("fedncf").config(merge=merge, gradients={"sharpness": 0.1}), M)

    assert made("paper").sharpness("items") == 0.1
    with pytest.raises(InputError, match="sharpness-aware"):
        made("released")


def test_of_several_tables_one_is_merged() -> None:
    name = "conformance.biased:Biased"
    assert method(name, "elastic").merged == "items" and method(name, "elastic", part="bias").merged == "bias"
    parts = method(name, "elastic", part="bias").parts()
    assert parts["bias"].kept and not parts["items"].kept and parts[ADAPTER].private
    assert method(name, "elastic", part="bias").merge.adapter.dim == 1
    (update,) = method(name, "elastic").updates(1)
    assert update.rates.keys() == {"user", "items", "bias"}, "the adapter takes its steps alone"
