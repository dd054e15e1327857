"""What the engine needs to know of a method to train a cohort with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from fedem_flwr.engine.block import Block
from fedem_flwr.engine.contribution import Stage
from fedem_flwr.engine.epochs import LocalSettings, Step
from fedem_flwr.engine.gradients import Differentiable
from fedem_flwr.engine.merge import Merge
from fedem_flwr.engine.parts import Parts


@dataclass(frozen=True)
class Products:
    """What a batch does of a method that scores z = p · q and minimises the cross-entropy, for a compiled back end.

    Attributes:
        user, items: names of the parts that hold p and q.
        optimiser: of both. lr_user, lr_item: its rates.
        ridge: γ, by which γ (‖p‖² + the mean of ‖q‖² over the batch's samples) is added.
    """

    user: str
    items: str
    optimiser: Literal["adam", "sgd", "frequency-sgd"]
    lr_user: float
    lr_item: float
    ridge: float = 0.0


@dataclass(frozen=True)
class Layers:
    """The same of a method that scores with a network over item rows, one output, ReLU between its layers.

    How its parts move the method's `updates` say.

    Attributes:
        weights: the part that holds the network's weights, flat as in `models.mlp`; of the axis `user` it is a vector,
            which is one linear layer without a bias.
        items: one or two item parts of one width, whose rows are added up: what the network sees.
        user: the part that holds the vector which it sees in front of them; empty: none.
        hidden: widths of its hidden layers.
        apart, sparse: λ, μ, where there are two tables D and C: −λ (D − C)² + μ |C| is added to the loss, a mean over
            the width and over the batch's samples.
        base, basis: an item part (m, d) and a model part B (r, d): rows a (r,) of the one item part are then seen as
            base + a B. Neither of the two moves.
        ridge: γ, by which γ (‖weights‖² + the mean of ‖row seen‖² over the batch's samples) is added.
    """

    weights: str
    items: tuple[str, ...]
    user: str = ""
    hidden: tuple[int, ...] = ()
    apart: float = 0.0
    sparse: float = 0.0
    base: str = ""
    basis: str = ""
    ridge: float = 0.0


class Learner(Differentiable, Protocol):
    """A method, as the engine sees it.

    Attributes:
        seed: of every draw.
        local: epochs, batches, negatives.
        merge: how the part `merged` of a client and what it downloaded of it become one.
        merged: the item part of which clients keep a copy that is merged; empty: none.
        engine: the back end that was asked for: `auto`, `fused`, `triton`, `torch` or `reference`.
    """

    seed: int
    local: LocalSettings
    engine: str

    @property
    def merge(self) -> Merge:
        """See above."""

    @property
    def merged(self) -> str:
        """See above."""

    @property
    def floats_of_a_score(self) -> int:
        """Numbers that `score` holds of each user and item beside their rows."""

    def parts(self) -> Parts:
        """The parts by name; user and model parts first where order matters to a reader."""

    def stages(self) -> Sequence[Stage]:
        """What happens to each user's contribution before it is added to others."""

    def products(self, round_: int) -> Products | Layers | None:
        """What it does in a round, where that can be said so; else None."""

    def step(self, block: Block, round_: int) -> Step:
        """What takes a block's batches."""

    def adapter_step(self, block: Block) -> Step:
        """What trains the adapter through merged rows (Eq. 11)."""
