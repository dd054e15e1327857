"""Centralised training, a control and no federation: one node holds everybody, and nothing goes up.

A subclass says what its parts are and how they score, as any method does. It is trained as libraries do: one epoch a
round, batches over the interactions of all users, fresh negatives, one Adam that goes on over the rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fedem_flwr.config import Config
from fedem_flwr.contract.asked import Asked, Device
from fedem_flwr.contract.fields import Field
from fedem_flwr.contract.method import Method
from fedem_flwr.contract.phases import Gathered, Phase, Task, Upload
from fedem_flwr.engine.draws import Draws
from fedem_flwr.engine.optimizer import adam_step
from fedem_flwr.engine.parts import Part, State
from fedem_flwr.engine.samples import TrainingItems, draw_samples
from fedem_flwr.errors import InputError
from fedem_flwr.evaluation.scorers import CohortScorer
from fedem_flwr.pulse import beat
from fedem_flwr.randomness import keyed_normal, keyed_permutation

_USERS = 512  # whose samples are drawn at a time
STEPS = "steps"


class Central(Method):
    """Base of the centralised controls. A subclass gives `trained`, `score`, and `represented` if there are layers."""

    CENTRALISED = True
    FEDERATED_ONLY = True  # there is no client that could train alone
    EXPOSES = "Centralised: whoever trains it has every user's history in one place. It is a control, and not federated"

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        run = config.run
        if run.runtime != "inprocess" or run.users_per_node:
            raise InputError(
                f"{config.method.name} is centralised, all data are in one place: leave run.runtime and "
                "run.users_per_node out"
            )
        if run.participants < 1 or config.merge.mode != "replace" or config.ldp.active or config.gradients.sharp:
            raise InputError(
                f"{config.method.name} is centralised: it has no participants, merge, ldp or sharpness; leave them out"
            )
        if config.local.negatives < 1:
            raise InputError(f"local.negatives = 0: {config.method.name} compares items with others; set 1 or more")

    # What a subclass gives.

    def trained(self) -> Mapping[str, Part]:
        """Its parts: private ones, of items and the model with `group = True`; see `table` and `vectors`."""
        raise NotImplementedError

    def represented(self, values: State, data: TrainingItems) -> State:
        """What is scored with, of the trained values; a linear map that is its own transpose. Here: the same."""
        return values

    def minimised(self, logits: Tensor) -> Tensor:
        """(b,) loss of positives (b,), first in their row, each beside its negatives: logits (b, 1 + negatives).

        Here the mean binary cross-entropy of a row.
        """
        found: Tensor = torch.nn.functional.softplus(torch.cat([-logits[:, :1], logits[:, 1:]], 1)).mean(1)
        return found

    # What follows.

    def vectors(self, width: int) -> Part:
        """A vector a user."""
        return Part("user", width, private=True, std=self.config.model.init_std)

    def rows(self, width: int) -> Part:
        """A table for all."""
        return Part("item", width, private=True, group=True, std=self.config.model.init_std)

    def weights(self, size: int, start: Callable[[int], Tensor]) -> Part:
        """A network for all."""
        return Part("model", size, private=True, group=True, start=start)

    def parts(self) -> Mapping[str, Part]:
        """Also Adam's moments."""
        found = dict(self.trained())
        for name, part in self.trained().items():
            nothing = torch.zeros((self.items, part.width) if part.axis == "item" else (part.width,))
            for moment in ("first", "second"):
                found[f"{name}-{moment}"] = replace(part, start=partial(_given, nothing))
        return {**found, STEPS: Part("model", 1, private=True, group=True, start=lambda _: torch.zeros(1))}

    def initial_state(self, k: int, place: torch.device) -> State:
        """Every user starts from a vector of its own."""
        state = super().initial_state(k, place)
        for name, part in self.trained().items():
            if part.axis == "user":
                at = torch.arange(k)[:, None], torch.arange(part.width)
                state[name] = (keyed_normal(self.seed, f"init/{name}", *at) * part.std).to(place)
        return state

    @property
    def federated(self) -> bool:
        """Nothing goes up."""
        return False

    def phases(self) -> Sequence[Phase]:
        """One epoch a round."""
        return [Phase("train", self.config.run.rounds, Epoch(self))]

    def scorer(self, device: Device, asked: Asked) -> CohortScorer:
        """Everybody, with what the values stand for."""
        return self.scoring(device.cohort.data, device.cohort.state)

    def scoring(self, data: TrainingItems, state: State) -> CohortScorer:
        """See `scorer`."""
        scored = self.represented(self.values(state), data)
        seen = {name: x if self.parts()[name].axis == "user" else x.unsqueeze(0) for name, x in scored.items()}
        return CohortScorer(self.cohort(data, {**state, **seen}), {})

    def values(self, state: State) -> State:
        """The trained values of a state: (k, width), (m, width), (P,)."""
        parts = self.trained()
        return {name: state[name] if part.axis == "user" else state[name][0] for name, part in parts.items()}

    def epoch(self, data: TrainingItems, state: State, draws: Draws, round_: int) -> tuple[int, float]:
        """One pass over all positives, in place; returns the number of samples, and their summed loss."""
        owner, items = positives(data, self.local.negatives, draws, round_)
        order = keyed_permutation(len(owner), self.seed, "central/shuffle", round_).to(owner.device)
        values, local, total = self.values(state), self.config.local, 0.0
        rates = {n: local.lr_user if part.axis == "user" else local.lr_item for n, part in self.trained().items()}
        for batch in order.split(local.batch_size or max(1, len(order))):
            loss, gradients = self.gradients_of(values, data, owner[batch], items[batch])
            state[STEPS] += 1
            for name, gradient in gradients.items():
                first, second = (self._whole(state, f"{name}-{moment}") for moment in ("first", "second"))
                adam_step(values[name], gradient, first, second, state[STEPS][0], rates[name])
            total += loss * len(batch)
            beat()
        return items.numel(), total / max(1, len(owner)) * items.numel()

    def gradients_of(self, values: State, data: TrainingItems, owner: Tensor, items: Tensor) -> tuple[float, State]:
        """A batch's mean loss, and the gradients of it and the ridge by the trained values.

        Args:
            owner: (b,) positions of users. items: (b, 1 + negatives), the positive first.
        """
        parts = self.trained()
        leaves = {name: x.detach().requires_grad_() for name, x in self.represented(values, data).items()}
        loss = self.minimised(self.score(gathered(parts, leaves, owner, items))).mean()
        found = torch.autograd.grad(loss, list(leaves.values()))
        back = dict(self.represented(dict(zip(leaves, found, strict=True)), data))
        if ridge := self.config.local.ridge:  # of the values themselves, in the batch
            for name, part in parts.items():
                if part.axis != "model":
                    at = owner if part.axis == "user" else items.flatten()
                    back[name] = back[name].index_add(0, at, values[name][at], alpha=2 * ridge / len(at))
        return float(loss.detach()), back

    def _whole(self, state: State, name: str) -> Tensor:
        return state[name] if self.parts()[name].axis == "user" else state[name][0]


class Epoch(Task):
    """One epoch over everybody, at the only node."""

    grouped = True

    def __init__(self, method: Central) -> None:
        self.method = method

    def fields(self) -> dict[str, Field]:
        """Nothing goes up."""
        return {}

    def needs(self) -> Sequence[str]:
        """Nothing comes down."""
        return []

    def contribute(self, device: Device, asked: Asked) -> Upload:
        """See the class."""
        draws = Draws(self.method.seed, device.secret)
        return Upload({}, *self.method.epoch(device.cohort.data, device.cohort.state, draws, asked.round))

    def fold(self, state: State, gathered: Gathered) -> State:
        """There is no server to speak of."""
        return state


def positives(data: TrainingItems, negatives: int, draws: Draws, round_: int) -> tuple[Tensor, Tensor]:
    """(p,) the position of the user of every positive, and (p, 1 + negatives) the positive with its fresh negatives."""
    owners, found, each = [], [], 1 + negatives
    for who in torch.arange(len(data.users), device=data.users.device).split(_USERS):
        drawn = draw_samples(data, who, negatives, draws, round_)
        counts = drawn.weight // each
        most = int(counts.max()) if len(counts) else 0
        items = drawn.touched.gather(1, drawn.row)[:, : most * each].view(len(who), most, each)
        real = torch.arange(most, device=who.device) < counts.unsqueeze(1)
        owners.append(who.unsqueeze(1).expand(-1, most)[real])
        found.append(items[real])
    return torch.cat(owners), torch.cat(found)


def gathered(parts: Mapping[str, Part], values: State, owner: Tensor, items: Tensor) -> State:
    """What `score` takes: a batch's users (b, width), rows (b, t, width), and the model for each, as a view."""
    by_axis: dict[str, Callable[[Tensor], Tensor]] = {
        "user": lambda x: x[owner],
        "item": lambda x: x[items],
        "model": lambda x: x.expand(len(owner), -1),
    }
    return {name: by_axis[parts[name].axis](values[name]) for name in values}


def _given(values: Tensor, seed: int) -> Tensor:
    return values
