"""What tasks under `[ldp]` share: the limit C, the noise of each user, and how C follows its quantile."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING

from fedem_flwr.config.ldp_section import LdpConfig
from fedem_flwr.contract.asked import Asked
from fedem_flwr.contract.phases import Gathered
from fedem_flwr.engine.noise import Kind, NoiseStream, deviation, farthest, fresh_key, seeded_key
from fedem_flwr.engine.parts import State

if TYPE_CHECKING:
    from fedem_flwr.contract.method import Method

LIMIT = "ldp-clip"
"""C in the server's state, and among a message's settings, where it follows a quantile."""
BELOW = "ldp-below"
"""Of an upload: how many users' are no longer than C, less one half each, with noise."""


class Guarding:
    """Mixed into a task that clips what each user sends to C, and adds noise to it."""

    method: Method

    @cached_property
    def _ldp(self) -> LdpConfig:
        return self.method.config.ldp

    @property
    def _noisy(self) -> bool:
        return self._ldp.noise != "none"

    @property
    def _kind(self) -> Kind:
        return "laplace" if self._ldp.noise == "laplace" else "gaussian"

    def _asked_limit(self, asked: Asked) -> float:
        """C, on a device.

        Raises:
            ValueError: it is no norm, or would bound nothing that noise is to hide.
        """
        limit = _positive(asked.number(LIMIT) if self._ldp.quantile else self._ldp.clip)
        if self._noisy and math.isinf(limit):
            raise ValueError("the server asks for noise without a norm that uploads are clipped to")
        return limit

    def _noise(self, round_: int, user: int, limit: float) -> NoiseStream:
        """A user's own, in a round."""
        key = seeded_key(self.method.seed, round_, user) if self._ldp.seeded else fresh_key()
        return NoiseStream(key, self._kind, self._ldp.multiplier * limit)

    def _limit(self, state: State) -> float:
        """C, on the server."""
        return float(state[LIMIT][0]) if self._ldp.quantile else _positive(self._ldp.clip)

    def _deviation(self, limit: float, users: int) -> float:
        """Of the sum of so many users' noise on one number."""
        return deviation(self._kind, self._ldp.multiplier * limit, users) if self._noisy else 0.0

    def _farthest(self, limit: float, users: int) -> float:
        """What that sum stays below; see `engine.noise.farthest`."""
        return farthest(self._kind, self._ldp.multiplier * limit, users) if self._noisy else 0.0

    def _followed(self, new: State, state: State, gathered: Gathered) -> State:
        """The new state; with C after the share of users whose uploads were no longer, where it follows a quantile."""
        ldp = self._ldp
        if not ldp.quantile or not gathered.trained:
            return new
        share = min(1.0, max(0.0, float(gathered.sums[BELOW][0]) / gathered.trained + 0.5))
        return {**new, LIMIT: state[LIMIT] * math.exp(-ldp.quantile_rate * (share - ldp.quantile))}

    def _untold(self, told: float, limit: float, users: int) -> str:
        """What is wrong with what is said of how many uploads were short; empty if so many users can say that."""
        if abs(told) <= users / 2 + self._farthest(limit, users) / limit + 1e-5:
            return ""
        return f"'{BELOW}' is {told:.3g}: {users} users cannot say that"


def _positive(limit: float | None) -> float:
    """C, as it came with a message or from the configuration; none is inf.

    Raises:
        ValueError: it is no norm, or noise scaled by it would be none.
    """
    found = math.inf if limit is None else float(limit)
    if not found > 0:
        raise ValueError(f"the server asks for uploads clipped to {found:g}: it must be more than 0")
    return found
