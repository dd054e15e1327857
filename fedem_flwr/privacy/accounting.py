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
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from fedem_flwr.config import Config
from fedem_flwr.engine.clipping import sensitivity
from fedem_flwr.errors import InputError

_ORDERS = np.concatenate([1 + np.geomspace(1e-3, 1, 300), np.linspace(2.1, 64, 400), np.geomspace(65, 1e6, 200)])


@dataclass(frozen=True)
class Spent:
    """The privacy that one user has spent, who sent the most.

    Attributes:
        releases: uploads of that user.
        round, composed: ε of one upload, and of all, each with δ.
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
    ratio = ldp.multiplier / sensitivity(ldp.order, told=ldp.quantile is not None)  # noise a unit of sensitivity
    if ldp.noise == "gaussian":
        return Spent(releases, gaussian(ratio, 1, ldp.delta), gaussian(ratio, releases, ldp.delta), ldp.delta)
    paper = None
    if config.gradients.clip and ldp.clip and share is not None:
        paper = 2 * share * config.local.lr_item * config.gradients.clip / (ldp.multiplier * ldp.clip)
    pure, composed = 1 / ratio, laplace(ratio, releases, ldp.delta)
    exact = composed > 0.99 * releases * pure  # then the sum of the rounds' is as good, and holds without δ
    return Spent(releases, pure, releases * pure if exact else composed, 0.0 if exact else ldp.delta, paper)


def gaussian(ratio: float, releases: int, delta: float) -> float:
    """ε of so many uploads with Gaussian noise of `ratio` times the l2 sensitivity."""
    if not releases:
        return 0.0
    rdp = _accountant().compute_rdp(q=1.0, noise_multiplier=ratio, steps=releases, orders=_ORDERS)
    return _converted(np.asarray(rdp), delta)


def laplace(ratio: float, releases: int, delta: float) -> float:
    """ε of so many uploads with Laplace's noise of `ratio` times the l1 sensitivity (Mironov 2017, Proposition 6)."""
    if not releases:
        return 0.0
    a, shift = _ORDERS, 1 / ratio
    towards = np.log(a / (2 * a - 1)) + (a - 1) * shift
    away = np.log((a - 1) / (2 * a - 1)) - a * shift
    return _converted(releases * np.logaddexp(towards, away) / (a - 1), delta)


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
