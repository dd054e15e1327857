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
from fedem_flwr.engine.held_out import hold_out, without
from fedem_flwr.engine.merge import ADAPTER, Merge
from fedem_flwr.engine.merging import as_gate
from fedem_flwr.engine.optimizer import Update
from fedem_flwr.engine.parts import Part
from fedem_flwr.errors import InputError
from fedem_flwr.evaluation.cohort import Scorer
from fedem_flwr.evaluation.merged import OwnScorer
from fedem_flwr.evaluation.scorers import CohortScorer
from fedem_flwr.models.adapter import Adapter


class Merged(Method):
    """Put before a method's class, it gives its clients a table of their own. See `plugged`.

    Attributes:
        MERGES_ALONE: whether it knows what to do where `merge.mode` is "none".
    """

    MERGES_ALONE: ClassVar[bool] = False

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        mode = config.merge.mode
        if mode == "none" and not self.MERGES_ALONE:
            raise InputError('merge.mode = "none" lets every client train alone: that is the method local-only')
        if self.sharpness and self.merge.in_batches:
            raise InputError(
                f"gradients.sharpness = {self.sharpness:g}: sharpness-aware gradients do not go through the merge in "
                'every batch: set merge.schedule = "paper", or the sharpness to 0'
            )
        if self.merged not in self.sends():
            raise InputError(f"merge.mode = '{mode}': clients are not sent '{self.merged}'; {_OTHERWISE}")

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
        kept = {self.merged: replace(parts[self.merged], kept=True)}
        return {**parts, **kept, **({ADAPTER: theta} if self.merge.learned else {})}

    def updates(self, round_: int) -> Sequence[Update]:
        """Of Θ there are none: it takes its steps alone."""
        found = super().updates(round_)
        return [replace(u, rates={n: rate for n, rate in u.rates.items() if n != ADAPTER}) for u in found]

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
        return Cohort(without(cohort.data, held), cohort.state, self, gate)

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
        return kind
    own = {"__doc__": kind.__doc__, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (Merged, kind), own)
