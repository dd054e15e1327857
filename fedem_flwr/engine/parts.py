"""The parts of a model: named tensors, each with an axis, a width, a home, and what of it goes up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from fedem_flwr.models.mlp import Mlp
from fedem_flwr.models.rows import Rows
from fedem_flwr.randomness import keyed_normal

Axis = Literal["user", "item", "model"]
Up = Literal["none", "sum", "each"]
Mean = Literal["rows", "distance", "samples", "users"]
State = dict[str, Tensor]  # a cohort's private state, or a server's: tensors by the name of their part


@dataclass(frozen=True)
class Part:
    """One named tensor of a model.

    Attributes:
        axis: `user` one vector a user, (k, width); `item` rows of a table, (k, t, width) of (m, width); `model` flat
            weights, (k, width).
        width: numbers of a vector, of a row, or of all weights.
        private: it never leaves the node. Else it is sent down.
        up: what clients upload of it: nothing, a cohort's sum, or each user's own.
        mean: what a sum is made of and divided by. `rows`: each row over the clients that trained it; `distance`: the
            same, each client weighted by how far, in l1, it has moved the row; `samples`: whole tensors, weighted by
            the clients' samples (the p_v of FedAvg); `users`: whole tensors, all alike.
        kept: whether a client keeps its own copy between rounds. Private parts always are.
        touched: of a kept item part, whether that copy is only of the rows that its last round trained; every other row
            is the one that it received (see `engine.touched`), or the initial one.
        group: of a private part, whether it is one for all users of a node together, (1, ...) in its state. The engine
            scores with it, and leaves its training to a task of the method's own.
        std: standard deviation of the initial values, N(0, std²), keyed by the seed and the part's name.
        start: the initial values themselves, made from the seed: (width,), or (m, width) of an item part.
        change: whether the sum that goes up is one of changes since the round began, and not of values: what nobody
            changed is then exactly 0.
    """

    axis: Axis
    width: int
    private: bool = False
    up: Up = "none"
    mean: Mean = "rows"
    kept: bool = False
    touched: bool = False
    group: bool = False
    std: float = 1.0
    start: Callable[[int], Tensor] | None = None
    change: bool = False

    def __post_init__(self) -> None:
        if self.private and self.up != "none":
            raise ValueError("a private part does not go up")
        if self.up == "each" and not self.kept:
            raise ValueError("what goes up of each user is what the client keeps: give it kept = True")
        if self.touched and not (self.kept and self.axis == "item"):
            raise ValueError("only of an item part that clients keep there are rows that they have touched")
        if self.change and self.up != "sum":
            raise ValueError("only a sum can be one of changes")
        if self.group and not self.private:
            raise ValueError("what is one for a node's users is private")
        if self.by_row and self.axis != "item" and self.up == "sum":
            raise ValueError("only an item part has rows to average: choose mean = samples or users")

    @property
    def stays(self) -> bool:
        """Whether it is part of a client's state."""
        return self.private or self.kept

    @property
    def by_row(self) -> bool:
        """Whether a sum has a divisor for each row, and holds trained rows only."""
        return self.mean in ("rows", "distance")

    @property
    def own(self) -> bool:
        """Whether each user has a value of its own in that state."""
        return self.stays and not self.group

    def initial(self, name: str, items: int, seed: int) -> Tensor:
        """The values that everybody starts from: (width,), or (m, width) of an item part."""
        if self.start is not None:
            return self.start(seed)
        column = torch.arange(self.width)
        if self.axis == "item":
            return keyed_normal(seed, f"init/{name}", torch.arange(items)[:, None], column) * self.std
        return keyed_normal(seed, f"init/{name}", column) * self.std


Parts = Mapping[str, Part]


def weights_of(network: Mlp, name: str, *, private: bool = False, up: Up = "none", mean: Mean = "samples") -> Part:
    """All weights of a network, with initial values that are drawn under its name."""
    start = partial(network.initial, name=name)
    return Part("model", network.size, private=private, up=up, mean=mean, start=start)


def initial_state(parts: Parts, k: int, items: int, seed: int, device: torch.device) -> State:
    """What k users start from, before they have received anything: (k, ...) of every part that stays with them.

    Of a part of which they keep touched rows only, there are none.
    """
    found = {
        name: part.initial(name, items, seed).to(device)
        for name, part in parts.items()
        if part.stays and not part.touched
    }
    each = {name: 1 if parts[name].group else k for name in found}
    state = {name: start.expand(each[name], *start.shape).clone() for name, start in found.items()}
    for name, part in parts.items():
        state |= Rows.none(k, part.width).to(device).named(name) if part.touched else {}
    return state


def floats_of_a_row(parts: Parts) -> int:
    """Numbers of one item's rows in all item parts together."""
    return sum(part.width for part in parts.values() if part.axis == "item")
