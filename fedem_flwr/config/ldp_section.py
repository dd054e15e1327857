"""The section of a configuration that says what becomes of each user's upload before anything is added up."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedem_flwr.config.section import Section


class LdpConfig(Section):
    """Local differential privacy: a user's upload, changes and counts together, is clipped to C, and noise is added.

    Symbols are those of the FedEM paper's Table 4 (S, δ, Z); Z is `gradients.clip`. See docs/privacy.md.
    """

    noise: Literal["none", "laplace", "gaussian"] = Field(
        "none", description="over everything that a user sends, rows that it has not touched and counts, too"
    )
    clip: float | None = Field(
        None,
        gt=0,
        description="C: larger uploads are scaled down to this norm, l1 for Laplace's noise, else l2; default: not",
    )
    quantile: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of users whose uploads C is to leave as they are; C follows it from `clip` on",
    )
    quantile_rate: float = Field(0.2, gt=0, le=2, description="η of C: C · exp(−η (share − quantile)) after a round")
    multiplier: float = Field(
        1.0, gt=0, description="the paper's δ is this times C: the scale, or the deviation, of noise"
    )
    count: float = Field(1.0, gt=0, description="what one row's count of a user weighs beside its changes in that norm")
    gram: float = Field(1.0, gt=0, description="what a user's d × d matrix (`fedials`) weighs in that norm")
    delta: float = Field(1e-5, gt=0, lt=1, description="probability with which the composed ε need not hold")
    epsilon_limit: float | None = Field(
        None,
        gt=0,
        description="composed ε that no user may pass in the run: its node counts, and lets no more of its uploads go; "
        "default: not",
    )
    seeded: bool = Field(
        False, description="noise from `run.seed`, which hides nothing, for tests; networked nodes refuse it"
    )

    @property
    def order(self) -> int:
        """Of the norm: what the noise's sensitivity is measured in."""
        return 1 if self.noise == "laplace" else 2

    @property
    def active(self) -> bool:
        """Whether uploads go another way than without this section."""
        return self.noise != "none" or any(x is not None for x in (self.clip, self.quantile, self.epsilon_limit))
