"""How many bits the numbers in messages have."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedem_flwr.config.section import Section


class MessagesConfig(Section):
    """Bits of the numbers in messages, of every method; not of stock Flower strategies.

    What users are scored with, and what is served, is what has crossed.
    """

    bits_down: Literal[32, 16, 8] = Field(
        32, description="of a number that goes down: 32; 16, half precision; 8, integers with a scale for each 64"
    )
    bits_up: Literal[32, 16, 8] = Field(
        32,
        description="of one that goes up. 8: rounded either way by a keyed draw, so that sums over nodes are right on "
        "average. Numbers that are checked to the digit (counts, p pᵀ, sums of pairs) keep theirs",
    )

    @property
    def narrow(self) -> bool:
        """Whether any number has fewer than it is computed with."""
        return min(self.bits_down, self.bits_up) < 32
