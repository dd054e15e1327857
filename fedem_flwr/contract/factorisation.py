"""Matrix factorisation, the backbone of FedMF and FedEM: z = p · q, gradients written out, also through merged rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from fedem_flwr.contract.method import Method
from fedem_flwr.engine.block import Batch, Block
from fedem_flwr.engine.epochs import Step
from fedem_flwr.engine.gradients import Gradients
from fedem_flwr.engine.learner import Products
from fedem_flwr.engine.merged_steps import AdapterStep, MergedStep
from fedem_flwr.engine.optimizer import Update
from fedem_flwr.engine.parts import Mean, Part, Up
from fedem_flwr.models import mf


class Factorisation(Method):
    """Private: p (`user`). Shared: the item table Q (`items`).

    Attributes:
        UP: what of Q goes up.
    """

    UP: ClassVar[Up] = "sum"
    TUNES = (*Method.TUNES, "local.ridge")

    @property
    def _written_out(self) -> bool:
        """Whether what is written out here is what a subclass trains."""
        own = type(self)
        return (own.score, own.loss, own.penalty) == (Factorisation.score, Method.loss, Factorisation.penalty)

    @property
    def _merges_as_written(self) -> bool:
        """Whether what is written out for merged rows is what a subclass trains."""
        as_here = type(self).gradients == Factorisation.gradients and self.merged == "items"
        return self._written_out and as_here and not self.config.local.ridge

    @property
    def mean(self) -> Mean:
        """What a sum of tables is divided by."""
        return "rows"

    def parts(self) -> Mapping[str, Part]:
        """See `Method.parts`. What goes up of each user is what the client keeps."""
        dim, std = self.config.model.dim, self.config.model.init_std
        items = Part("item", dim, up=self.UP, mean=self.mean, kept=self.UP == "each", std=std)
        return {"user": Part("user", dim, private=True, std=std), "items": items}

    def score(self, parts: Mapping[str, Tensor]) -> Tensor:
        """See `Method.score`."""
        return mf.scores(parts["user"], parts["items"])

    def penalty(self, parts: Mapping[str, Tensor], valid: Tensor, round_: int) -> Tensor | None:
        """γ (‖p‖² + the mean of ‖q‖² over the batch's samples)."""
        ridge = self.config.local.ridge
        if not ridge:
            return None
        rows = parts["items"].square().sum(-1) * valid  # (k, b)
        return ridge * (parts["user"].square().sum(-1) + rows.sum(1) / valid.sum(1).clamp(min=1))

    def updates(self, round_: int) -> Sequence[Update]:
        """Eq. 12 of FedEM: one step on p and Q, by Adam where `local.optimiser` says nothing else."""
        local = self.config.local
        return [Update({"user": local.lr_user, "items": local.lr_item}, local.optimiser)]

    def gradients(self, batch: Batch, names: Sequence[str]) -> tuple[Tensor, Gradients]:
        """Written out, where no subclass scores or loses otherwise; see `models.mf.gradients`."""
        if not self._written_out:
            return super().gradients(batch, names)
        parts, sign = batch.block.parts, batch.block.samples.sign
        loss, to_user, to_items = mf.gradients(parts["user"], parts["items"], sign, batch.weight, batch.size)
        if ridge := self.config.local.ridge:
            to_user.add_(parts["user"], alpha=2 * ridge)
            to_items.addcmul_(parts["items"], (batch.weight / batch.size).unsqueeze(-1), value=2 * ridge)
        return loss, {"user": to_user, "items": to_items}

    @property
    def steps_by_updates(self) -> bool:
        """Also what is written out here does what the updates say."""
        return type(self).step is Factorisation.step and not self.stages()

    def products(self, round_: int) -> Products | None:
        """Itself, where no subclass scores, loses or trains otherwise."""
        own, local = type(self), self.config.local
        here = (Factorisation.step, Factorisation.gradients, Factorisation.adapter_step)
        as_here = self._written_out and (own.step, own.gradients, own.adapter_step) == here
        written = [Update({"user": local.lr_user, "items": local.lr_item}, local.optimiser)]
        if not as_here or self.config.gradients.sharp or self.updates(round_) != written:
            return None
        return Products("user", "items", local.optimiser, local.lr_user, local.lr_item, local.ridge)

    def step(self, block: Block, round_: int) -> Step:
        """Written out for merged rows, too, where no subclass trains otherwise."""
        local = self.config.local
        written = [Update({"user": local.lr_user, "items": local.lr_item})]
        if (
            not block.received
            or not self._merges_as_written
            or self.updates(round_) != written
            or self.config.gradients.clip
        ):
            return super().step(block, round_)
        return MergedStep(block, self.merge, local.lr_user, local.lr_item)

    def adapter_step(self, block: Block) -> Step:
        """Eq. 11."""
        return AdapterStep(block, self.merge) if self._merges_as_written else super().adapter_step(block)
