"""Samples of all clients at once, as a GPU's kernels take them, against those of a block of clients."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from back_ends import K, M, world
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedem_flwr.engine.decoys import with_decoys
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.gpu.draws import Drawn, Sizes, draw_all, shuffle_all
from fedem_flwr.engine.samples import TrainingItems, draw_samples, shuffled_rows

WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "unique_consecutive",
    "_unique2",
    "item",
    "repeat_interleave",
}


def crowded(data: TrainingItems) -> TrainingItems:
    """Users who have met nearly everything, so that negatives repeat; one has met it all."""
    met = torch.arange(M)[torch.arange(M) % 45 != 0]
    lists = [torch.arange(M) if user == 2 else met for user in range(K)]
    return replace(
        data,
        forbidden_offsets=torch.tensor([0, *itertools.accumulate(map(len, lists))]),
        forbidden_items=torch.cat(lists),
    )


def flat(data: TrainingItems, who: Tensor, negatives: int, draws: Draws, round_: int) -> tuple[Drawn, Sizes]:
    sizes = Sizes.of(data.sizes(negatives)[who], data.counts()[who], data.items)
    return draw_all(data, who, sizes, negatives, draws, round_), sizes


@settings(max_examples=15, deadline=None)
@given(
    negatives=st.integers(0, 5),
    round_=st.integers(1, 10**6),
    seed=st.integers(0, 10**6),
    who=st.permutations(range(K)),
    some=st.integers(1, K),
    batch=st.sampled_from([0, 1, 7, 20, 1000]),
    kind=st.sampled_from(["plain", "crowded", "secret"]),
)
def test_they_are_the_same_to_the_bit(
    negatives: int, round_: int, seed: int, who: list[int], some: int, batch: int, kind: str
) -> None:
    data = world(seed)
    data = {"plain": data, "crowded": crowded(data), "secret": with_decoys(data, bytes(range(16)), 1.5)}[kind]
    draws, chosen = Draws(seed, data.secret), torch.tensor(who[:some])
    drawn, sizes = flat(data, chosen, negatives, draws, round_)
    if not sizes.samples:
        assert int(drawn.counts.sum()) == 0
        return
    expected = draw_samples(data, chosen, negatives, draws, round_)
    users, epochs = data.users[chosen], range(2, 4)
    args = users, batch, sizes.longest, epochs, draws, round_
    plain, ordered = (shuffle_all(drawn, *args, ordered=ordered) for ordered in (False, True))
    assert torch.equal(drawn.counts.long(), expected.touched_count)
    shuffled = [shuffled_rows(expected, users, draws, round_, epoch) for epoch in epochs]
    for at in range(some):
        count, size = int(expected.touched_count[at]), int(expected.size[at])
        rows, own = slice(int(drawn.places[at]), int(drawn.places[at]) + count), slice(*drawn.offsets[at : at + 2])
        assert torch.equal(drawn.touched[rows], expected.touched[at, :count])
        assert torch.equal(drawn.sign[rows], expected.sign[at, :count])
        assert torch.equal(drawn.row[own].long(), expected.row[at, :size])
        width = batch or max(1, size)
        for number in range(len(epochs)):
            order = shuffled[number][at, :size]
            order = order if batch and size > batch else expected.row[at, :size]  # in one batch they stay as they are
            assert torch.equal(plain.row[number, own].long(), order)
            row, weight = ordered.row[number, own].long(), ordered.weight[number, own]
            for start in range(0, size, width):
                part = slice(start, start + width)
                there = row[part][weight[part] > 0]
                assert len(there.unique()) == len(there), "a row of a batch counts once"
                counted = dict(zip(there.tolist(), weight[part][weight[part] > 0].tolist(), strict=True))
                assert counted == Counter(order[part].tolist())


class Seen(TorchDispatchMode):
    """Counts operations by which a host would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(x is not None and x.dtype == torch.bool for x in args[1])
        if by_mask or (name in WAITING and not (kwargs or {}).get("output_size")):
            self.waits[name] += 1
        return func(*args, **(kwargs or {}))


def test_nothing_of_them_waits_for_the_device() -> None:
    """No size, and no choice, hangs on what is drawn."""
    data = with_decoys(world(), b"", 1.5)
    who = torch.arange(K)
    sizes = Sizes.of(data.sizes(3)[who], data.counts()[who], data.items)
    with Seen() as seen:
        drawn = draw_all(data, who, sizes, 3, Draws(1), 2)
        shuffle_all(drawn, data.users, 20, sizes.longest, range(2), Draws(1), 2, ordered=True)
    assert not seen.waits
    with Seen() as seen:  # it sees what does
        data.users[data.users > 3], bool(data.users[0] > 3), data.users.nonzero()
    assert {"index", "_local_scalar_dense", "nonzero"} <= set(seen.waits)
