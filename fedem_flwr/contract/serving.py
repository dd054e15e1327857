"""What a device can do for its user where the shared parts of a model stay as they are: nothing, or adapt.

Under ``temporal`` a model is trained up to an instant, and users come with a history that has gone on since, or that
begins after it. Methods that solve users from histories need nothing of this. Where clients keep a trained state, a
device can train its private parts on the history (`AdaptedScorer`), or score with what it has (`StaleScorer`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.contract.alone import Alone
from fedem_flwr.contract.asked import Asked, Device
from fedem_flwr.contract.merging import Merged
from fedem_flwr.contract.method import Method
from fedem_flwr.contract.training import LocalTraining
from fedem_flwr.engine.block import Block
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.downloads import Download, Downloads
from fedem_flwr.engine.epochs import Step
from fedem_flwr.engine.gradients import GradientStep
from fedem_flwr.engine.history import History, IntArray
from fedem_flwr.engine.optimizer import Update
from fedem_flwr.engine.parts import Part
from fedem_flwr.engine.samples import TrainingItems
from fedem_flwr.evaluation.cohort import Scorer
from fedem_flwr.evaluation.ranking import Part as Asking
from fedem_flwr.evaluation.scorers import CohortScorer, HistoryScorer

Way = Literal["solve", "adapted", "stale"]


def scorer_of(method: Method, device: Device, asked: Asked) -> Scorer:
    """What a node's users are scored with, whatever they are scored from."""
    found = method.scorer(device, asked)
    if device.open_scored is None or isinstance(found, HistoryScorer):
        return found
    trained = np.asarray(device.cohort.data.counts().cpu()) > 0
    if way_of(method) == "adapted" and isinstance(found, CohortScorer):
        downloads = method.downloads(device, asked)
        return AdaptedScorer(found, trained, downloads, device.scored, method, method.config.temporal.adapt_rounds)
    return StaleScorer(found, trained)


def way_of(method: Method) -> Way:
    """What devices do before they are asked under ``temporal``, as far as the method can."""
    if method.stateless:
        return "solve"
    return "adapted" if method.config.temporal.device == "adapted" and adapts(method) else "stale"


def adapts(method: Method) -> bool:
    """Whether there is something that a client trains by itself and keeps to itself, and that it is scored with.

    A method with a scorer of its own (tables of groups, aligned ones) scores with more than its parts.
    """
    trains = any(isinstance(phase.task, LocalTraining) for phase in method.phases())
    plainly = type(method).scorer in (Method.scorer, Merged.scorer)
    return trains and plainly and bool(Frozen(method).updates(1))


def serves_newcomers(method: Method) -> bool:
    """Whether devices of users who were never in training can adapt: they have a shared table to do so with."""
    return adapts(method) and not any(part.kept and part.up == "each" for part in method.parts().values())


def newcomers_scorer(
    method: Method, history: History, place: torch.device, message: Callable[[Device], Asked]
) -> AdaptedScorer:
    """What scores users who were never in training, from their histories; no user's draws depend on the others.

    Args:
        message: what their device would be sent.
    """
    k = len(history.users)
    history = replace(history, users=np.zeros(k, np.int64))
    cohort = method.cohort(_items(history, np.arange(k), place), method.initial_state(k, place))
    side = Device(history.users, history.items, place, True, lambda: history, lambda: cohort)
    downloads, rounds = method.downloads(side, message(side)), method.config.temporal.adapt_rounds
    nobody = np.zeros(k, np.bool_)
    return AdaptedScorer(CohortScorer(cohort, downloads), nobody, downloads, history, method, rounds)


class Frozen(Alone):
    """A method of which only the private parts are trained.

    A part that clients keep a copy of (their own item table) is as it was scored with last.
    """

    engine: str

    def __init__(self, method: Method) -> None:
        super().__init__(method)
        self.engine = "reference" if method.engine == "reference" else "torch"  # compiled functions train all parts

    def parts(self) -> Mapping[str, Part]:
        """What users have of their own, and what is shared; nothing goes up."""
        return {
            name: replace(part, private=part.stays, up="none", kept=False, touched=False, change=False)
            for name, part in self.method.parts().items()
        }

    def updates(self, round_: int) -> Sequence[Update]:
        """Those of private parts."""
        private = {name for name, part in self.method.parts().items() if part.private and not part.group}
        found = []
        for update in self.method.updates(round_):
            rates = {name: rate for name, rate in update.rates.items() if name in private}
            by = update.by if isinstance(update.by, str) else {name: update.by[name] for name in rates}
            pulls = {name: pull for name, pull in update.pulls.items() if name in private}
            if rates:
                found.append(replace(update, rates=rates, by=by, pulls=pulls))
        return found

    def products(self, round_: int) -> None:
        """None: compiled functions train all parts."""

    def step(self, block: Block, round_: int) -> Step:
        """The updates that are left."""
        return GradientStep(self, block, round_)


@dataclass(frozen=True)
class StaleScorer:
    """Users as training left them; who was not in training is not served: all of its scores are NaN.

    Attributes:
        trained: (k,) who was.
    """

    base: Scorer
    trained: np.ndarray

    @property
    def users(self) -> np.ndarray:
        """(k,) codes of the users."""
        return self.base.users

    @property
    def device(self) -> torch.device:
        """Where the scores are computed."""
        return self.base.device

    @property
    def by_part(self) -> bool:
        """No: there is one target."""
        return False

    def counts(self) -> np.ndarray:
        """(k,) training interactions of each user."""
        return self.base.counts()

    def blocks(self) -> Sequence[Tensor]:
        """See `evaluation.cohort.Scorer`."""
        return self.base.blocks()

    def scores(self, who: Tensor, part: Asking) -> tuple[Tensor, Tensor | None]:
        """(k', m), and ρ."""
        scores, rho = self.base.scores(who, part)
        return _without(scores, ~self.trained[np.asarray(who.cpu())]), rho


@dataclass(frozen=True)
class AdaptedScorer(StaleScorer):
    """Users whose private parts are first trained on what they are scored from, the shared ones as they are.

    Whoever was in training goes on from its state, everybody else begins with the initial values. Who has no history,
    or neither a table of its own nor a shared one, is not served.

    Attributes:
        downloads: of the shared parts. history: of all users here. rounds: local ones.
    """

    base: CohortScorer
    downloads: Downloads
    history: History
    method: Method
    rounds: int

    def scores(self, who: Tensor, part: Asking) -> tuple[Tensor, Tensor | None]:
        """(k', m); what was merged is not seen any more."""
        position = np.asarray(who.cpu())
        cohort, nobody = self._adapted(who, position)
        shared, blank = self._shared(who), self.history.counts()[position] == 0
        with_data = torch.from_numpy(np.flatnonzero(~blank)).to(who.device)
        with torch.enable_grad():  # whoever asks for scores needs no gradients
            for round_ in range(1, self.rounds + 1 if len(with_data) else 0):
                cohort.train(with_data, shared, round_)
        return _without(cohort.scores(cohort.everyone, shared)[0], nobody | blank), None

    def _adapted(self, who: Tensor, position: IntArray) -> tuple[Cohort, np.ndarray]:
        """Users with copies of what is their own; and (k',) who lacks something."""
        base, parts = self.base.cohort, Frozen(self.method).parts()
        seen, _ = base.seen(who, self.base.downloads)
        nobody = np.zeros(len(position), np.bool_)
        new = torch.from_numpy(~self.trained[position]).to(who.device)
        state = {}
        for name, part in parts.items():
            if part.group:
                state[name] = base.state[name]
            elif part.own:
                state[name] = seen[name].clone()
                kept = self.method.parts()[name].kept
                if kept and name in self.downloads and bool(new.any()):
                    fresh = who[new]
                    got = self.downloads[name].received[fresh]
                    state[name][new.nonzero().squeeze(1)[got]] = self.downloads[name].of(fresh[got])
                    nobody |= _lacking(new, got)
                elif kept:
                    nobody |= np.asarray(new.cpu())
        return Cohort(_items(self.history, position, who.device), state, Frozen(self.method)), nobody

    def _shared(self, who: Tensor) -> Downloads:
        parts = Frozen(self.method).parts()
        wanted = {name: download for name, download in self.downloads.items() if not parts[name].stays}
        return {name: Download(download.values, download.slot[who]) for name, download in wanted.items()}


def _items(history: History, position: IntArray, place: torch.device) -> TrainingItems:
    """Histories of some users as training items; negatives are none of their items."""
    histories = [
        np.asarray(history.values[history.offsets[at] : history.offsets[at + 1]], np.int64) for at in position.tolist()
    ]
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in histories])]).astype(np.int64)
    values = np.concatenate([*histories, np.empty(0, np.int64)])
    ordered = np.concatenate([*map(np.sort, histories), np.empty(0, np.int64)])
    users = np.asarray(history.users[position], np.int64)
    tensors = [torch.from_numpy(each).to(place) for each in (users, offsets, values, offsets, ordered)]
    return TrainingItems(tensors[0], history.items, *tensors[1:])


def _without(scores: Tensor, nobody: np.ndarray) -> Tensor:
    return scores.masked_fill(torch.from_numpy(nobody).to(scores.device).unsqueeze(1), torch.nan)


def _lacking(new: Tensor, got: Tensor) -> np.ndarray:
    """(k',) the new users who received nothing."""
    lacking = new.clone()
    lacking[new] = ~got
    return np.asarray(lacking.cpu())
