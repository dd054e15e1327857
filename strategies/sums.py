"""Methods whose server needs sums over users only: uploads are added up as they come, and then folded.

FedMF (row means), fedials (Newton-like steps) and everything else whose parts go up as sums. For the server's memory it
makes no difference how many nodes there are.
"""

from __future__ import annotations

import numpy as np

from fedem_flwr.contract import Gathered
from fedem_flwr.contract.adding import Adder
from fedem_flwr.contract.fields import Named

from .method import MethodStrategy

_NOBODY = np.empty(0, dtype=np.int64)


class SumsStrategy(MethodStrategy):
    """One model for all."""

    def clear(self) -> None:
        """See the base."""
        self._adder = Adder(self.phase.task.added())

    def receive(self, arrays: Named, participants: np.ndarray, trained: int) -> None:
        """Add a cohort's sums to the round's."""
        self._adder.add(self.phase.task.opened(arrays))
        self._trained += trained

    def gathered(self) -> Gathered:
        """The sums."""
        users = int((self.samples > 0).sum())
        return Gathered(self.done + 1, self.step, self._adder.sums, {}, _NOBODY, self._trained, users, self.samples)
