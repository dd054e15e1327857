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


class Learner(Differentiable, Protocol):
    """A method, as the engine sees it.

    Attributes:
        seed: of every draw.
        local: epochs, batches, negatives.
        merge: how the part `merged` of a client and what it downloaded of it become one.
        merged: the item part of which clients keep a copy that is merged; empty: none.
        engine: the back end that was asked for: `auto`, `fused`, `torch` or `reference`.
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

    def products(self, round_: int) -> Products | None:
        """What it does in a round, where that can be said so; else None."""

    def step(self, block: Block, round_: int) -> Step:
        """What takes a block's batches."""

    def adapter_step(self, block: Block) -> Step:
        """What trains the adapter through merged rows (Eq. 11)."""
