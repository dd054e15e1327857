"""Methods with a fault each, which the suite must find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.contract import Asked, Device, Field, Gathered, Phase, State, Upload
from fedem_flwr.contract.fields import Named
from fedem_flwr.contract.training import LocalTraining
from fedem_flwr.engine.block import Batch
from fedem_flwr.engine.gradients import Gradients
from fedem_flwr.evaluation.scorers import CohortScorer
from fedem_flwr.methods.fedials import Fedials, TableStep
from fedem_flwr.methods.fedmf import FedMF


class Faulty(FedMF):
    """FedMF with a task of its own."""

    TASK: ClassVar[type[LocalTraining]] = LocalTraining

    def phases(self) -> Sequence[Phase]:
        """One."""
        return [Phase("train", self.config.run.rounds, self.TASK(self))]


class _Hiding(LocalTraining):
    def contribute(self, device: Device, asked: Asked) -> Upload:
        upload = super().contribute(device, asked)
        upload.arrays["items"][0] = device.cohort.state["user"][asked.who[0]].numpy()
        return upload


class Leaks(Faulty):
    """A user's private vector is a row of the uploaded table."""

    TASK = _Hiding


class Draws(FedMF):
    """A draw that is not keyed."""

    def gradients(self, batch: Batch, names: Sequence[str]) -> tuple[Tensor, Gradients]:
        """With noise out of the process's own generator."""
        loss, found = super().gradients(batch, names)
        return loss, {name: x + 0.1 * torch.randn_like(x) for name, x in found.items()}


class _Forgetting(LocalTraining):
    folded = 0

    def fold(self, state: State, gathered: Gathered) -> State:
        self.folded += 1  # on the object, and not in the state
        new = super().fold(state, gathered)
        return {**new, "items": state["items"] + (new["items"] - state["items"]) / self.folded}


class Forgets(Faulty):
    """The server's steps depend on what is in no checkpoint."""

    TASK = _Forgetting

    def __init__(self, config, items):  # type: ignore[no-untyped-def]
        super().__init__(config, items)
        self.task = self.TASK(self)

    def phases(self) -> Sequence[Phase]:
        """One, of a task that lives on."""
        return [Phase("train", self.config.run.rounds, self.task)]


class _Noting(LocalTraining):
    method: Remembers

    def contribute(self, device: Device, asked: Asked) -> Upload:
        self.method.trained = True
        return super().contribute(device, asked)


class Remembers(Faulty):
    """A device's scores depend on what is in no stored state."""

    TASK = _Noting
    trained = False

    def scorer(self, device: Device, asked: Asked) -> CohortScorer:
        """Those that have trained in this process forget what they received."""
        return CohortScorer(device.cohort, {} if self.trained else self.downloads(device, asked))


class _Trusting(LocalTraining):
    def fields(self) -> dict[str, Field]:
        return {name: Field(field.shape, field.dtype) for name, field in super().fields().items()}

    def problem(self, arrays: Named, users: int, samples: int) -> str:
        return ""


class Trusts(Faulty):
    """Impossible counts are believed."""

    TASK = _Trusting


class _Deaf(LocalTraining):
    def contribute(self, device: Device, asked: Asked) -> Upload:
        stages, self.method.stages = self.method.stages, lambda: ()  # type: ignore[method-assign]
        upload = super().contribute(device, asked)
        self.method.stages = stages  # type: ignore[method-assign]
        return upload


class Deaf(Faulty):
    """Contributions go past the stages."""

    TASK = _Deaf


class Wrong(FedMF):
    """A gradient with a slip of the pen."""

    def gradients(self, batch: Batch, names: Sequence[str]) -> tuple[Tensor, Gradients]:
        """The wrong way, in one coordinate."""
        loss, found = super().gradients(batch, names)
        return loss, {**found, "user": torch.cat([-found["user"][:, :1], found["user"][:, 1:]], 1)}


class Blind(FedMF):
    """The score that is trained is not the one that is evaluated."""

    def score(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Everybody alike."""
        return super().score(parts) * 0.0


class _Light(TableStep):
    def typical_length(self, items: float) -> int:
        return round(items / 2)


class Light(Fedials):
    """Uploads weigh twice what is said."""

    def phases(self) -> Sequence[Phase]:
        """One."""
        return [Phase("table", self.table_rounds, _Light(self))]


def kind_hits(scores: Tensor, targets: Tensor, *others: Tensor) -> Tensor:
    """(k,) ranks in which a number that is none beats everything."""
    return torch.from_numpy(1 + (scores.numpy() > scores.gather(1, targets[:, None]).numpy()).sum(1).astype(np.int64))
