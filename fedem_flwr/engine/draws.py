"""Where a client's draws come from: the run's seed, which the server knows, or a secret of the node.

What the run's seed keys is the same in every runtime, but the server can draw it, too: it takes the negatives away from
the rows that a user touched, and has the positives. What a secret keys it cannot foresee.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedem_flwr.randomness import keyed_bits, secret_bits


@dataclass(frozen=True)
class Draws:
    """The key of a client's draws.

    Attributes:
        seed: the run's.
        secret: 16 bytes that only the node knows; empty: the seed keys everything.
        prefix: of every purpose, so that two sets of samples of one round are drawn apart.
    """

    seed: int
    secret: bytes = field(default=b"", repr=False)
    prefix: str = ""

    def bits(
        self, purpose: str, before: tuple[int, ...], users: Tensor, count: int, after: tuple[int, ...] = ()
    ) -> Tensor:
        """(k, count) uniform 63-bit integers of users (k,); `before` and `after` are their other coordinates."""
        purpose = self.prefix + purpose
        if self.secret:
            return secret_bits(self.secret, purpose, (*before, *after), users, count)
        position = torch.arange(count, device=users.device)
        return keyed_bits(self.seed, purpose, *before, users[:, None], position, *after)

    @property
    def own_seed(self) -> int:
        """A seed that the server does not know, where there is a secret: for draws that never show themselves."""
        if not self.secret:
            return self.seed
        return int(secret_bits(self.secret, "seed", (), torch.zeros(1, dtype=torch.int64), 1))
