"""What the strategies of methods share: phases, settings that are tuned, the named state, and what goes down.

A subclass says how uploads are taken in: added up (`strategies.sums`) or one by one (`strategies.tables`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from torch import Tensor

from fedem_flwr.config import Config
from fedem_flwr.contract import Field, Gathered, Method, State, Tuning
from fedem_flwr.contract.fields import Named, fault_of
from fedem_flwr.contract.finding import method_of
from fedem_flwr.contract.phases import NothingMade, Sender
from fedem_flwr.errors import FedemError, InputError
from fedem_flwr.evaluation.cohort import Sums
from fedem_flwr.evaluation.settings_grid import SettingsGrid
from fedem_flwr.messages.uploads import Failure, problem_of

from .base import CohortStrategy
from .declared import Declared

_DONE = "rounds-done"
# Numbers that pass every check and that no fold can use.
_NOTHING: Any = (FedemError, ArithmeticError, np.linalg.LinAlgError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]
_LARGEST = float(torch.finfo(torch.float32).max)


class MethodStrategy(CohortStrategy):
    """Carries out a method's phases on the server.

    Attributes:
        TAKES_EACH: whether it takes in users' own values.
        method: the method. kept: its state, as after `done` rounds.
    """

    TAKES_EACH: ClassVar[bool] = False

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        self.method: Method = method_of(config, items)
        self.schedule, self.tunings = self.method.schedule, self.method.tunings()
        self._fits()
        known = config.temporal.chosen  # by a first training
        self.grids = {
            tuning.name: SettingsGrid(tuning.name, tuning.rows, known.get(tuning.name, tuning.first))
            for tuning in self.tunings
        }
        self.stateless = self.method.stateless
        self.kept: State = self.method.start()
        self._measured: dict[str, list[float]] = {}  # of grids, with the model before this round's step
        self._sent: tuple[int, Named] = (-1, {})  # what goes down to everybody, and after how many rounds it was made
        self._begin(0)

    def _fits(self) -> None:
        """Raise InputError where this strategy, or the configuration, is not for the method."""
        fields = [field for phase in self.schedule.phases for field in phase.task.fields().values()]
        if not any(field.each for field in fields):
            if self.config.aggregate.fraction < 1:
                raise InputError(
                    "aggregate.fraction chooses among tables of single clients, and this method uploads sums: "
                    "set run.participants instead"
                )
        elif not self.TAKES_EACH:
            named = f"{type(self.method).__name__} uploads users' own values"
            raise InputError(f'{named}: give it STRATEGY = "fedem_flwr.strategies.tables:TablesStrategy"')

    def _begin(self, done: int) -> None:
        self.done, self._sent = done, (-1, {})
        self.phase, self.step = self.schedule.at(done + 1)
        self.upload = self.phase.name
        self._scored = True  # whether what is sent next will be scored with
        self._trained = 0
        self.clear()

    @abstractmethod
    def clear(self) -> None:
        """Forget the uploads of a round."""

    @abstractmethod
    def gathered(self) -> Gathered:
        """The round's uploads."""

    # Who takes part, and what they are told.

    def participants(self, round_: int) -> np.ndarray:
        """(p,) the users that train in a round; a phase may have a share of its own, and a method may choose."""
        if (
            self._drawn[0] != round_
            and (chosen := self.method.participants(self.kept, self.samples, round_)) is not None
        ):
            self._drawn = round_, chosen
        share = self.schedule.at(round_)[0].participants
        return self.drawn(round_, self.config.run.participants if share is None else share)

    def evaluates(self, round_: int) -> bool:
        """Also where the method says so, and where a grid is due."""
        due = any(self._tries(tuning, round_) for tuning in self.tunings if not tuning.compares)
        return due or self.method.evaluates(round_) or super().evaluates(round_)

    def settings(self, round_: int) -> dict[str, int | float | str]:
        """The phase's and the method's, those that are tuned, and which grids are to be evaluated on receipt."""
        told: dict[str, int | float | str] = {**self.schedule.at(round_)[0].flags}
        told |= self.method.settings(self.kept, self.users)
        done = max(round_ - 1, self.done)
        for tuning in self.tunings:
            told |= tuning.idle(done) or self.grids[tuning.name].chosen
            tries = round_ > 1 and self._tries(tuning, round_ - 1)
            told[f"tune-{tuning.name}"] = ",".join(map(str, self._grid(tuning).wanted())) if tries else ""
        return told

    def _grid(self, tuning: Tuning) -> SettingsGrid:
        """A grid, searched from coarse to fine where rounds are evaluated on a sample of the users."""
        grid = self.grids[tuning.name]
        grid.staged = self.sampled > 0 and not tuning.compares
        return grid

    def _tries(self, tuning: Tuning, round_: int) -> bool:
        """Whether settings are tried with a round's model: where that is due, and once more after a coarse search."""
        grid = self._grid(tuning)
        if "validation" not in self.config.parts:  # everything is chosen already
            return False
        return tuning.due(round_) or (grid.refining and round_ == grid.round + 1)

    def declared(self, settings: Mapping[str, object], *, groups: int | None = None) -> Declared:
        """Also the grids that are due."""
        told = {name: str(settings.get(f"tune-{name}", "")) for name in self.grids}
        asked = {name: [int(row) for row in rows.split(",")] for name, rows in told.items() if rows}
        found = super().declared(settings, groups=groups)
        return found.with_grids(asked) if groups is None else found

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterator[Message]:
        """What users are scored with goes down where the last round's model is evaluated."""
        self._scored, self._sent = server_round > 1 and self.evaluates(server_round - 1), (-1, {})
        self._trained = 0
        self.clear()
        return super().configure_train(server_round, arrays, config, grid)

    def download(self, users: np.ndarray) -> Named:
        """What devices train with, and score with where they do; the rest is empty. The same for everybody."""
        if self._sent[0] != self.done:
            needed = {*self.phase.task.needs(), *(self.method.scored_with(self.done) if self._scored else ())}
            kept = {name: self.kept[name] for name in self.method.sends() if name in self.kept}
            self._sent = self.done, {name: _plain(x if name in needed else x[:0]) for name, x in kept.items()}
        return self._sent[1]

    def training(self, arrays: Named) -> Named:
        """Without what users are only scored with."""
        idle = {*self.method.scored_with(self.done)} - {*self.phase.task.needs()}
        return {name: values[:0] if name in idle else values for name, values in arrays.items()}

    # What comes in.

    def expected(self, uploaders: np.ndarray) -> dict[str, Field]:
        """What the phase asks for."""
        fields = self.phase.task.fields()
        return {name: _filled(field, len(uploaders)) for name, field in fields.items()}

    def typical(self) -> dict[str, Field]:
        """See the base."""
        length = self.phase.task.typical_length(self.method.typical_items(self.samples))
        fields = self.phase.task.fields().items()
        return {name: field.filled(1 if field.each and not field.counted else length) for name, field in fields}

    def problem(self, arrays: Named, uploaders: np.ndarray, participants: np.ndarray) -> str:
        """Shapes and types, then values, then what the task knows of them, and of what its users can send at all."""
        fields, limit, task = self.expected(uploaders), self.method.max_norm, self.phase.task
        samples, users = self.samples[participants], len(participants)
        return (
            problem_of(arrays, fields, limit)
            or fault_of(arrays, fields, users, limit)
            or task.problem(arrays, users, int(samples.sum()))
            or task.impossible(arrays, self.kept, Sender(self.done + 1, samples, int(self.samples.max(initial=0))))
        )

    def combine(self, round_: int) -> None:
        """The task's step; what it makes of nothing is recorded, and the run goes on."""
        gathered = replace(self.gathered(), measured=self._measured)
        if gathered.trained or len(gathered.uploaders):  # else every node held its sum back
            try:
                self.kept = self._sound(self.phase.task.fold(self.kept, gathered))
            except NothingMade as error:
                self.failures.append(Failure(round_, "server", str(error)))
            except _NOTHING as error:
                self.fail(round_, "server", f"nothing was made of the uploads: {error}")
        self._begin(round_)

    def _sound(self, state: State) -> State:
        """A state that may be sent, and kept in a checkpoint.

        Raises:
            NothingMade: numbers that are none, or larger than any that a node may send.
        """
        sent = self.method.sends()
        for name, values in state.items():
            if values is self.kept.get(name) or not values.is_floating_point() or not values.numel():
                continue
            size = float(values.abs().max())  # of what is not a number: not a number
            if not size <= (self.method.max_norm if name in sent else _LARGEST):
                raise NothingMade(f"'{name}' would have an entry of {size:.3g}, and stays as it was")
        return state

    def settled(self, round_: int, sums: Sums) -> Sums:
        """Choose among the grids' sums, which are of the previous round's model."""
        self._measured = {}
        for grid in self.grids.values():
            before, sums = len(sums), grid.take(sums, round_ - 1)
            if len(sums) < before and grid.round == round_ - 1:
                self._measured[grid.name] = list(grid.means)
        return sums

    # What is kept and shown.

    def table(self) -> Tensor | None:
        """(m, d) the one item table for all; None where there is none."""
        return self.method.table(self.kept)

    def caveats(self) -> list[str]:
        """The method's, and that of nodes with a single user."""
        return [*self.method.caveats(), *super().caveats()]

    def diagnostics(self) -> dict[str, object]:
        """Of the method, and the grids: that of the fold-in, and that of the components' weights."""
        shown = {{"fold-in": "tuning", "order": "mixing"}.get(name, name): g.shown() for name, g in self.grids.items()}
        return {**shown, **self.method.diagnostics(self.kept)}

    def state(self) -> Named:
        """The method's state, what was chosen, and how far the run is."""
        named = {name: values.numpy() for name, values in self.kept.items()}
        chosen: Mapping[str, np.ndarray] = {k: v for grid in self.grids.values() for k, v in grid.state().items()}
        return {**named, **chosen, _DONE: np.array([self.done])}

    def restore(self, state: Named) -> None:
        """See `state`."""
        chosen = {key for grid in self.grids.values() for key in grid.state()}
        names = state.keys() - chosen - {_DONE}
        self.kept = {name: torch.from_numpy(np.array(state[name])) for name in names}
        for grid in self.grids.values():
            grid.restore(state)
        self._begin(int(state[_DONE][0]))


def _filled(field: Field, uploaders: int) -> Field:
    return field.filled(uploaders) if field.each and not field.counted else field


def _plain(values: Tensor) -> np.ndarray:
    return (values.float() if values.is_floating_point() else values).numpy()
