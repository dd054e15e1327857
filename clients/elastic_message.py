"""What clients with elastic merging share: the message's arrays, and what goes up beside the method's own sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clients.base import Arrays, HostClient, Scalar
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.elastic import Evidence, ItemWeights, Tables, centre_sums, crowded
from fedem_flwr.engine.elastic_scores import item_rho
from fedem_flwr.engine.held_out import HeldOut, hold_out
from fedem_flwr.engine.history import History, IntArray
from fedem_flwr.models.adapter import Adapter
from fedem_flwr.randomness import keyed_integers, keyed_uniform

DOWNLOADS = ("groups", "centres", "theta", "mean", "first")
UPLOADS = {"cluster": ("centres", "members"), "curve": ("curve", "items"), "theta": ("theta", "items")}


@dataclass(frozen=True)
class ElasticMessage:
    """What the two clients share: the arrays of a message, and what goes up beside the method's own sums.

    Attributes:
        client: whose users these are. arrays: of the message, by name. settings: of the message.
    """

    client: HostClient
    arrays: Mapping[str, np.ndarray]
    settings: Mapping[str, Scalar]

    def tensor(self, name: str) -> Tensor:
        """A downloaded array where this process computes."""
        return torch.from_numpy(np.array(self.arrays[name])).to(self.client.host.device())

    def tables(self, glob: Tensor) -> Tables | None:
        """What is merged; None before there are groups."""
        groups = self.tensor("groups")
        return Tables(glob, groups, self.tensor("centres")) if len(groups) else None

    def rho(self, tables: Tables) -> float | Tensor | None:
        """One for all, or (G, m) one an item; None where each client finds its own."""
        elastic, theta = self.client.host.config.elastic, self.tensor("theta")
        if elastic.merge == "item" and len(theta):
            return item_rho(self.weights(theta), tables)
        own = elastic.merge == "client" and len(self.arrays["mean"])
        return None if own else float(self.settings["rho"])

    def weights(self, theta: Tensor) -> ItemWeights:
        """The shared adapter."""
        config = self.client.host.config
        return ItemWeights(Adapter(config.model.dim, config.elastic.hidden), theta)

    def held(self, history: History) -> HeldOut:
        """A history cut in two."""
        config, split = self.client.host.config, self.client.host.split
        return hold_out(history, config.elastic.hold_out, config.run.seed, by_time=split.has_times)

    @property
    def cut(self) -> bool:
        """Whether held-out items are left out of what is trained on."""
        return bool(self.settings["hold"])

    def sums_of(self, group: Tensor) -> Tensor:
        """The groups that users' sums go up under: their own, unless a sum would be a single user's."""
        config = self.client.host.config
        return group if config.ials.individual_uploads else crowded(group, config.elastic.groups)

    def cluster(self, users: Tensor, who: IntArray) -> Arrays:
        """Sums of embeddings (k', d) by group; by keyed lot among a few of the users where there are no centres yet."""
        config, centres = self.client.host.config, self.tensor("centres")
        groups, secret = config.elastic.groups, self.client.host.secret(self.client.node)
        seed = Draws(config.run.seed, secret).own_seed
        if len(centres):
            group = (users @ centres.T).argmax(1)
        else:
            codes = torch.from_numpy(np.asarray(self.client.users[who])).to(users.device)
            drawn = keyed_uniform(seed, "elastic/seeds", codes) < float(self.settings["seeds"])
            users, group = users[drawn], keyed_integers(groups, seed, "elastic/groups", codes)[drawn]
            if len(users) == 1 and not config.ials.individual_uploads:
                users, group = users[:0], group[:0]
        sums, members = centre_sums(users, self.sums_of(group), groups)
        return [sums.float().cpu().numpy(), members.float().cpu().numpy()]

    def theta(self, evidence: Evidence, tables: Tables) -> tuple[Arrays, float]:
        """Gradient of Θ with the number of held-out items behind it, and their loss."""
        gradient, loss = self.weights(self.tensor("theta")).gradient(evidence, tables)
        return [gradient.float().cpu().numpy(), np.array([evidence.held.counts().sum()], np.float32)], loss

    def curve(self, curve: Tensor, held: HeldOut) -> tuple[Arrays, float]:
        """Sums of the users' curves with the number of held-out items behind them, and the loss under the last ρ."""
        total = curve.sum(0)
        sums = [total.float().cpu().numpy(), np.array([held.counts().sum()], np.float32)]
        return sums, float(total[-1])

    def nothing(self) -> Arrays:
        """What goes up in a round that fits ρ where it would be a single user's."""
        theta, rhos = self.arrays["theta"], self.client.host.config.elastic.rhos
        length = len(theta) if self.settings["upload"] == "theta" else len(rhos)
        return [np.zeros(length, np.float32), np.zeros(1, np.float32)]
