"""PFedRec: Zhang et al., "Dual Personalization on Federated Recommendation", IJCAI 2023.

There is no user vector: a user is a scoring layer. Private: (w, b), `head`. Up: a cohort's sum of the trained item
tables. Server: their mean over the clients. Down: the table, from which every client's own starts. Loss: binary
cross-entropy. A batch is a gradient step on the head and then, computed anew, one on the items. Users are scored with
the table as their own training has left it, before it is averaged ("dual personalisation").

A batch's mean over B samples and rows that occur once or twice in it make the items' gradients tiny, hence their rate
η · factor · m (13,456 on ML-100K). The released program uploads b, too, and no client reads the average: here it stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedem_flwr.config.section import Search, Section
from fedem_flwr.contract import Layers, Method, Part, Update, weights_of
from fedem_flwr.engine.block import Batch
from fedem_flwr.engine.gradients import Gradients
from fedem_flwr.models.mf import loss_and_residual
from fedem_flwr.models.mlp import Mlp, head_scores


class PFedRecOptions(Section):
    """Of `PFedRec`."""

    lr: Annotated[float, Search(1e-3, 1, log=True)] = Field(0.1, gt=0, description="η, gradient steps of the head")
    factor: Annotated[float, Search(1, 500, log=True)] = Field(
        80.0, gt=0, description="η_mult: the items' rate is η · factor · m"
    )


class PFedRec(Method):
    """Score z = w · q + b."""

    Options = PFedRecOptions
    EVALUATED, TUNES = "local", ("local.epochs",)

    def parts(self) -> Mapping[str, Part]:
        """A client keeps both; the head never leaves it."""
        dim, head = self.config.model.dim, Mlp((self.config.model.dim, 1))
        items = Part("item", dim, up="sum", mean="users", kept=True, std=self.config.model.init_std)
        return {"head": weights_of(head, "head", private=True), "items": items}

    def score(self, parts: Mapping[str, Tensor]) -> Tensor:
        """See the class."""
        return head_scores(parts["head"], parts["items"])

    def gradients(self, batch: Batch, names: Sequence[str]) -> tuple[Tensor, Gradients]:
        """Written out, a row with how often it occurs in the batch; each of the two where it is asked for."""
        head, rows = batch.block.parts["head"], batch.block.parts["items"]
        loss, residual = loss_and_residual(head_scores(head, rows), batch.block.samples.sign, batch.weight)
        residual = residual.div_(batch.size)  # (k, t)
        if "items" in names:
            return loss, {"items": residual.unsqueeze(-1) * head[:, None, :-1]}
        to_w = torch.bmm(residual.unsqueeze(1), rows).squeeze(1)
        return loss, {"head": torch.cat([to_w, residual.sum(1, keepdim=True)], 1)}

    def updates(self, round_: int) -> Sequence[Update]:
        """The head, then the items."""
        rate = self.options.lr
        return [Update({"head": rate}, "sgd"), Update({"items": rate * self.options.factor * self.items}, "sgd")]

    def products(self, round_: int) -> Layers | None:
        """Itself, where no subclass trains otherwise."""
        return Layers("head", ("items",)) if self.trains_as(PFedRec) else None
