"""Matrix factorisation, the backbone of FedMF and FedEM: score z = p · q, gradients written out, elastic merging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from fedem_flwr.config import Config
from fedem_flwr.contract.method import Method
from fedem_flwr.engine.block import Batch, Block
from fedem_flwr.engine.epochs import Step
from fedem_flwr.engine.gradients import Gradients
from fedem_flwr.engine.merge import Merge
from fedem_flwr.engine.merged_steps import AdapterStep, MergedStep
from fedem_flwr.engine.optimizer import Update
from fedem_flwr.engine.parts import Mean, Part, Up
from fedem_flwr.errors import InputError
from fedem_flwr.models import mf
from fedem_flwr.models.adapter import Adapter


class Factorisation(Method):
    """Private: p (`user`) and, where merging learns, Θ (`adapter`). Shared: the item table Q (`items`).

    `[merge]` says whether clients keep a table of their own, and how it is merged with the one they receive.

    Attributes:
        UP: what of Q goes up.
    """

    UP: ClassVar[Up] = "sum"

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        if self.merge.in_training and not (self._written_out or type(self).step is not Factorisation.step):
            raise InputError(
                f"{type(self).__name__} has a score, loss or penalty of its own, and training through a merge is "
                'written out for p · q and cross-entropy: set merge.mode = "replace", or override step and adapter_step'
            )

    @property
    def _written_out(self) -> bool:
        """Whether what is written out here is what a subclass trains."""
        own = type(self)
        return (own.score, own.loss, own.penalty) == (Factorisation.score, Method.loss, Method.penalty)

    @property
    def mean(self) -> Mean:
        """What a sum of tables is divided by."""
        return "rows"

    @property
    def keeps_tables(self) -> bool:
        """Whether clients keep a table between rounds."""
        return self.config.merge.mode != "replace"

    def parts(self) -> Mapping[str, Part]:
        """See `Method.parts`."""
        dim, std, learned = self.config.model.dim, self.config.model.init_std, self.merge.learned
        adapter = self.merge.adapter
        theta = {"adapter": Part("model", adapter.parameters, private=True, start=adapter.initial)} if learned else {}
        items = Part("item", dim, up=self.UP, mean=self.mean, kept=self.keeps_tables, std=std)
        return {"user": Part("user", dim, private=True, std=std), **theta, "items": items}

    def score(self, parts: Mapping[str, Tensor]) -> Tensor:
        """See `Method.score`."""
        return mf.scores(parts["user"], parts["items"])

    @property
    def merge(self) -> Merge:
        """From `[merge]`."""
        merge = self.config.merge
        adapter = Adapter(self.config.model.dim, merge.hidden, merge.bias)
        return Merge(merge.mode, merge.rho, adapter, merge.schedule, merge.epochs, merge.lr)

    def updates(self, round_: int) -> Sequence[Update]:
        """Eq. 12 of FedEM: one Adam step on p and Q."""
        return [Update({"user": self.config.local.lr_user, "items": self.config.local.lr_item})]

    def gradients(self, batch: Batch, names: Sequence[str]) -> tuple[Tensor, Gradients]:
        """Written out, where no subclass scores or loses otherwise; see `models.mf.gradients`."""
        if not self._written_out:
            return super().gradients(batch, names)
        parts, sign = batch.block.parts, batch.block.samples.sign
        loss, to_user, to_items = mf.gradients(parts["user"], parts["items"], sign, batch.weight, batch.size)
        return loss, {"user": to_user, "items": to_items}

    @property
    def steps_by_updates(self) -> bool:
        """Also through merged rows, where updates are those that are written out."""
        own = type(self)
        written_out = not self.merge.in_training or own.updates is Factorisation.updates
        return own.step is Factorisation.step and written_out and not self.stages()

    def step(self, block: Block, round_: int) -> Step:
        """Through the merged rows where the block has downloaded ones beside its own."""
        if not block.received:
            return super().step(block, round_)
        return MergedStep(block, self.merge, self.config.local.lr_user, self.config.local.lr_item)

    def adapter_step(self, block: Block) -> Step:
        """Eq. 11."""
        return AdapterStep(block, self.merge)
