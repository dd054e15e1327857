"""Noise that only its user can draw: AES in counter mode, keyed by the operating system's entropy.

Where a user touched nothing, its upload is the noise itself, so the server sees many draws. Those of a generator that
is not made for secrecy would give away its state, and with it the noise on the rows that matter. The draws are
float64; that the set of reachable floating-point numbers depends on what is hidden (Mironov 2012) is not countered.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from torch import Tensor

from fedem_flwr.engine.contribution import TrainResult
from fedem_flwr.engine.parts import Parts

Kind = Literal["laplace", "gaussian"]
_KEY = 16  # bytes
_TAIL = 38.0


def fresh_key() -> bytes:
    """A key that was never used."""
    return os.urandom(_KEY)


def seeded_key(seed: int, round_: int, user: int) -> bytes:
    """A key that everybody can work out: for tests."""
    return hashlib.shake_128(f"ldp:{seed}:{round_}:{user}".encode()).digest(_KEY)


class NoiseStream:
    """One user's noise in one round.

    Args:
        key: of this user and round alone.
        kind: the distribution. scale: Laplace's b, or the Gaussian's standard deviation.
    """

    def __init__(self, key: bytes, kind: Kind, scale: float) -> None:
        self._stream = Cipher(AES(key), CTR(bytes(16))).encryptor()
        self.kind, self.scale = kind, scale

    def draw(self, *shape: int) -> Tensor:
        """Independent draws, float64; other ones at every call."""
        count = int(np.prod(shape, dtype=np.int64))
        drawn = self._laplace(count) if self.kind == "laplace" else self._gaussian(count)
        return drawn.mul_(self.scale).view(shape)

    def _bits(self, count: int) -> Tensor:
        room = bytearray(8 * count + _KEY - 1)  # as much as the cipher wants to see
        self._stream.update_into(bytes(8 * count), room)
        return torch.from_numpy(np.frombuffer(room, "<i8", count))

    def _laplace(self, count: int) -> Tensor:
        bits = self._bits(count)
        size = _uniform(bits).log_()
        return size.mul_((bits & 1).mul_(2).sub_(1))  # the lowest bit is not in the uniform number

    def _gaussian(self, count: int) -> Tensor:
        """Box and Muller's transform."""
        first, second = _uniform(self._bits(count + count % 2)).view(2, -1)
        radius, angle = first.log_().mul_(-2).sqrt_(), second.mul_(2 * math.pi)
        return torch.cat([angle.cos().mul_(radius), angle.sin().mul_(radius)])[:count]


def _uniform(bits: Tensor) -> Tensor:
    """In (0, 1), of the 53 highest of 64 bits; never 0 or 1."""
    return (bits >> 11).double().add_(0.5).mul_(2.0**-53).add_(0.5)


def deviation(kind: Kind, scale: float, users: int) -> float:
    """Standard deviation of the sum of so many users' draws."""
    return scale * math.sqrt(users * (2 if kind == "laplace" else 1))


def farthest(kind: Kind, scale: float, users: int) -> float:
    """What the sum of so many users' draws stays below, but for a chance of 10⁻¹⁶ at most.

    Of a Gaussian 9 deviations. Laplace's E exp(λx) = 1 / (1 − b²λ²) is at most exp(2 b²λ²) up to λ = 1 / (√2 b), so
    by Chernoff's bound P(|Σ| > x) ≤ 2 exp(−L) for the x below, with L = 38.
    """
    if kind == "gaussian":
        return 9 * deviation(kind, scale, users)
    return scale * max(math.sqrt(8 * users * _TAIL), 2 * math.sqrt(2) * _TAIL)


class Noising:
    """Adds noise to what a cohort's training gave, for one user after the other, over everything that goes up.

    Args:
        parts: those that go up, by name. result: whose sums and users' own values are changed.
        items: m. count: see `engine.clipping.Clipping`.
    """

    def __init__(self, parts: Parts, result: TrainResult, items: int, count: float) -> None:
        self.parts, self.result, self.items, self.count = parts, result, items, count
        by_row = [name for name, part in parts.items() if part.up == "sum" and part.by_row]
        self.counts = {name: torch.zeros_like(result.sums[name].weight) for name in by_row}

    def add(self, place: int, noise: NoiseStream) -> None:
        """The noise of the user at a place of the result."""
        for name, part in self.parts.items():
            shape = (self.items, part.width) if part.axis == "item" else (part.width,)
            drawn = noise.draw(*shape)
            if part.up == "each":
                values = self.result.each[name]
                values[place] += drawn.to(values)
                continue
            total = self.result.sums[name].total
            weight = float(self.result.samples[place]) if part.mean == "samples" and not part.by_row else 1.0
            total.add_(drawn.to(total), alpha=weight)
            if name in self.counts:
                self.counts[name] += noise.draw(self.items).to(total) / self.count

    def finish(self, start: Mapping[str, Tensor]) -> None:
        """Let noise on counts count: a sum of rows holds the row that training began with for each of its counts.

        Args:
            start: (m, width) of the parts in `counts`; of one that goes up as a change it is not looked at.
        """
        for name, counts in self.counts.items():
            found = self.result.sums[name]
            found.weight += counts
            if not self.parts[name].change:
                found.total += counts.unsqueeze(1) * start[name].to(found.total)
