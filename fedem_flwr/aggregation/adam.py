"""The server's Adam (FedAdam, Reddi et al. 2021) on mean gradients of a round's participants."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_BETA1, _EPSILON = 0.9, 1e-8


@dataclass(frozen=True)
class ServerAdam:
    """A vector or table with its moments; steps make new ones.

    Attributes:
        value, first, second: of the same shape, float32. steps: taken so far.
    """

    value: Tensor
    first: Tensor
    second: Tensor
    steps: int = 0

    @classmethod
    def start(cls, value: Tensor) -> ServerAdam:
        """From a value, with moments of zero."""
        return cls(value, torch.zeros_like(value), torch.zeros_like(value))

    def state(self, name: str) -> dict[str, Tensor]:
        """Named tensors: the value under `name` itself, moments and number of steps beside it."""
        steps = torch.tensor([self.steps])
        return {name: self.value, f"{name}-first": self.first, f"{name}-second": self.second, f"{name}-steps": steps}

    @classmethod
    def of(cls, name: str, state: Mapping[str, Tensor]) -> ServerAdam:
        """From `state`."""
        return cls(state[name], state[f"{name}-first"], state[f"{name}-second"], int(state[f"{name}-steps"]))

    def step(self, gradient: Tensor, rate: float, beta2: float = 0.98) -> ServerAdam:
        """One step with bias correction."""
        steps = self.steps + 1
        first = torch.lerp(self.first, gradient, 1 - _BETA1)
        second = torch.lerp(self.second, gradient.square(), 1 - beta2)
        size = (second / (1 - beta2**steps)).sqrt() + _EPSILON  # ε beside what is corrected: means may be that small
        return ServerAdam(self.value - rate / (1 - _BETA1**steps) * first / size, first, second, steps)


def cosine_rate(peak: float, step: int, steps: int) -> float:
    """Learning rate of step 1 … steps: a linear warm-up over a twentieth of them (at most 100), then a cosine.

    It ends at a twentieth of the peak.
    """
    warm = min(1.0, step / max(1, min(100, steps // 20)))
    return peak * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps)))
