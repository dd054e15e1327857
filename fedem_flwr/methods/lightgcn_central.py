"""LightGCN (He et al., SIGIR 2020) on all data in one place: a control, and no federated method.

Users and items are the nodes of a graph, training interactions its edges. A layer makes each node the sum of its
neighbours, weighted by 1 / √(degrees of both); what is scored is the mean of the layers 0 (the trained values) to L.
Score: the dot product. Loss: BPR of each positive against its fresh negatives, and a ridge on the trained values.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from fedem_flwr.config import Config
from fedem_flwr.config.section import Section
from fedem_flwr.contract import State
from fedem_flwr.engine.samples import TrainingItems
from fedem_flwr.methods.mf_central import MFCentral


class LightGCNCentralOptions(Section):
    """Of `LightGCNCentral`."""

    layers: int = Field(3, ge=0, le=8, description="L; 0: matrix factorisation with BPR")


class LightGCNCentral(MFCentral):
    """Matrix factorisation's vectors and rows are layer 0; they are smoothed over the graph before they are scored."""

    Options = LightGCNCentralOptions

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        self._known: tuple[TrainingItems, tuple[Tensor, Tensor]] | None = None

    def minimised(self, logits: Tensor) -> Tensor:
        """BPR, the mean over a positive's negatives."""
        found: Tensor = torch.nn.functional.softplus(logits[:, 1:] - logits[:, :1]).mean(1)
        return found

    def represented(self, values: State, data: TrainingItems) -> State:
        """The mean of the layers. The graph is symmetric, and so is this: gradients go back through the same sums."""
        down, up = self._graph(data)
        user, items = values["user"], values["items"]
        users, tables = user.clone(), items.clone()
        for _ in range(self.options.layers):
            user, items = down @ items, up @ user
            users += user
            tables += items
        return {"user": users / (self.options.layers + 1), "items": tables / (self.options.layers + 1)}

    def _graph(self, data: TrainingItems) -> tuple[Tensor, Tensor]:
        """Sparse (k, m), and its transpose; made once for the same data. A repeated pair is one edge."""
        if self._known is None or self._known[0] is not data:
            self._known = data, edges(data)
        return self._known[1]


def edges(data: TrainingItems) -> tuple[Tensor, Tensor]:
    """(k, m) 1 / √(degree of the user · degree of the item) at every training pair, and its transpose; sparse."""
    owner = torch.repeat_interleave(torch.arange(len(data.users), device=data.users.device), data.counts())
    pairs = torch.unique(torch.stack([owner, data.positive_items]), dim=1)
    sizes = len(data.users), data.items
    degrees = [torch.bincount(at, minlength=size).clamp(min=1).float() for at, size in zip(pairs, sizes, strict=True)]
    weight = (degrees[0][pairs[0]] * degrees[1][pairs[1]]).rsqrt()
    matrix = torch.sparse_coo_tensor(pairs, weight, sizes, check_invariants=True).coalesce()
    return matrix, matrix.t().coalesce()
