"""Small networks of linear layers with ReLU between; each client's weights lie flat, all together as (k, P)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fedem_flwr.randomness import keyed_uniform


@dataclass(frozen=True)
class Mlp:
    """A shape; the weights themselves are always passed in.

    Attributes:
        widths: from the inputs to the outputs; two of them are one linear layer.
    """

    widths: tuple[int, ...]

    @property
    def size(self) -> int:
        """P: weights and biases of all layers."""
        return sum((n_in + 1) * n_out for n_in, n_out in pairwise(self.widths))

    def initial(self, seed: int, name: str, bias: float = 0.0) -> Tensor:
        """(P,) torch's Linear default, U(±1/√fan_in), keyed by the seed and the name; `bias` is added to the last."""
        parts = []
        for layer, (n_in, n_out) in enumerate(pairwise(self.widths)):
            uniform = keyed_uniform(seed, f"{name}/layer-{layer}", torch.arange((n_in + 1) * n_out))
            parts.append((2 * uniform - 1) / math.sqrt(n_in))
        parts[-1][-1] += bias
        return torch.cat(parts).to(torch.float32)

    def layers(self, theta: Tensor) -> list[tuple[Tensor, Tensor]]:
        """View (k, P) as [(weight (k, out, in), bias (k, 1, out)), ...]; writing to the views writes to theta."""
        views, start = [], 0
        for n_in, n_out in pairwise(self.widths):
            weight = theta[:, start : start + n_in * n_out].view(-1, n_out, n_in)
            start += n_in * n_out
            views.append((weight, theta[:, start : start + n_out].unsqueeze(1)))
            start += n_out
        return views

    def forward(self, theta: Tensor, x: Tensor) -> Tensor:
        """(k, b, out) of inputs (k, b, in)."""
        return self._behind_first(theta, _linear(x, *self.layers(theta)[0]))

    def scores(self, theta: Tensor, user: Tensor, rows: Tensor) -> Tensor:
        """(k, t) of the inputs [p; q]: user vectors p (k, d) and rows q (k, t, d'), which need not be put side by side.

        Where one table and one network serve all (views whose leading stride is 0), the table's part is one product.
        """
        weight, bias = self.layers(theta)[0]
        of_user, of_rows = weight.split([user.shape[1], rows.shape[2]], 2)
        first = bias + torch.bmm(user.unsqueeze(1), of_user.transpose(1, 2))  # (k, 1, out)
        if rows.stride(0) == 0 and theta.stride(0) == 0:
            return self._behind_first(theta, first + rows[0] @ of_rows[0].T).squeeze(-1)
        return self._behind_first(theta, first + torch.bmm(rows, of_rows.transpose(1, 2))).squeeze(-1)

    def _behind_first(self, theta: Tensor, x: Tensor) -> Tensor:
        for weight, bias in self.layers(theta)[1:]:
            x = _linear(x.relu(), weight, bias)
        return x


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.baddbmm(bias, x, weight.transpose(1, 2))


def head_scores(head: Tensor, rows: Tensor) -> Tensor:
    """(k, t) w · q + b of heads (k, d + 1) = [w, b], a linear layer each, and rows q (k, t, d).

    Written as row times matrix, as in `models.mf.scores`.
    """
    return torch.bmm(head[:, None, :-1], rows.transpose(1, 2)).squeeze(1) + head[:, -1:]
