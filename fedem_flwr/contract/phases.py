"""Phases of a run as data: what happens in which rounds, on the devices and on the server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from torch import Tensor

from fedem_flwr.contract.asked import Asked, Device
from fedem_flwr.contract.fields import Field, Named
from fedem_flwr.engine.parts import State
from fedem_flwr.errors import FedemError


class NothingMade(FedemError):
    """Raised by a task's `fold`: nothing can be made of the round's uploads. It is recorded, and the run goes on."""


@dataclass(frozen=True)
class Upload:
    """What a device answers.

    Attributes:
        arrays: by name, as the task's fields say.
        samples: behind the loss. loss: summed over them; None where nothing has one.
        uncompiled: participants whom compiled functions were to train, and batched torch trained.
    """

    arrays: Named
    samples: int
    loss: float | None = None
    uncompiled: int = 0


@dataclass(frozen=True)
class Gathered:
    """A round's uploads as the server has them.

    Attributes:
        round: from 1. step: from 1, of the phase.
        sums: by name, float64; of rows under an index with every row of the sum.
        each: by name, single users' tensors (a, ...), of `uploaders` (a,).
        trained: participants whose contribution is in the sums. users: those that have data.
        samples: (n,) training interactions of each user.
        measured: by name, the means of grids that the nodes tried with the model before this round's step.
    """

    round: int
    step: int
    sums: Mapping[str, Tensor]
    each: Mapping[str, Tensor]
    uploaders: np.ndarray
    trained: int
    users: int
    samples: np.ndarray
    measured: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """What the sums must be divided by to stand for all users."""
        return self.trained / self.users


@dataclass(frozen=True)
class Sender:
    """What the server knows of whoever sends an upload.

    Attributes:
        round: from 1.
        samples: (p,) training interactions of each participant. most: the most that any user of the run has.
    """

    round: int
    samples: np.ndarray
    most: int


class Task(ABC):
    """What a phase does: on a device, and on the server.

    Attributes:
        handles_stages: whether `contribute` takes single users' contributions through the method's stages itself, as
            `engine.cohort.Cohort.train` does where it adds parts up.
        grouped: whether a node's participants contribute as one, and not each alone.
        least_items: training items without which a user adds nothing to a sum, and so hides nobody in it.
    """

    handles_stages: ClassVar[bool] = False
    grouped: ClassVar[bool] = False
    least_items: ClassVar[int] = 1

    @abstractmethod
    def fields(self) -> dict[str, Field]:
        """What goes up."""

    @abstractmethod
    def needs(self) -> Sequence[str]:
        """Names of the server's state that devices train with."""

    @abstractmethod
    def contribute(self, device: Device, asked: Asked) -> Upload:
        """The device's side: train the participants, and sum up what goes up."""

    @abstractmethod
    def fold(self, state: State, gathered: Gathered) -> State:
        """The server's side: what it makes of the sums, or of single uploads. Values are replaced, never written to.

        Raises:
            NothingMade: see there.
        """

    def added(self) -> dict[str, Field]:
        """What the server adds up of an upload, as `opened` gives it."""
        return self.fields()

    def opened(self, arrays: Named) -> Named:
        """What of a node's upload is added to the round's sums: what its factors stand for, say."""
        return arrays

    def problem(self, arrays: Named, users: int, samples: int) -> str:
        """What else is wrong with an upload of so many users with so many interactions; empty if nothing is."""
        return ""

    def impossible(self, arrays: Named, state: State, sender: Sender) -> str:
        """What these users cannot have sent after `state`, whatever their histories are, in words; empty: nothing.

        Shapes, types and counts are right already. `aggregate.max_norm` bounds what is not bounded here.
        """
        return ""

    def weighs(self) -> Mapping[str, float] | None:
        """What each array of an upload weighs in the norm to which `[ldp]` clips what a user sends.

        None: it is no sum over users of vectors that histories make, so that clipping would bound nothing.
        """
        return None

    def denoised(self, sums: Mapping[str, Tensor], users: int) -> Mapping[str, Tensor]:
        """What the server makes of sums over so many users with noise in them, so that `fold` can use them."""
        return sums

    def typical_length(self, items: float) -> int:
        """Open lengths in the upload of a user with so many items, for the count of bytes."""
        return round(items)


@dataclass(frozen=True)
class Phase:
    """Rounds that do the same.

    Attributes:
        name: shown to devices, which answer by it.
        rounds: how many.
        task: what they do.
        participants: share of the users that take part; None: the run's.
        flags: settings that the phase's messages carry to the devices.
    """

    name: str
    rounds: int
    task: Task
    participants: float | None = None
    flags: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Schedule:
    """The phases of a run, one after the other."""

    phases: tuple[Phase, ...]

    def at(self, round_: int) -> tuple[Phase, int]:
        """The phase of a round, and the round's number in it, from 1. Rounds after the last are the last one's."""
        for phase in self.phases:
            if round_ <= phase.rounds:
                return phase, round_
            round_ -= phase.rounds
        return self.phases[-1], self.phases[-1].rounds + round_

    def named(self, name: str) -> Phase:
        """The first phase of a name.

        Raises:
            ValueError: there is none: server and client have different configurations.
        """
        for phase in self.phases:
            if phase.name == name:
                return phase
        raise ValueError(f"the message asks for the phase '{name}', which this method does not have")
