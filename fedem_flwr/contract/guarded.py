"""Local differential privacy as a plug-in (FedEM, AAAI 2026, Table 4): what each user sends is clipped and noised.

Any method whose clients send up what local training has made of its parts can run so, or sums that say what they weigh
(`fedials`): `[ldp]` alone turns it on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from fedem_flwr.config import Config
from fedem_flwr.contract.guarded_sums import GuardedSums
from fedem_flwr.contract.guarded_training import GuardedTraining
from fedem_flwr.contract.guarding import LIMIT
from fedem_flwr.contract.merging import Merged
from fedem_flwr.contract.method import Method
from fedem_flwr.contract.phases import Phase, Task
from fedem_flwr.contract.training import LocalTraining
from fedem_flwr.engine.parts import State
from fedem_flwr.errors import InputError


class Guarded(Method):
    """Put before a method's class, it guards what its users send. See `guarded`."""

    def __init__(self, config: Config, items: int) -> None:
        super().__init__(config, items)
        if reason := self._objection():
            raise InputError(f"[ldp] with {config.method.name}: {reason}")

    def _objection(self) -> str:
        """Why an ε would say nothing here, in words; empty if it does."""
        ldp, up = self.config.ldp, {n: part for n, part in self.parts().items() if part.up != "none"}
        if not self.federated:
            return "nothing goes up, so there is nothing to guard"
        tasks = [phase.task for phase in super().phases()]
        if any(task.weighs() is None and not (isinstance(task, LocalTraining) and up) for task in tasks):
            return (
                "it sends sums that are no changes of trained parts (groups, pairs of items, similarities), which "
                "clipping changes does not bound: ε would be infinite; use --method fedials or --method fedmf, say"
            )
        if ldp.clip is None:
            quantile = "ldp.epsilon_limit" if ldp.quantile is None else f"ldp.quantile = {ldp.quantile:g}"
            what = f'ldp.noise = "{ldp.noise}"' if ldp.noise != "none" else quantile
            return f"{what} without ldp.clip: nothing bounds what a user sends, so ε would be infinite; set ldp.clip"
        if ldp.noise == "none" and ldp.epsilon_limit is not None:
            return (
                f"ldp.epsilon_limit = {ldp.epsilon_limit:g} without noise: every upload's ε is infinite; set ldp.noise"
            )
        weighted = [name for name, part in up.items() if part.mean == "distance" and part.up == "sum"]
        if weighted:
            return f"'{weighted[0]}' goes up weighted by its own change, whose square no clipping of changes bounds"
        whole = [name for name, part in up.items() if part.up == "sum" and part.axis == "item" and not part.by_row]
        if isinstance(self, Merged) and self.merged in whole:
            return (
                f"clients keep a '{self.merged}' of their own and send all of it, also rows that the round did not "
                'touch, which clipping the round\'s changes does not bound; set aggregate.weights = "rows"'
            )
        return ""

    def phases(self) -> Sequence[Phase]:
        """The method's."""
        return [replace(phase, task=guarded_task(phase.task, self)) for phase in super().phases()]

    def start(self) -> State:
        """Also C, where it moves."""
        ldp = self.config.ldp
        return {**super().start(), **({LIMIT: torch.tensor([float(ldp.clip or 0.0)])} if ldp.quantile else {})}

    def settings(self, state: State, users: int) -> Mapping[str, float]:
        """Also C, where it moves."""
        told = {LIMIT: float(state[LIMIT][0])} if self.config.ldp.quantile else {}
        return {**super().settings(state, users), **told}

    def diagnostics(self, state: State) -> dict[str, object]:
        """Also C, where it moves."""
        shown = {"ldp": {"clip": float(state[LIMIT][0])}} if LIMIT in state else {}
        return {**super().diagnostics(state), **shown}


def guarded(kind: type[Method], config: Config) -> type[Method]:
    """The class that carries out a method under `[ldp]`."""
    if not config.ldp.active or issubclass(kind, Guarded):
        return kind
    own = {"__doc__": kind.__doc__, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (Guarded, kind), own)


def guarded_task(task: Task, method: Method) -> Task:
    """A task of local training, or one that says what its uploads weigh, guarded; any other as it is."""
    if task.weighs() is not None:
        return GuardedSums(task, method)
    if not isinstance(task, LocalTraining) or isinstance(task, GuardedTraining):
        return task
    kind = type(type(task).__name__, (GuardedTraining, type(task)), {"__doc__": type(task).__doc__})
    found: Task = object.__new__(kind)
    vars(found).update(vars(task))
    return found
