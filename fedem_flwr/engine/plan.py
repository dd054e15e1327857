"""What a batch of a method with a network does to each of its parts, in the words of compiled functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedem_flwr.engine.optimizer import Pull, Update

if TYPE_CHECKING:
    from fedem_flwr.engine.learner import Layers, Learner

_KNOWN = ("adam", "sgd", "frequency-sgd")


@dataclass(frozen=True)
class Move:
    """How a part moves.

    Attributes:
        update: the place, among the updates of a batch, of the one that moves it; −1: nothing does.
        adam: else by plain gradient steps, where `often` of a row's own frequency.
        rate, fading: as in `engine.optimizer.Update`.
        pull, to: of its pull, as in `engine.optimizer.Pull`.
    """

    update: int = -1
    adam: bool = False
    often: bool = False
    rate: float = 0.0
    fading: float = 1.0
    pull: float = 0.0
    to: str = ""


@dataclass(frozen=True)
class Plan:
    """Parts and their moves.

    Attributes:
        layers: what is scored. updates: how many a batch has.
        second: the item part beside the first: one that is added to it, or that it is pulled to, or whose low-rank
            change it is; empty: none.
        moves: of the weights, the user's vector, the first item part, the second.
    """

    layers: Layers
    updates: int
    second: str
    moves: tuple[Move, Move, Move, Move]

    @property
    def first(self) -> str:
        """The item part that is always there."""
        return self.layers.items[0]

    @property
    def added(self) -> bool:
        """Whether the second item part is added to the first, else pulls it."""
        return len(self.layers.items) > 1

    @property
    def vectors(self) -> list[str]:
        """The weights, and the user's vector where there is one."""
        return [self.layers.weights, *([self.layers.user] if self.layers.user else [])]

    @property
    def rows(self) -> list[tuple[str, Move]]:
        """Both item parts, the second's name empty where there is none."""
        return [(self.first, self.moves[2]), (self.second, self.moves[3])]


def plan_of(learner: Learner, layers: Layers, round_: int) -> Plan | None:
    """What the updates of a round do; None where compiled functions do not know it."""
    updates, parts = learner.updates(round_), learner.parts()
    moves = {name: _move(at, update, name) for at, update in enumerate(updates) for name in update.rates}
    first, *others = layers.items
    others += {move.to for move in moves.values() if move.to} | ({layers.base} if layers.base else set())
    pulled = [(name, move) for name, move in moves.items() if move.pull]
    if (
        len(moves) < sum(len(update.rates) for update in updates)
        or not {layers.weights, layers.user, *layers.items}.issuperset(moves)
        or any(update.kind(name) not in _KNOWN for update in updates for name in update.rates)
        or len(others) > 1
        or any(move.to and (name != first or not parts[name].own) for name, move in pulled)
        or any(parts[name].change or (move.adam and parts[name].axis == "item") for name, move in pulled)
        or (len(layers.items) > 1 and any(moves.get(name, Move()).often for name in layers.items))
    ):
        return None
    names = (layers.weights, layers.user, first, *(others or [""]))
    weights, user, one, other = (moves.get(name, Move()) for name in names)
    return Plan(layers, len(updates), names[3], (weights, user, one, other))


def _move(at: int, update: Update, name: str) -> Move:
    pull = update.pulls.get(name, Pull(0.0))
    kind = update.kind(name)
    way = update.rates[name], update.fading, pull.strength, pull.to
    return Move(at, kind == "adam", kind == "frequency-sgd", *way)
