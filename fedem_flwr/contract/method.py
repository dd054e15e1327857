"""A method: what its parts are, how it scores, and what both sides do with them. Everything else is derived.

A method is one file with one subclass. It knows nothing of Flower.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.config import Config
from fedem_flwr.config.section import NoOptions, Section
from fedem_flwr.contract.asked import Asked, Device
from fedem_flwr.contract.phases import Phase, Schedule
from fedem_flwr.contract.training import LocalTraining
from fedem_flwr.contract.tuning import Tuning
from fedem_flwr.engine.block import Batch, Block
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.contribution import Stage
from fedem_flwr.engine.downloads import Downloads
from fedem_flwr.engine.epochs import LocalSettings, Step
from fedem_flwr.engine.gradients import Gradients, GradientStep, automatic
from fedem_flwr.engine.learner import Layers, Products
from fedem_flwr.engine.merge import REPLACE, Merge
from fedem_flwr.engine.merged_gradients import AdapterGradientStep, MergedGradientStep
from fedem_flwr.engine.optimizer import Update
from fedem_flwr.engine.parts import Part, State, initial_state
from fedem_flwr.engine.samples import TrainingItems
from fedem_flwr.evaluation.cohort import Scorer
from fedem_flwr.evaluation.scorers import CohortScorer, Component
from fedem_flwr.protocol.split import SplitFacts

_SANE_ENTRY = 30.0  # of an embedding, on average over a table's entries, in standard deviations of the initial ones


def norm_limit(config: Config, items: int) -> float:
    """The largest norm of a table that a server takes, where the method itself knows no bound.

    `aggregate.max_norm`, or that of a table whose entries are 30 · max(1, `model.init_std`) on average.
    """
    if (given := config.aggregate.max_norm) is not None:
        return float(given)
    return _SANE_ENTRY * max(1.0, config.model.init_std) * math.sqrt(max(1, items) * config.model.dim)


class Method:
    """Base of all methods. A subclass gives `parts` and `score`; the other hooks have defaults.

    Args:
        config: the run's configuration. items: m, the catalogue's size.

    Attributes:
        Options: the method's own settings, `[method.options]` in a configuration: a frozen section beside the method.
        options: these settings, validated; both sides get the same.
        max_norm: see `norm_limit`.
        PRESET: settings by section that the method starts from where no preset file has its name.
        NEEDS_TIMES: whether it learns from the order of interactions.
        CENTRALISED: whether it is a control that has all data in one place, and no federated method; reports say so.
        FEDERATED_ONLY: whether nothing of it could be trained by a client alone.
        LOW_RANK: whether the width must be below the number of items.
        EVALUATED: what users score with. `merged`: what they keep, merged with what they have just received, and what
            they received of the rest; `local`: item parts that they keep, as local training left them.
        EXPOSES: what the server learns beyond sums over users, in words; shown in the report and the threat model.
        TUNES: settings outside its own options that `fedem tune` looks for, where they act; see `config.search`.
        STRATEGY, CLIENT: dotted paths of the Flower strategy and the Flower client that carry it out.
    """

    Options: ClassVar[type[Section]] = NoOptions
    PRESET: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    NEEDS_TIMES: ClassVar[bool] = False
    CENTRALISED: ClassVar[bool] = False
    FEDERATED_ONLY: ClassVar[bool] = False
    LOW_RANK: ClassVar[bool] = False
    EVALUATED: ClassVar[Literal["merged", "local"]] = "merged"
    EXPOSES: ClassVar[str] = ""
    TUNES: ClassVar[tuple[str, ...]] = ("local.epochs", "local.lr_user", "local.lr_item")
    STRATEGY: ClassVar[str] = "fedem_flwr.strategies.sums:SumsStrategy"
    CLIENT: ClassVar[str] = "fedem_flwr.clients.method:MethodClient"

    def __init__(self, config: Config, items: int) -> None:
        if self.EVALUATED not in ("merged", "local"):
            raise ValueError(f"{type(self).__name__}.EVALUATED is neither 'merged' nor 'local'")
        self.config, self.items, self.seed = config, items, config.run.seed
        self.options: Any = config.method.options
        local, run = config.local, config.run
        self.local = LocalSettings(local.epochs, local.batch_size, local.negatives, local.early_stop, run.deterministic)
        self.engine: str = run.engine
        self.max_norm = norm_limit(config, items)

    @classmethod
    def fitted(cls, config: Config, facts: SplitFacts, given: frozenset[str]) -> Config:
        """A configuration that fits what everybody may know of the data, before anything is made of it.

        Args:
            given: dotted names of the settings that were asked for, and stay.
        """
        return config

    def parts(self) -> Mapping[str, Part]:
        """Its named tensors."""
        raise NotImplementedError

    def score(self, parts: Mapping[str, Tensor]) -> Tensor:
        """(k, t) logits: of user and model parts (k, width) and rows (k, t, width) of item parts.

        Training, evaluation and serving all use it. A table that serves all comes as a view with stride 0 over k.
        """
        raise NotImplementedError

    @property
    def floats_of_a_score(self) -> int:
        """Numbers that `score` holds of each user and item beside their rows: layers of a network, say."""
        return 0

    def loss(self, logits: Tensor, sign: Tensor, valid: Tensor) -> Tensor:
        """(k,) mean binary cross-entropy of a batch; see `engine.gradients.Differentiable`."""
        entropy = torch.nn.functional.softplus(sign * logits) * valid
        return entropy.sum(1) / valid.sum(1).clamp(min=1)

    def penalty(self, parts: Mapping[str, Tensor], valid: Tensor, round_: int) -> Tensor | None:
        """(k,) what is added to the loss, given the rows of the batch's samples and the round; None: nothing."""
        return None

    def updates(self, round_: int) -> Sequence[Update]:
        """The updates of a batch: by default one step on all parts, with the optimiser and the rates of `[local]`."""
        local = self.config.local
        rates = {n: local.lr_user if part.axis == "user" else local.lr_item for n, part in self.parts().items()}
        return [Update(rates, local.optimiser)]

    def gradients(self, batch: Batch, names: Sequence[str]) -> tuple[Tensor, Gradients]:
        """By automatic differentiation; a method may write them out, and is tested against this."""
        return automatic(self, batch, names)

    def sharpness(self, name: str) -> float:
        """See `gradients.sharpness` and `sharpness_private` of the configuration."""
        return self.config.gradients.rho(private=self.parts()[name].private)

    def clipped(self, name: str) -> float:
        """See `gradients.clip` of the configuration: of what goes up; inf for the rest."""
        limit = self.config.gradients.clip
        return limit if limit is not None and self.parts()[name].up != "none" else math.inf

    def perturbed(self, names: Sequence[str]) -> Sequence[Sequence[str]]:
        """Shared parts, then private ones; see `engine.gradients.sharp`."""
        parts = self.parts()
        groups = ([name for name in names if parts[name].private == private] for private in (False, True))
        return [group for group in groups if group]

    def products(self, round_: int) -> Products | Layers | None:
        """What a batch does, where compiled functions know it; None: `step` does it."""
        return None

    def trains_as(self, kind: type[Method]) -> bool:
        """Whether what is minimised, and how, is what the class `kind` wrote, and no subclass's own."""
        hooks = ("score", "loss", "penalty", "gradients", "step")
        as_there = all(getattr(type(self), hook) == getattr(kind, hook) for hook in hooks)
        return as_there and not self.config.gradients.sharp

    def step(self, block: Block, round_: int) -> Step:
        """What takes a block's batches; through merged rows where the block has downloaded ones beside its own."""
        return MergedGradientStep(self, block, round_) if block.received else GradientStep(self, block, round_)

    @property
    def steps_by_updates(self) -> bool:
        """Whether a batch moves parts by their `updates` and by nothing else, so that the server knows how far."""
        return type(self).step is Method.step and not self.stages()

    def adapter_step(self, block: Block) -> Step:
        """What trains the adapter of elastic merging (Eq. 11 of FedEM), by the method's own loss."""
        return AdapterGradientStep(self, block)

    @property
    def merge(self) -> Merge:
        """How what clients keep of a shared item part and what they receive of it become one."""
        return REPLACE

    @property
    def merged(self) -> str:
        """The shared item part of which clients keep a copy; empty: none."""
        kept = (name for name, part in self.parts().items() if part.axis == "item" and part.kept and not part.private)
        return next(kept, "")

    def stages(self) -> Sequence[Stage]:
        """What happens to each user's contribution before any sum; see `engine.contribution`."""
        return ()

    # What happens when.

    def phases(self) -> Sequence[Phase]:
        """By default local training in every round, and sums of what goes up."""
        return [Phase("train", self.config.run.rounds, LocalTraining(self))]

    @property
    def schedule(self) -> Schedule:
        """The phases of the run."""
        return Schedule(tuple(self.phases()))

    def participants(self, state: State, samples: np.ndarray, round_: int) -> np.ndarray | None:
        """(p,) who takes part in a round, ascending; None: a random share, as `run.participants` or the phase says.

        Args:
            state: the server's. samples: (n,) training interactions of each user; who has none cannot take part.
        """
        return None

    def tunings(self) -> Sequence[Tuning]:
        """Settings chosen on validation sums."""
        return ()

    def evaluates(self, round_: int) -> bool:
        """Whether a round's model is evaluated, beyond `evaluation.every`."""
        return False

    # The server's side.

    @property
    def federated(self) -> bool:
        """Whether anything goes up at all."""
        return True

    def start(self) -> State:
        """The server's state before the first round: the initial values of the shared parts."""
        return {
            name: part.initial(name, self.items, self.seed)
            for name, part in self.parts().items()
            if not part.private and (part.up != "each" or part.touched)
        }

    def sends(self) -> Sequence[str]:
        """Names of the server's state that may go down."""
        return [name for name, part in self.parts().items() if not part.private]

    def scored_with(self, done: int) -> Sequence[str]:
        """Those of them that users are scored with after `done` rounds."""
        return self.sends()

    def table(self, state: State) -> Tensor | None:
        """(m, d) the one item table for all; None where there is none."""
        found = [
            state[n] for n, part in self.parts().items() if part.axis == "item" and not part.private and n in state
        ]
        return found[0] if len(found) == 1 and found[0].ndim == 2 else None

    def settings(self, state: State, users: int) -> Mapping[str, float]:
        """Numbers that a round's messages carry to the devices, of so many users in all."""
        return {}

    def diagnostics(self, state: State) -> dict[str, object]:
        """What the report shows of the server's state."""
        return {}

    def caveats(self) -> list[str]:
        """What a reader of the results must be warned of."""
        return [self.EXPOSES] if self.EXPOSES else []

    # The device's side.

    @property
    def stateless(self) -> bool:
        """Whether clients keep nothing between rounds."""
        return not any(part.stays for part in self.parts().values())

    def initial_state(self, k: int, place: torch.device) -> State:
        """What k users start from."""
        return initial_state(self.parts(), k, self.items, self.seed, place)

    def cohort(self, data: TrainingItems, state: State) -> Cohort:
        """Users with their data and their state."""
        return Cohort(data, state, self)

    def training_cohort(self, device: Device) -> Cohort:
        """Whom local training trains, on what."""
        return device.cohort

    def downloads(self, device: Device, asked: Asked) -> Downloads:
        """What was downloaded of each shared part."""
        shared = {name: part for name, part in self.parts().items() if not part.private}
        found = {n: asked.download(n, device, 2 if part.axis == "item" else 1) for n, part in shared.items()}
        return {name: download for name, download in found.items() if download is not None}

    def scorer(self, device: Device, asked: Asked) -> Scorer:
        """What the node's users score with, given what they have just received."""
        downloads = self.downloads(device, asked)
        if self.EVALUATED == "local":
            kept = {name for name, part in self.parts().items() if part.stays}
            downloads = {name: value for name, value in downloads.items() if name not in kept}
        return CohortScorer(device.cohort, downloads)

    def components(self, asked: Asked) -> list[tuple[float, Component]]:
        """What scores any history, also of a user that was never in training, with weights; empty: nothing does."""
        return []

    def typical_items(self, samples: np.ndarray) -> float:
        """Training items of a user, on average."""
        return float(samples[samples > 0].mean()) if (samples > 0).any() else 0.0
