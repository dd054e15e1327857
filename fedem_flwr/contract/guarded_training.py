"""Local differential privacy as a plug-in (FedEM, AAAI 2026, Table 4): what each user sends is clipped and noised.

Any method whose clients send up what local training has made of its parts can run so: `[ldp]` alone turns it on. On the
device, `engine.clipping` shortens a user's whole upload to C, and `engine.noise` adds to every number of it, touched or
not, before it is added to others'. The server gets sums as before, of which counts are no whole numbers any more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedem_flwr.contract.asked import Asked, Device
from fedem_flwr.contract.fields import Field, Named
from fedem_flwr.contract.guarding import BELOW, Guarding
from fedem_flwr.contract.phases import Gathered, Sender
from fedem_flwr.contract.training import LocalTraining, along, weight_name
from fedem_flwr.engine.clipping import Clipping
from fedem_flwr.engine.cohort import Cohort
from fedem_flwr.engine.contribution import TrainResult
from fedem_flwr.engine.noise import Noising
from fedem_flwr.engine.parts import Part, State
from fedem_flwr.pulse import beat

_ROUNDED = 1e-5  # of sums of float32, as a share of their norm


class GuardedTraining(Guarding, LocalTraining):
    """A task that trains locally, whose uploads are clipped and noised. See `guarded_task`."""

    def _weight_field(self, part: Part) -> Field:
        """Counts of rows are fractions here."""
        return Field((self.method.items,)) if part.by_row else super()._weight_field(part)

    def fields(self) -> dict[str, Field]:
        """Also what C follows; users' own values may be as far off as noise takes them, see `impossible`."""
        found = {n: replace(f, bounded=f.bounded and not self._noisy) for n, f in super().fields().items()}
        return {**found, BELOW: Field((1,))} if self._ldp.quantile else found

    def trained(self, cohort: Cohort, who: Tensor, device: Device, asked: Asked) -> TrainResult:
        """The device's side: clipped, and with noise from entropy of its own."""
        ldp, downloads = self._ldp, self.method.downloads(device, asked)
        limit = self._asked_limit(asked)
        for name, download in downloads.items():
            if not bool(download.values.isfinite().all()):
                raise ValueError(f"the server sent a '{name}' that is not finite: no noise would hide what comes of it")
            if asked.round > 1 and not bool(download.received[who].all()):
                self._require_start(name)
        for name in self._up.keys() - downloads.keys() if asked.round > 1 else ():
            self._require_start(name)
        stages = self.method.stages()
        if limit < math.inf:
            stages = [*stages, Clipping(cohort.parts, limit, ldp.order, ldp.count)]
        result = cohort.train(who, downloads, asked.round, sums=True, stages=stages)
        told = ((result.factor == 1).double() - 0.5).sum().view(1)
        if self._noisy:
            noising = Noising(self._up, result, self.method.items, ldp.count)
            for place, user in enumerate(cohort.data.users[who].tolist()):
                stream = self._noise(asked.round, user, limit)
                noising.add(place, stream)
                told += stream.draw(1).to(told) / limit
                beat()
            noising.finish({name: cohort.known(name, who[:1], downloads)[0] for name in noising.counts})
        return replace(result, extra={BELOW: told}) if ldp.quantile else result

    def _require_start(self, name: str) -> None:
        """Whole tables go up as they are: what the server does not send of one, it would not know the start of.

        Raises:
            ValueError: the part is such a one.
        """
        part = self._up.get(name)
        if part is not None and part.up == "sum" and part.stays and not part.by_row:
            raise ValueError(f"the server did not send '{name}', and asks for all of it: nothing would bound that")

    def problem(self, arrays: Named, users: int, samples: int) -> str:
        """Weights of whole tensors, which are no secret; the rest is in `impossible`."""
        public = {n: part for n, part in self._up.items() if part.up == "sum" and not part.by_row}
        for name, part in public.items():
            weight, most = int(arrays[weight_name(name)][0]), users
            if part.mean == "samples":
                most = samples * (1 + self.method.local.negatives)
            if not 0 <= weight <= most:
                return f"'{weight_name(name)}' is {weight}, not between 0 and {most}"
        return ""

    def impossible(self, arrays: Named, state: State, sender: Sender) -> str:
        """Changes that are longer, and counts that are larger, than clipping and noise let so many users send."""
        users, limit = len(sender.samples), self._limit(state)
        one, all_of_them = (self._farthest(limit, count) for count in (1, users))
        for name, part in self._up.items():
            if part.up == "each":
                squares = np.square(arrays[name].astype(np.float64)).sum(tuple(range(1, arrays[name].ndim)))
                size = math.sqrt(float(squares.max(initial=0.0)))
                most = self.method.max_norm + one * math.sqrt(arrays[name][:1].size)
            else:
                total, weight = arrays[name].astype(np.float64), arrays[weight_name(name)].astype(np.float64)
                start = np.zeros(()) if part.change else self._start(name, part, state).double().numpy()
                size = float(np.linalg.norm(total - along(weight, total) * start))
                behind = float(users) if part.by_row else float(weight[0])  # whole tensors' noise is weighted, too
                spread = all_of_them if part.by_row else behind * one
                most = behind * limit + spread * math.sqrt(total.size) + _ROUNDED * float(np.linalg.norm(total))
                most += 0.0 if part.by_row else behind * float(np.linalg.norm(start))  # decay shortens every row
                slack = all_of_them / self._ldp.count
                if part.by_row and (weight.min() < -slack - _ROUNDED or weight.max() > users + slack + _ROUNDED):
                    ends = f"{-slack:.3g} and {users + slack:.3g}"
                    return f"'{weight_name(name)}' has an entry outside {ends}: clipping and noise take none so far"
            if size > most:
                return f"'{name}' is {size:.3g} from its start, more than {most:.3g}: clipping lets none so far"
        return self._untold(float(arrays[BELOW][0]), limit, users) if self._ldp.quantile else ""

    def fold(self, state: State, gathered: Gathered) -> State:
        """The method's, of sums whose counts are none too small; then C goes after its quantile."""
        sums = dict(gathered.sums)
        for name, part in self._up.items() if self._noisy else ():
            if part.up == "sum" and part.by_row:
                sums |= self._floored(name, part, state, gathered)
        return self._followed(super().fold(state, replace(gathered, sums=sums)), state, gathered)

    def _floored(self, name: str, part: Part, state: State, gathered: Gathered) -> Mapping[str, Tensor]:
        """Row sums as of at least one user, or as many as the noise of a count makes up: below that, it is noise."""
        total, weight = gathered.sums[name], gathered.sums[weight_name(name)]
        noise = self._deviation(self._limit(state), gathered.trained) / self._ldp.count
        floor = torch.full_like(weight, max(1.0, noise))
        missing = (floor - weight).clamp(min=0).unsqueeze(1)
        start = 0.0 if part.change else self._start(name, part, state).double()
        return {name: total + missing * start, weight_name(name): torch.maximum(weight, floor)}

    def _start(self, name: str, part: Part, state: State) -> Tensor:
        """What users began the round with: what the server sends of the part, or its initial values."""
        if name in state and name in self.method.sends():
            return state[name]
        return part.initial(name, self.method.items, self.method.seed)
