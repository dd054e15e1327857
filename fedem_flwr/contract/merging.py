"""Elastic merging as a plug-in (FedEM, AAAI 2026): clients keep a table of their own, which `[merge]` merges.

Any method whose clients download an item table, train it and send it up can run so: `merge.mode` alone turns it on. The
table's part becomes one of which clients keep a copy, Θ comes beside it as a private part, and what the client
downloads is merged with its own table where it would have replaced it. Everything else is the method's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

import torch

from fedem_flwr.config import Config
from fedem_flwr.contract.asked import Asked, Device
from fedem_flwr.contract.method import Method
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.downloads import Downloads
from fedem_flwr.engine.held_out import hold_out, without
from fedem_flwr.engine.merge import ADAPTER, Merge
from fedem_flwr.engine.merging import as_gate
from fedem_flwr.engine.optimizer import Update
from fedem_flwr.engine.parts import Part, State
from fedem_flwr.engine.samples import TrainingItems
from fedem_flwr.engine.touched import SentRows, TouchedCohort
from fedem_flwr.errors import InputError
from fedem_flwr.evaluation.cohort import Scorer
from fedem_flwr.evaluation.merged import OwnScorer
from fedem_flwr.evaluation.scorers import CohortScorer
from fedem_flwr.models.adapter import Adapter
from fedem_flwr.models.rows import Rows, ragged


class Merged(Method):
    """Put before a method's class, it gives its clients a table of their own. See `plugged`.

    Attributes:
        MERGES_ALONE: whether it knows what to do where `merge.mode` is "none".
        FOLDS_ROWS: whether its server makes tables for single users of the rows that they have touched.
    """

    MERGES_ALONE: ClassVar[bool] = False
    FOLDS_ROWS: ClassVar[bool] = False

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        mode = config.merge.mode
        if mode == "none" and not self.MERGES_ALONE:
            raise InputError('merge.mode = "none" lets every client train alone: that is the method local-only')
        if (sharp := config.gradients.sharp) and self.merge.in_batches:
            raise InputError(
                f"{sharp}: sharpness-aware gradients do not go through the merge in "
                'every batch: set merge.schedule = "paper", or the sharpness to 0'
            )
        if self.merged not in self.sends():
            raise InputError(f"merge.mode = '{mode}': clients are not sent '{self.merged}'; {_OTHERWISE}")
        if self.touched and (problem := self._needs_whole()):
            raise InputError(f"merge.table = 'touched': {problem}; set merge.table = \"whole\"")

    @property
    def touched(self) -> bool:
        """Whether clients keep the rows of their table that they trained, and no others; see `engine.touched`."""
        return self.config.merge.table == "touched"

    def _needs_whole(self) -> str:
        """Why clients must keep whole tables; empty: they need not."""
        part, name = super().parts()[self.merged], type(self).__name__
        if self.config.merge.mode == "none":
            return "with merge.mode = 'none' nothing is received that could stand where nothing was trained"
        if part.up == "each" and not self.FOLDS_ROWS:
            return f"the server of {name} makes its tables of whole ones"
        if part.up == "each" and self.config.ldp.active:
            return "[ldp] guards whole tables: noise on trained rows would still say which they are"
        if part.up == "sum" and not part.by_row:
            return "whole tables are added up (aggregate.weights = 'rows' adds up trained rows)"
        if self.EVALUATED == "local":
            return f"users of {name} are scored with their own table as training left it"
        if any(self.merged in update.pulls for update in self.updates(1)):
            return f"{name} moves rows that no sample touches"
        return "diagnostics.bottleneck looks at whole tables" if self.config.diagnostics.bottleneck else ""

    @cached_property
    def merged(self) -> str:
        """The item part that is merged: `merge.part`, or the first that goes up.

        Raises:
            InputError: there is none.
        """
        parts, wish = super().parts(), self.config.merge.part
        up = {n: part for n, part in parts.items() if part.axis == "item" and not part.private and part.up != "none"}
        # A change, or a weight by distance, is measured from the table that everybody was sent.
        found = [name for name, part in up.items() if not part.change and part.mean != "distance"]
        if wish and wish not in found:
            raise InputError(f"merge.part = '{wish}': item tables that go up are {', '.join(found) or 'none'}")
        if not found:
            mode, name = self.config.merge.mode, type(self).__name__
            raise InputError(f"merge.mode = '{mode}': clients of {name} send no item table up; {_OTHERWISE}")
        return wish or found[0]

    @cached_property
    def merge(self) -> Merge:
        """From `[merge]`."""
        merge, width = self.config.merge, super().parts()[self.merged].width
        adapter = Adapter(width, merge.hidden, merge.bias)
        times = merge.epochs, merge.lr, merge.gate_data, merge.hold_out
        return Merge(merge.mode, merge.rho, adapter, merge.schedule, *times)

    def parts(self) -> Mapping[str, Part]:
        """Also Θ, where it is learnt; and the merged part stays with its client."""
        parts, adapter = super().parts(), self.merge.adapter
        theta = Part("model", adapter.parameters, private=True, start=adapter.initial)
        kept = {self.merged: replace(parts[self.merged], kept=True, touched=self.touched)}
        return {**parts, **kept, **({ADAPTER: theta} if self.merge.learned else {})}

    def updates(self, round_: int) -> Sequence[Update]:
        """Of Θ there are none: it takes its steps alone."""
        found = super().updates(round_)
        return [replace(u, rates={n: rate for n, rate in u.rates.items() if n != ADAPTER}) for u in found]

    def sends(self) -> Sequence[str]:
        """Also the rows of tables for single users, where these are no whole ones."""
        part = self.parts()[self.merged]
        return [*super().sends(), *(ragged(self.merged) if part.touched and part.up == "each" else ())]

    def downloads(self, device: Device, asked: Asked) -> Downloads:
        """Also these rows, beside the table for all."""
        found, name = super().downloads(device, asked), self.merged
        part = self.parts()[name]
        if name not in found or not (part.touched and part.up == "each"):
            return found
        rows = Rows.of({key: asked.tensor(key) for key in ragged(name)}, name)
        place = torch.full((len(device.users),), -1, dtype=torch.int64, device=asked.place)
        at = torch.from_numpy(device.positions(asked.arrays["receivers"])).to(asked.place)
        place[at] = torch.arange(len(at), device=asked.place)
        return {**found, name: SentRows(found[name].values, found[name].slot, rows, place)}

    def cohort(self, data: TrainingItems, state: State) -> Cohort:
        """Users with their data and their state."""
        return TouchedCohort(data, state, self) if self.touched else super().cohort(data, state)

    def scored_with(self, done: int) -> Sequence[str]:
        """Also what is merged, so that ρ is seen wherever users are evaluated."""
        return list(dict.fromkeys([*super().scored_with(done), *self.sends()]))

    def training_cohort(self, device: Device) -> Cohort:
        """Without the held-out items where Θ is trained on them. A repeated pair counts once there."""
        cohort, count = super().training_cohort(device), self.merge.held_out
        if not count:
            return cohort
        held = hold_out(device.history, count, self.seed, by_time=device.has_times)
        real = torch.from_numpy(held.items < self.items)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), real.sum(1).cumsum(0)])
        items = torch.from_numpy(held.items)[real]
        gate = as_gate(cohort.data, offsets.to(cohort.device), items.to(cohort.device))
        return type(cohort)(without(cohort.data, held), cohort.state, self, gate)

    def scorer(self, device: Device, asked: Asked) -> Scorer:
        """The method's; ρ is seen also where users are scored with their own table as training left it."""
        found = super().scorer(device, asked)
        if self.EVALUATED == "merged" or not isinstance(found, CohortScorer):
            return found
        return OwnScorer(found.cohort, found.downloads, received=self.downloads(device, asked).get(self.merged))


_OTHERWISE = 'set merge.mode = "replace"'


def plugged(kind: type[Method], config: Config) -> type[Method]:
    """The class that carries out a method under `[merge]`: with tables of clients' own unless they are replaced."""
    if config.merge.mode == "replace" or issubclass(kind, Merged):
        if config.merge.table == "touched" and not issubclass(kind, Merged):
            name = kind.__name__
            raise InputError(
                f"merge.table = 'touched': clients of {name} keep no table of their own; set merge.mode = \"elastic\""
            )
        return kind
    own = {"__doc__": kind.__doc__, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (Merged, kind), own)
