"""The same method without a federation, the control that it has to beat: every part stays with its client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from fedem_flwr.contract.method import Method
from fedem_flwr.engine.block import Batch, Block
from fedem_flwr.engine.contribution import Stage
from fedem_flwr.engine.epochs import Step
from fedem_flwr.engine.gradients import Gradients
from fedem_flwr.engine.learner import Layers, Products
from fedem_flwr.engine.merge import REPLACE, Merge
from fedem_flwr.engine.optimizer import Update
from fedem_flwr.engine.parts import Part


class Alone:
    """A method as `engine.learner.Learner`, of which nothing is shared.

    Args:
        method: trained alone with its own settings.
    """

    def __init__(self, method: Method) -> None:
        self.method, self.seed, self.local, self.engine = method, method.seed, method.local, method.engine

    def parts(self) -> Mapping[str, Part]:
        """All private."""
        return {
            name: replace(part, private=True, up="none", touched=False, change=False)
            for name, part in self.method.parts().items()
        }

    @property
    def merge(self) -> Merge:
        """Nothing is received."""
        return REPLACE

    @property
    def merged(self) -> str:
        """Nothing."""
        return ""

    @property
    def floats_of_a_score(self) -> int:
        """The method's."""
        return self.method.floats_of_a_score

    def score(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The method's."""
        return self.method.score(parts)

    def loss(self, logits: Tensor, sign: Tensor, valid: Tensor) -> Tensor:
        """The method's."""
        return self.method.loss(logits, sign, valid)

    def penalty(self, parts: Mapping[str, Tensor], valid: Tensor, round_: int) -> Tensor | None:
        """The method's."""
        return self.method.penalty(parts, valid, round_)

    def gradients(self, batch: Batch, names: Sequence[str]) -> tuple[Tensor, Gradients]:
        """The method's."""
        return self.method.gradients(batch, names)

    def updates(self, round_: int) -> Sequence[Update]:
        """The method's."""
        return self.method.updates(round_)

    def sharpness(self, name: str) -> float:
        """The method's."""
        return self.method.sharpness(name)

    def clipped(self, name: str) -> float:
        """The method's."""
        return self.method.clipped(name)

    def perturbed(self, names: Sequence[str]) -> Sequence[Sequence[str]]:
        """The method's."""
        return self.method.perturbed(names)

    def products(self, round_: int) -> Products | Layers | None:
        """The method's."""
        return self.method.products(round_)

    def step(self, block: Block, round_: int) -> Step:
        """The method's."""
        return self.method.step(block, round_)

    def adapter_step(self, block: Block) -> Step:
        """The method's."""
        return self.method.adapter_step(block)

    def stages(self) -> Sequence[Stage]:
        """Nothing goes up."""
        return ()
