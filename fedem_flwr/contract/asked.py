"""A round on the device's side, as a method sees it: what was asked, and whose data and state there are."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.downloads import Download
from fedem_flwr.engine.history import History, IntArray

Setting = bool | bytes | float | int | str
Made = TypeVar("Made")


def as_tensor(array: np.ndarray, device: torch.device | None = None) -> Tensor:
    """A tensor over an array's memory. Arrays out of messages are read-only, and nothing here writes to them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor if device is None else tensor.to(device)


@dataclass(frozen=True)
class Device:
    """The users of a node, their data and their private state.

    Attributes:
        users: (k,) codes in the run, consecutive. items: m.
        place: where tensors live.
        has_times: whether histories have an order.
        open_history, open_cohort: read the data and the state when first asked for.
        open_scored: reads what users are scored from, where that is not what they train on; else None.
        newest: (k,) validation items, where they count as history when the test item is scored; else None.
        smallest_sum: users that must be behind whatever is summed up and sent.
        secret: of the node, which keys its users' draws; see `engine.draws.Draws`.
        admits: whether a sum over fewer than the participants, by position, goes up; `Task.least_items` says of which
            kind it is.
    """

    users: IntArray
    items: int
    place: torch.device
    has_times: bool
    open_history: Callable[[], History]
    open_cohort: Callable[[], Cohort]
    newest: IntArray | None = None
    smallest_sum: int = 1
    secret: bytes = field(default=b"", repr=False)
    admits: Callable[[int, IntArray], bool] = lambda _, __: True
    open_scored: Callable[[], History] | None = None

    @cached_property
    def history(self) -> History:
        """What the users have interacted with in training, oldest first."""
        return self.open_history()

    @cached_property
    def scored(self) -> History:
        """What the users are scored from: with `open_scored` empty for those who are not asked for anything."""
        return self.history if self.open_scored is None else self.open_scored()

    @cached_property
    def cohort(self) -> Cohort:
        """The users with their private state, as it was after the round before."""
        return self.open_cohort()

    def positions(self, users: np.ndarray) -> IntArray:
        """(k',) where users stand in this cohort.

        Raises:
            ValueError: a user that is not hosted here, or one that is named twice.
        """
        found = np.asarray(users, np.int64) - (self.users[0] if len(self.users) else 0)
        if len(found) and (found.min() < 0 or found.max() >= len(self.users)):
            raise ValueError("this node was asked for a user that it does not host")
        if len(np.unique(found)) < len(found):
            raise ValueError("this node was asked for a user more than once")
        return found


@dataclass(frozen=True)
class Asked:
    """What a message asks of a device.

    Attributes:
        round: from 1. phase: name of the phase that the run is in.
        who: (k',) positions of the participants in the cohort. uploaders: (a,) codes of those whose own tensors go up.
        arrays: what was downloaded, by name. settings: numbers and words that came with it.
        place: where tensors live. has_times: whether histories have an order.
    """

    round: int
    phase: str
    who: IntArray
    uploaders: np.ndarray
    arrays: Mapping[str, np.ndarray]
    settings: Mapping[str, Setting]
    place: torch.device
    has_times: bool
    _made: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, name: str, make: Callable[[], Made]) -> Made:
        """What `make` gives, made once a message."""
        if name not in self._made:
            self._made[name] = make()
        found: Made = self._made[name]
        return found

    def tensor(self, name: str) -> Tensor:
        """A downloaded array, where this process computes."""
        return as_tensor(self.arrays[name], self.place)

    def has(self, name: str) -> bool:
        """Whether something was downloaded under this name."""
        return len(self.arrays.get(name, ())) > 0

    def number(self, name: str) -> float:
        """A setting that is a number."""
        return float(self.settings[name])

    def of(self, who: IntArray) -> Asked:
        """The same, asked of other participants."""
        return replace(self, who=who)

    def download(self, name: str, device: Device, dims: int) -> Download | None:
        """What was downloaded of a shared part; None if nothing was.

        Args:
            dims: axes of one value, which is for everybody; with one more there are several, and `receivers` says whom
                each is for.
        """
        if not self.has(name):
            return None
        if self.arrays[name].ndim == dims:
            return Download.for_all(self.tensor(name), len(device.users))
        slot = torch.full((len(device.users),), -1, dtype=torch.int64, device=self.place)
        at = device.positions(self.arrays["receivers"])
        slot[torch.from_numpy(at).to(self.place)] = torch.arange(len(at), device=self.place)
        return Download(self.tensor(name), slot)
