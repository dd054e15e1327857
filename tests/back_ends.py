"""One round of a tiny world by the compiled back end and by the reference: one client at a time, autograd."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from fedem_flwr.contract import Method, State
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.downloads import Downloads
from fedem_flwr.engine.samples import TrainingItems

M, D = 90, 5
POSITIVES = (3, 0, 21, 9, 9, 14, 1)  # with 3 negatives each and batches of 20: up to 5 batches, tiles that are not full
K = len(POSITIVES)
NEAR = 2e-5  # float32 whose operations come in another order, and an Adam that divides by small numbers
ROW, SHARE, FAR = 1e-4, 0.98, 0.01  # through an adapter: nearly all rows are so near, the others not far


def world(seed: int = 0, positives: tuple[int, ...] = POSITIVES) -> TrainingItems:
    """Users of whom one has nothing and one an item twice."""
    g = torch.Generator().manual_seed(seed)
    lists = [torch.randperm(M, generator=g)[:p].sort().values for p in positives]
    lists[3][1] = lists[3][0]
    forbidden = [x.unique() for x in lists]
    offsets, ends = (torch.tensor([0, *itertools.accumulate(map(len, x))]) for x in (lists, forbidden))
    return TrainingItems(
        torch.tensor([4, 7, 1, 12, 30, 31, 5]), M, offsets, torch.cat(lists), ends, torch.cat(forbidden)
    )


def start(trained: Method) -> State:
    """State as after some rounds: every client has its own values, and padding of Θ is 0."""
    g, found = torch.Generator().manual_seed(1), {}
    for name, part in trained.parts().items():
        if part.stays:
            shape = (K, M, part.width) if part.axis == "item" else (K, part.width)
            found[name] = 0.4 * torch.randn(shape, generator=g)
    if "adapter" in found:
        found["adapter"][:, trained.merge.adapter.mlp.size :] = 0
    return found


def trained(engine: str, one: Method, data: TrainingItems, got: Downloads, gate: TrainingItems | None = None) -> Any:
    """State, losses, sums, and why not compiled, of a round of all who have samples, or by torch of everybody."""
    one.engine = engine
    cohort = Cohort(data, start(one), one, gate)
    who = torch.arange(K) if engine == "torch" else data.counts().nonzero().squeeze(1)
    result = cohort.train(who, got, 3, sums=any(part.up == "sum" for part in one.parts().values()))
    return cohort.state, result.loss, result.sums, result.uncompiled


def same(
    one: Method, data: TrainingItems, got: Downloads, gate: TrainingItems | None = None, engine: str = "auto"
) -> None:
    state, loss, sums, why = trained(engine, one, data, got, gate)
    expected = trained("reference", one, data, got, gate)
    assert why == "" and expected[3] == "run.engine = 'reference'"
    for name, values in expected[0].items():
        gap = (state[name] - values).abs().amax(-1)  # of rows: where a gradient is nearly 0, its sign is all Adam sees
        limit = ROW if one.merge.learned else NEAR
        assert float((gap <= limit).float().mean()) >= SHARE and float(gap.max()) <= FAR, f"'{name}': {gap}"
    torch.testing.assert_close(loss, expected[1], rtol=0, atol=NEAR)
    for name, total in expected[2].items():
        torch.testing.assert_close(sums[name].total, total.total, rtol=1e-6, atol=10 * NEAR)
        assert torch.equal(sums[name].weight, total.weight)


def independent(one: Method, data: TrainingItems, got: Downloads, threads: int, others: int | None = None) -> None:
    """A client's result is the same to the bit, whoever else is in its cohort; nobody else's state moves.

    Args:
        threads: on which all train together. others: on which some do; default: on as many.
    """
    torch.set_num_threads(threads)
    together = Cohort(data, start(one), one)
    together.train(torch.arange(K), got, 3)
    torch.set_num_threads(others or threads)
    for order in ([5], [6, 2], [4, 3, 2, 0]):
        some = Cohort(data, start(one), one)
        some.train(torch.tensor(order), got, 3)
        for name, values in some.state.items():
            assert torch.equal(values[order], together.state[name][order]), name
            rest = [u for u in range(K) if u not in order]
            assert torch.equal(values[rest], start(one)[name][rest])
