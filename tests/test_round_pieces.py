"""The pieces of a round that `benchmarks.round_pieces` measures."""

from __future__ import annotations

import pytest
import torch

from benchmarks.round_pieces import INTEGERS, OTHERS, OUTSIDE, Clocked, calls_of, operations
from fedem_flwr.config import resolve


def test_operations_are_counted_by_hand() -> None:
    """(4, 8) by (8, 5); backward twice as many."""
    a, b = (torch.ones(shape, requires_grad=True) for shape in ((4, 8), (8, 5)))

    def call() -> None:
        torch.autograd.grad((a @ b).sum(), (a, b))

    _, kinds = operations(call, 1)
    taken, gflop, size = kinds["matrix products"]
    assert taken > 0 and gflop * 1e9 == pytest.approx(3 * 2 * 4 * 8 * 5) and OUTSIDE in kinds
    assert size * 1e9 == pytest.approx(4 * 3 * (4 * 8 + 8 * 5 + 4 * 5))
    with Clocked() as clocked:
        torch.arange(3) * 2
        torch.ones(3) * 2
    assert clocked.seconds.keys() == {INTEGERS, OTHERS}


def test_rounds_that_are_taken_apart_are_those_of_the_methods() -> None:
    for name, several in (("fedials", 2), ("fedials-order", 1)):
        config = resolve({}, {"method": {"name": name}, "model": {"dim": 8}, "data": {"dataset": "synthetic"}})
        calls = calls_of(config)
        assert len(calls) == several
        for call in calls.values():
            _, kinds = operations(call, 1)
            assert kinds["matrix products"][1] > 0
