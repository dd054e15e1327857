"""Numbers in lanes: exponentials, what cross-entropy needs of them, Adam."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedem_flwr.engine.fused.compiled import inner
from fedem_flwr.engine.fused.lanes import (
    LANES,
    Lanes,
    every,
    larger,
    load,
    magnitude,
    nearest,
    power_of_two,
    root,
    store,
    where_positive,
)
from fedem_flwr.engine.optimizer import BETA_1, BETA_2, EPSILON

_f: Any = np.float32
_LOWEST = _f(-87.0)  # exp of less is no normal number
_PER_LOG_2, _LOG_2_HIGH, _LOG_2_LOW = _f(1.44269504), _f(0.693359375), _f(-2.12194440e-4)
_E2, _E3, _E4, _E5, _E6, _E7 = (
    _f(5.0000001201e-1),
    _f(1.6666665459e-1),
    _f(4.1665795894e-2),
    _f(8.3334519073e-3),
    _f(1.3981999507e-3),
    _f(1.9875691500e-4),
)
_ONE, _TWO, _HALF = _f(1), _f(2), _f(0.5)
_L3, _L5, _L7, _L9, _L11 = _f(1 / 3), _f(1 / 5), _f(1 / 7), _f(1 / 9), _f(1 / 11)
_B1, _B2, _C1, _C2 = _f(BETA_1), _f(BETA_2), _f(1 - BETA_1), _f(1 - BETA_2)
_EPSILON = _f(EPSILON)


@inner
def fill(array: np.ndarray, count: int, value: Any) -> None:
    """Put a number at the first places; a slice would take the compiler a second."""
    for at in range(count):
        array[at] = value


@inner
def exp_of_negative(x: Lanes) -> Lanes:
    """exp(x) of x <= 0 to 2e-7 of itself (the polynomial of Cephes); of less than −87 what it is there."""
    x = larger(x, every(_LOWEST))
    n = nearest(x * every(_PER_LOG_2))
    r = x - n * every(_LOG_2_HIGH) - n * every(_LOG_2_LOW)
    p = every(_E7) * r + every(_E6)
    p = p * r + every(_E5)
    p = p * r + every(_E4)
    p = p * r + every(_E3)
    p = p * r + every(_E2)
    return (p * (r * r) + r + every(_ONE)) * power_of_two(n)


@inner
def sigmoid_of(x: Lanes, small: Lanes) -> Lanes:
    """σ(x), given exp(−|x|); small values keep their relative precision."""
    one = every(_ONE)
    return where_positive(x, one, small) / (one + small)


@inner
def softplus_of(x: Lanes, small: Lanes) -> Lanes:
    """log(1 + exp(x)), given exp(−|x|), to 2e-7 of itself: the series of the area tangent, of at most 1/3."""
    s = small / (every(_TWO) + small)
    q = s * s
    p = every(_L11) * q + every(_L9)
    p = p * q + every(_L7)
    p = p * q + every(_L5)
    p = p * q + every(_L3)
    return larger(x, every(_f(0))) + every(_TWO) * (p * (q * s) + s)


@inner
def sigmoid(x: Lanes) -> Lanes:
    """σ(x)."""
    return sigmoid_of(x, exp_of_negative(every(_f(0)) - magnitude(x)))


@inner
def adam_scales(rate: float, steps: int) -> tuple[Any, Any]:
    """What a step of Adam multiplies the first moment with, and the root of the second."""
    return _f(rate / (1 - BETA_1**steps)), _f(1 / np.sqrt(1 - BETA_2**steps))


@inner
def adam(
    values: np.ndarray, first: np.ndarray, second: np.ndarray, at: int, gradient: Lanes, scales: tuple[Any, Any]
) -> None:
    """One step of sixteen numbers from `at` on, in place."""
    m = every(_B1) * load(first, at) + every(_C1) * gradient
    v = every(_B2) * load(second, at) + every(_C2) * (gradient * gradient)
    store(first, at, m)
    store(second, at, v)
    step = every(scales[0]) * m / (root(v) * every(scales[1]) + every(_EPSILON))
    store(values, at, load(values, at) - step)


@inner
def adam_all(
    values: np.ndarray, first: np.ndarray, second: np.ndarray, gradient: np.ndarray, scales: tuple[Any, Any]
) -> None:
    """One step of (P,), whole vectors long, in place; the gradient is 0 afterwards."""
    for at in range(0, len(values), LANES):
        adam(values, first, second, at, load(gradient, at), scales)
        store(gradient, at, every(_f(0)))
