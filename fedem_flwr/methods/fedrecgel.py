"""FedRecGEL (arXiv 2603.11503, 2026): sharpness-aware gradients, of shared and of private parts in turn, on NeuMF.

Private: p (`user`) and a wider one for the network (`user-wide`), with the moments of an Adam that each user keeps. Up:
the gradient of everything else, of one step on all samples of a round, as sums over users. Server: one Adam step on the
mean gradient. Down: both item tables and the network. Loss: cross-entropy, the sum over chunks of samples of each
chunk's mean, so that it grows with a user's history. Gradients: at θ + ρ g / ‖g‖, ρ = `gradients.sharpness`, or
`gradients.sharpness_private`; see `engine.gradients.sharp`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedem_flwr.aggregation.adam import ServerAdam
from fedem_flwr.config import Config
from fedem_flwr.config.section import Search, Section, Widths
from fedem_flwr.contract import Gathered, Method, Part, Phase, State, Update, moments
from fedem_flwr.contract.training import LocalTraining
from fedem_flwr.models.neumf import NeuMF

_SHARED, _BETA_2 = ("items", "items-wide", "network"), 0.999  # torch's default


class FedRecGELOptions(Section):
    """Of `FedRecGEL`."""

    hidden: Widths = Field(
        (128, 64, 32), min_length=1, description="widths of the network; its own vectors are as wide as the first"
    )
    chunk: int = Field(128, ge=1, description="samples whose loss is one mean; the means are added up")
    lr_server: Annotated[float, Search(1e-4, 0.1, log=True)] = Field(0.001, gt=0, description="of the server's Adam")


class FedRecGEL(Method):
    """NeuMF; clients send gradients, and keep an Adam for what is theirs."""

    Options = FedRecGELOptions
    TUNES = ("local.lr_user",)
    FEDERATED_ONLY = True  # what is shared is moved by the server's Adam

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        hidden = self.options.hidden
        self.model = NeuMF(config.model.dim, hidden[0], hidden)

    def parts(self) -> Mapping[str, Part]:
        """See the module."""
        model, std = self.model, self.config.model.init_std
        private = {"user": Part("user", model.dim, private=True, std=std)}
        private["user-wide"] = Part("user", model.wide, private=True, std=std)
        items = {"items": Part("item", model.dim, up="sum", mean="users", std=std, change=True)}
        items["items-wide"] = Part("item", model.wide, up="sum", mean="users", std=std, change=True)
        network = Part("model", model.size, up="sum", mean="users", start=model.initial, change=True)
        return {
            **private,
            **{f"{n}-moments": moments(part) for n, part in private.items()},
            **items,
            "network": network,
        }

    @property
    def floats_of_a_score(self) -> int:
        """The network's layers."""
        return sum(self.options.hidden)

    def score(self, parts: Mapping[str, Tensor]) -> Tensor:
        """See `models.neumf`."""
        tables = (parts["items"], parts["items-wide"])
        return self.model.logits(parts["network"], parts["user"], parts["user-wide"], *tables)

    def loss(self, logits: Tensor, sign: Tensor, valid: Tensor) -> Tensor:
        """(k,) the sum of the chunks' means; real samples lie in front."""
        entropy, chunk = torch.nn.functional.softplus(sign * logits) * valid, self.options.chunk
        before = torch.arange(valid.shape[1], device=valid.device) // chunk * chunk
        inside = (valid.sum(1, keepdim=True) - before).clamp(1, chunk)  # (k, b) samples of a sample's chunk
        total: Tensor = (entropy / inside).sum(1)
        return total

    def updates(self, round_: int) -> Sequence[Update]:
        """A step of rate 1 from what was downloaded: the change that goes up is the gradient, but for its sign."""
        own = ("user", "user-wide")
        rates = {**dict.fromkeys(own, self.config.local.lr_user), **dict.fromkeys(_SHARED, 1.0)}
        return [Update(rates, {**dict.fromkeys(own, "kept-adam"), **dict.fromkeys(_SHARED, "sgd")})]

    def start(self) -> State:
        """Every shared part, and the server's moments."""
        return {k: x for name, value in super().start().items() for k, x in ServerAdam.start(value).state(name).items()}

    def phases(self) -> Sequence[Phase]:
        """One."""
        return [Phase("train", self.config.run.rounds, MeanGradient(self))]


class MeanGradient(LocalTraining):
    """Sums of gradients, and the server's Adam."""

    method: FedRecGEL

    def fold(self, state: State, gathered: Gathered) -> State:
        """One step on each shared part."""
        new = dict(state)
        for name in _SHARED if gathered.trained else ():
            gradient = (-gathered.sums[name] / gathered.sums[f"{name}-weight"]).float()
            new |= ServerAdam.of(name, state).step(gradient, self.method.options.lr_server, _BETA_2).state(name)
        return new
