"""Centralised controls: each against a naive twin, known answers, and that nobody takes them for a federation."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from control_worlds import checkerboard
from crashes import resumed_after
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid
from worlds import carry_out, carry_out_watched, config_of, figures, largest_difference

from fedem_flwr.contract.central import Central, positives
from fedem_flwr.contract.finding import method_of
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.samples import TrainingItems
from fedem_flwr.errors import InputError
from fedem_flwr.experiment.controls import central, controls_of
from fedem_flwr.experiment.finish import finish
from fedem_flwr.nodes.slices import slice_histories
from fedem_flwr.randomness import keyed_permutation
from fedem_flwr.report.tables import result_rows, result_table
from fedem_flwr.serving.recommender import Recommender

NAMES = ["mf-central", "mlp-central", "neumf-central", "lightgcn-central"]
CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "model": {"dim": 4, "init_std": 0.3},
    "local": {"batch_size": 37, "negatives": 3, "lr_user": 0.05, "lr_item": 0.02, "ridge": 0.01},
    "run": {"rounds": 3},
}


def small(name: str, **sections: Any) -> Central:
    options = {"name": name, "options": {"hidden": [6, 3]}} if name[0] in "mn" and name[1] != "f" else {"name": name}
    method = method_of(config_of(name, **{**SMALL, "method": options, **sections}), 60)
    assert isinstance(method, Central)
    return method


def data_of(users: int = 8) -> TrainingItems:
    return slice_histories(checkerboard(), np.arange(users), CPU)


Values = dict[str, Tensor]


def mf(v: Values, u: Tensor, i: Tensor) -> Tensor:
    return (v["user"][u] * v["items"][i]).sum()


def layers(theta: Tensor, x: Tensor, widths: list[int], last: bool) -> tuple[Tensor, int]:
    at = 0
    for layer, (n_in, n_out) in enumerate(pairwise(widths)):
        weight, bias = theta[at : at + n_in * n_out].view(n_out, n_in), theta[at + n_in * n_out :][:n_out]
        x, at = weight @ x + bias, at + (n_in + 1) * n_out
        x = x if last and layer == len(widths) - 2 else torch.relu(x)
    return x, at


def mlp(v: Values, u: Tensor, i: Tensor) -> Tensor:
    return layers(v["network"], torch.cat([v["user-wide"][u], v["items-wide"][i]]), [8, 6, 3, 1], last=True)[0].sum()


def neumf(v: Values, u: Tensor, i: Tensor) -> Tensor:
    hidden, at = layers(v["network"], torch.cat([v["user-wide"][u], v["items-wide"][i]]), [8, 6, 3], last=False)
    weight, bias = v["network"][at:-1], v["network"][-1]
    return weight @ torch.cat([v["user"][u] * v["items"][i], hidden]) + bias


TWINS: dict[str, Callable[[Values, Tensor, Tensor], Tensor]] = dict(zip(NAMES, [mf, mlp, neumf, mf], strict=True))


def smoothed(v: Values, data: TrainingItems, depth: int) -> Values:
    """LightGCN's mean of layers with one dense matrix over users and items."""
    k, m = len(data.users), data.items
    graph = torch.zeros(k + m, k + m)
    for user in range(k):
        for item in data.positive_items[data.positive_offsets[user] : data.positive_offsets[user + 1]].tolist():
            graph[user, k + item] = graph[k + item, user] = 1
    degree = graph.sum(1).clamp(min=1)
    graph = graph / torch.sqrt(degree[:, None] * degree[None, :])
    layer = torch.cat([v["user"], v["items"]])
    total = layer
    for _ in range(depth):
        layer = graph @ layer
        total = total + layer
    return {"user": total[:k] / (depth + 1), "items": total[k:] / (depth + 1)}


def naive_epoch(method: Central, data: TrainingItems, values: Values, name: str) -> Values:
    """An epoch, a sample at a time, with torch's own Adam and automatic differentiation through everything."""
    leaves = {n: x.clone().requires_grad_() for n, x in values.items()}
    groups = [{"params": [x], "lr": 0.05 if n.startswith("user") else 0.02} for n, x in leaves.items()]
    adam = torch.optim.Adam(groups)
    owner, items = positives(data, 3, Draws(method.seed), 1)
    order = keyed_permutation(len(owner), method.seed, "central/shuffle", 1)
    for batch in order.split(37):
        seen = smoothed(leaves, data, 3) if name.startswith("light") else leaves
        loss, ridge = torch.zeros(()), torch.zeros(())
        for at in batch:
            z = torch.stack([TWINS[name](seen, owner[at], item) for item in items[at]])
            if name.startswith("light"):
                loss = loss - logsigmoid(z[0] - z[1:]).mean()
            else:
                loss = loss + binary_cross_entropy_with_logits(z, torch.tensor([1.0, 0, 0, 0]))
            for n, x in leaves.items():
                if n.startswith("user"):
                    ridge = ridge + x[owner[at]].square().sum()
                elif n.startswith("items"):
                    ridge = ridge + x[items[at]].square().sum() / 4
        adam.zero_grad()
        ((loss + 0.01 * ridge) / len(batch)).backward()
        adam.step()
    return {n: x.detach() for n, x in leaves.items()}


@pytest.mark.parametrize("name", NAMES)
def test_an_epoch_is_that_of_its_naive_twin(name: str) -> None:
    method, data = small(name), data_of()
    state = method.initial_state(len(data.users), CPU)
    before = {n: x.clone() for n, x in method.values(state).items()}
    samples, loss = method.epoch(data, state, Draws(method.seed), 1)
    expected, found = naive_epoch(method, data, before, name), method.values(state)
    assert samples == 4 * int(data.counts().sum()) and loss > 0
    for part, value in found.items():
        assert float((value - before[part]).abs().max()) > 1e-3, f"'{part}' is not trained"
        torch.testing.assert_close(value, expected[part], rtol=1e-3, atol=2e-4, msg=part)
    scored = method.scoring(data, state).scores(torch.arange(len(data.users)), "test")[0]
    seen = smoothed(expected, data, 3) if name.startswith("light") else expected
    for user, item in ((0, 0), (3, 41), (7, 59)):
        twin = TWINS[name](seen, torch.tensor(user), torch.tensor(item))
        assert float(scored[user, item]) == pytest.approx(float(twin), abs=2e-3)


def test_sparse_propagation_is_dense_propagation_and_its_own_transpose() -> None:
    method, data = small("lightgcn-central"), data_of(20)
    values = {"user": torch.randn(20, 4), "items": torch.randn(60, 4)}
    found, expected = method.represented(values, data), smoothed(values, data, 3)
    for name in values:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)
    other = {"user": torch.randn(20, 4), "items": torch.randn(60, 4)}
    there = sum(float((found[n] * other[n]).sum()) for n in values)
    back = method.represented(other, data)
    assert there == pytest.approx(sum(float((values[n] * back[n]).sum()) for n in values), rel=1e-4)


def test_every_positive_is_there_once_with_negatives_that_are_none() -> None:
    data = data_of(30)
    owner, items = positives(data, 3, Draws(0), 1)
    pairs = sorted(zip(owner.tolist(), items[:, 0].tolist(), strict=True))
    rows = [
        data.positive_items[a:b].tolist()
        for a, b in zip(data.positive_offsets, data.positive_offsets[1:], strict=False)
    ]
    assert pairs == sorted((user, item) for user, row in enumerate(rows) for item in row)
    assert all(
        item not in rows[user] for user, row in zip(owner.tolist(), items.tolist(), strict=True) for item in row[1:]
    )
    assert not torch.equal(items, positives(data, 3, Draws(0), 2)[1]), "fresh ones in each epoch"


@pytest.mark.parametrize("name", NAMES)
def test_two_tastes_are_found(name: str) -> None:
    config = config_of(
        name, model={"dim": 8}, local={"lr_user": 0.05, "lr_item": 0.05, "batch_size": 64}, run={"rounds": 15}
    )
    found = central(checkerboard(), config, lambda _: None)
    assert found["sampled99"]["hr@10"] > 0.3 and found["centralised"], "60 items, 46 unseen, 16 of one's own taste: .6"


def test_a_run_and_the_control_on_request_are_the_same_and_nothing_crosses(tmp_path: Path) -> None:
    rounds = {"run": {"rounds": 40}}  # the preset's, as the control has
    done, grid = carry_out_watched(tmp_path / "run", config_of("mf-central", local={"epochs": 10}, **rounds))
    assert done.outcome.failures == [] and all(not c.arrays for c in grid.up if c.kind == "train")
    assert all(line["bytes_up"] == 0 for line in done.lines)
    finish(done.run, done.outcome, lambda _: None)
    summary, page = done.run.directory.read_summary(), (done.run.directory.path / "report.html").read_text()
    assert summary["centralised"] and "mf-central (centralised)" in page
    assert any("not federated" in warning for warning in summary["warnings"])
    assert all("(centralised)" in row.label for row in result_rows(summary) if not row.is_control)
    assert "(centralised)" in str(result_table(summary).title)
    beside = config_of("fedmf", evaluation={"trained": ["mf-central"], "cache_dir": str(tmp_path), "local_only": False})
    steps: list[int] = []
    controls = controls_of(done.run.split, beside, steps.append)
    assert steps == list(range(1, 41))
    best = summary["metrics"]["best_validation"]
    assert controls["mf-central"]["round"] == best["round"] and controls["mf-central"]["ndcg@10"] == best["ndcg@10"]
    assert controls_of(done.run.split, beside, steps.append) == controls and len(steps) == 40, "remembered"
    labels = [row.label for row in result_rows({**summary, "controls": controls})]
    assert "mf-central (centralised)" in labels
    items = Recommender.load(done.run.directory.path).recommend_user(done.run.split.user_ids[0], top=3)
    assert len(items) == 3


@pytest.mark.parametrize("name", ["neumf-central", "lightgcn-central"])
def test_killed_and_resumed_is_as_uninterrupted(name: str, tmp_path: Path) -> None:
    config = config_of(name, run={"rounds": 4, "checkpoint_every": 2})
    whole, again = carry_out(tmp_path / "whole", config), resumed_after(tmp_path / "again", config, 3)
    assert largest_difference(whole.nodes, again.nodes) == 0
    assert list(map(figures, whole.lines)) == list(map(figures, again.lines))


@pytest.mark.parametrize(
    ("sections", "word"),
    [
        ({"run": {"users_per_node": 3}}, "all data are in one place"),
        ({"run": {"runtime": "ray"}}, "all data are in one place"),
        ({"run": {"participants": 0.5}}, "no participants"),
        ({"merge": {"mode": "elastic"}}, "centralised"),
        ({"ldp": {"clip": 1.0}}, "centralised|nothing goes up"),
        ({"local": {"negatives": 0}}, "set 1 or more"),
    ],
)
def test_what_belongs_to_a_federation_is_refused(sections: Any, word: str) -> None:
    with pytest.raises(InputError, match=word):
        method_of(config_of("mf-central", **sections), 30)


@pytest.mark.parametrize("name", ["somebody:Class", "../x", ""])
def test_a_control_is_named_and_never_imported(name: str) -> None:
    with pytest.raises(InputError, match=r"evaluation\.trained"):
        config_of("fedmf", evaluation={"trained": [name]})
