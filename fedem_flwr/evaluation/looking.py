"""Which rounds' models are looked at, and on whom."""

from __future__ import annotations

from fedem_flwr.config import Config
from fedem_flwr.evaluation.cohort import Sums
from fedem_flwr.evaluation.sample import is_candidate, sample_size


class LooksAtRounds:
    """Mixed into strategies."""

    config: Config
    users: int
    stateless: bool

    def evaluates(self, round_: int) -> bool:
        """Whether a round's model is evaluated; the last round's is in any case."""
        return round_ % self.config.evaluation.every == 0

    def everybody(self, round_: int) -> bool:
        """Whether a round's model is evaluated on everybody where other rounds' are on a sample of the users.

        Where clients keep nothing a round can come back, and the best one does; else only some rounds can be reported.
        """
        return not self.stateless and is_candidate(round_, self.config.run.rounds, self.config.evaluation.every)

    def settled(self, round_: int, sums: Sums) -> Sums:
        """A round's sums without those that are no metrics of it; asked before its uploads are combined."""
        return sums

    @property
    def sampled(self) -> int:
        """How many users rounds are evaluated on; 0: all."""
        return sample_size(self.config, self.users)
