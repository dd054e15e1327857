"""What the noise of `[ldp]` is worth: ε of a round, and of all that a user has sent, by an accountant of others.

The accountant is Opacus's, of Rényi differential privacy (Mironov 2017; conversion by Balle et al. 2020). A round's
upload is two vectors' worth of sensitivity away from any other upload of that user: see `engine.clipping.sensitivity`.

Laplace's noise in many coordinates is no more revealing than in one with the same l1 sensitivity: its Rényi divergence
is the logarithm of a sum of exponentials of the shift, so convex in it and 0 at 0, and such functions of shifts that
add up to s are together at most that of s.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np

from fedem_flwr.config import Config
from fedem_flwr.config.ldp_section import LdpConfig
from fedem_flwr.engine.clipping import sensitivity
from fedem_flwr.errors import InputError

MOST = 1 << 30
"""Uploads of a user, beyond which a limit is none."""
_ORDERS = np.concatenate([1 + np.geomspace(1e-3, 1, 300), np.linspace(2.1, 64, 400), np.geomspace(65, 1e6, 200)])


@dataclass(frozen=True)
class Spent:
    """The privacy that one user has spent, who sent the most.

    Attributes:
        releases: uploads of that user.
        round, composed: ε of one upload (Laplace's without δ), and of all, with δ.
        delta: δ; 0 where ε holds without exception.
        paper: the paper's ε a round, S / δ with S = 2 p η Z; None where Z is not set, or the noise is not Laplace's.
    """

    releases: int
    round: float
    composed: float
    delta: float
    paper: float | None = None


def spent(config: Config, releases: int, share: float | None = None) -> Spent | None:
    """What `[ldp]` costs a user who sends so many uploads; None without noise.

    Args:
        share: p_u of the user with the most interactions, for the paper's ε.

    Raises:
        InputError: the accountant is not installed.
    """
    ldp = config.ldp
    if ldp.noise == "none":
        return None
    paper = None
    if ldp.noise == "laplace" and config.gradients.clip and ldp.clip and share is not None:
        paper = 2 * share * config.local.lr_item * config.gradients.clip / (ldp.multiplier * ldp.clip)
    mechanism = Mechanism.of(ldp)
    one = composed(ldp, 1)[0] if mechanism.pure == math.inf else mechanism.pure  # which holds without δ
    return Spent(releases, one, *composed(ldp, releases), paper)


@dataclass(frozen=True)
class Mechanism:
    """Noise on an upload.

    Attributes:
        noise: its kind. ratio: its scale, for a unit of sensitivity in the kind's norm.
    """

    noise: str
    ratio: float

    @classmethod
    def of(cls, ldp: LdpConfig) -> Mechanism:
        """That of a run."""
        return cls(ldp.noise, ldp.multiplier / sensitivity(ldp.order, told=ldp.quantile is not None))

    @property
    def pure(self) -> float:
        """ε of one upload without δ; infinite where there is none."""
        return 1 / self.ratio if self.noise == "laplace" else math.inf


def composed(ldp: LdpConfig, releases: int) -> tuple[float, float]:
    """ε of so many uploads of one user with a run's noise, and its δ; 0 where ε holds without exception."""
    return composed_of({Mechanism.of(ldp): releases}, ldp.delta)


def composed_of(uploads: Mapping[Mechanism, int], delta: float) -> tuple[float, float]:
    """The same of uploads with different noise, of several runs."""
    made = {one: count for one, count in uploads.items() if count}
    if not made:
        return 0.0, delta
    with np.errstate(all="ignore"):  # next to no noise: infinite, and said where it is asked for
        rdp = np.sum([count * _rdp(one) for one, count in made.items()], axis=0)
        found = _converted(rdp, delta)
    pure = sum(count * one.pure for one, count in made.items())
    exact = found > 0.99 * pure  # then the sum of the rounds' is as good, and holds without δ
    return (pure, 0.0) if exact else (found, delta)


def check_finite(ldp: LdpConfig, rounds: int) -> None:
    """Find out whether noise is worth anything: in one upload, and in all that a user may send in a run.

    Raises:
        InputError: an ε that is no number, or the accountant is not installed.
    """
    if ldp.noise == "none":
        return
    whole = min(rounds, allowed(ldp) or rounds)
    for releases, what in ((1, "one upload"), (whole, f"a user's uploads in {rounds:,} rounds")):
        if not math.isfinite(composed(ldp, releases)[0]):
            raise InputError(
                f"ldp.multiplier = {ldp.multiplier:g} is so little {ldp.noise} noise that the ε of {what} is infinite: "
                "raise it"
            )


@lru_cache(maxsize=16)
def allowed(ldp: LdpConfig) -> int | None:
    """The most uploads of one user whose composed ε is not above `ldp.epsilon_limit`; None: there is no limit.

    Raises:
        InputError: not one is, or the accountant is not installed.
    """
    limit = ldp.epsilon_limit
    if limit is None or ldp.noise == "none":
        return None
    if (one := composed(ldp, 1)[0]) > limit:
        raise InputError(
            f"ldp.epsilon_limit = {limit:g} is below the ε of one upload, {one:.4g}: nobody could send any; raise it, "
            "or ldp.multiplier"
        )
    least, most = 1, 2
    while most < MOST and composed(ldp, most)[0] <= limit:
        least, most = most, 2 * most
    while most - least > 1:  # `least` is within the limit, `most` is not
        middle = (least + most) // 2
        least, most = (middle, most) if composed(ldp, middle)[0] <= limit else (least, middle)
    return least


@lru_cache(maxsize=64)
def _rdp(one: Mechanism) -> np.ndarray:
    """Rényi divergences of one upload by order; of Laplace's noise by Proposition 6 of Mironov 2017."""
    if one.noise == "gaussian":
        return np.asarray(_accountant().compute_rdp(q=1.0, noise_multiplier=one.ratio, steps=1, orders=_ORDERS))
    a, shift = _ORDERS, 1 / one.ratio
    towards = np.log(a / (2 * a - 1)) + (a - 1) * shift
    away = np.log((a - 1) / (2 * a - 1)) - a * shift
    return np.asarray(np.logaddexp(towards, away) / (a - 1))


def _converted(rdp: np.ndarray, delta: float) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that another order might be a little tighter
        epsilon = float(_accountant().get_privacy_spent(orders=_ORDERS, rdp=rdp, delta=delta)[0])
    return max(0.0, epsilon) if not math.isnan(epsilon) else math.inf


def _accountant() -> Any:
    try:
        return import_module("opacus.accountants.analysis.rdp")
    except ImportError:
        raise InputError(
            "[ldp] with noise needs an accountant, which says what ε it comes to: pip install 'fedem-flwr[privacy]'"
        ) from None
